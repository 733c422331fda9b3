"""Small bright objects among clutter that is less bright, and scans of unequal content: what preprocessing may lose.

    python -m benchmarks.grey_values                    # half an hour on 2 cores
    python -m benchmarks.grey_values --only bright      # a part of it, added to what is recorded

Twelve pictures of 256 x 256 pixels: ground 60, noise 8, 25 discs of radius 4 at 150, one at 210, which is the object
(0.07% of the pixels). A threshold of the values in the files finds every object. The same darker than 99% of the
pixels, in 16 bits, with a hot pixel in each, from two scanners (one multiplies by 9 and adds 700), and as scans with
balls. Then white matter in six blocks of nilearn's MNI152 template, each with another share of empty surroundings:
four train, one validates, one is tested, and so is the right half of the brain, which no training saw.

A row holds the Dice of the trained network beside what the best threshold reaches on the same test pixels: of the
values in the files; of the values as the network gets them; and of values that are clipped at the percentiles 1 and 99
of their picture, as many programs prepare them.
"""

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import _common

NAME = "grey_values"
PICTURES = "unet_segmentation.py --filters 16"
SCANS = "volume_segmentation.py --patch 16 32 32 --epochs 20"
BRAIN = "volume_segmentation.py --patch 24 64 64"
CLIPPED = {"stretch": [1, 99], "beyond": "clip"}


# The data


def scene(seed: int, sides: tuple[int, ...], clutter: int) -> tuple[np.ndarray, np.ndarray]:
    """Ground 60 with noise 8, discs or balls of radius 4 at 150, and one at 210; the mask of that one."""
    rng, places = np.random.default_rng(seed), []
    image, mask, indices = 60 + rng.normal(0, 8, sides), np.zeros(sides, bool), np.indices(sides)
    while len(places) <= clutter:
        place = [rng.uniform(6, side - 6) for side in sides]
        if all(np.linalg.norm(np.subtract(place, other)) > 12 for other in places):
            places.append(place)
    for i, place in enumerate(places):
        inside = sum((axis - centre) ** 2 for axis, centre in zip(indices, place, strict=True)) <= 16
        image[inside] += 90 if i else 150
        mask = mask if i else inside
    return image, mask


def eight_bits(image: np.ndarray, number: int) -> np.ndarray:
    return image.round().clip(0, 255).astype(np.uint8)


def dark(image: np.ndarray, number: int) -> np.ndarray:
    return eight_bits(255 - image, number)


def sixteen_bits(image: np.ndarray, number: int) -> np.ndarray:
    """A micrograph that uses a few hundred of 65,536 levels."""
    return (3 * image + 200).round().clip(0).astype(np.uint16)


def hot_pixel(image: np.ndarray, number: int) -> np.ndarray:
    image = sixteen_bits(image, number)
    image[7 * number % 256, 31 * number % 256] = 65535
    return image


def two_scanners(image: np.ndarray, number: int) -> np.ndarray:
    return (image if number % 2 else 9 * image + 700).round().clip(0).astype(np.uint16)


LOOKS = {"bright": eight_bits, "dark": dark, "16 bits": sixteen_bits, "hot pixel": hot_pixel, "scanners": two_scanners}
CASES = {**{name: PICTURES for name in LOOKS}, "scans": SCANS, "brain": BRAIN}


def write_pair(folder: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    """Write an image and its mask into `pictures` and `masks`: PNG, or NIfTI where they have three axes."""
    for place, array in (("pictures", image), ("masks", mask.astype(np.uint8))):
        (folder / place).mkdir(exist_ok=True)
        if image.ndim == 2:
            from PIL import Image

            Image.fromarray(array * np.uint8(255) if place == "masks" else array).save(folder / place / f"{name}.png")
        else:
            import nibabel

            nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array.T), np.eye(4)), folder / place / f"{name}.nii")


def write_case(case: str, folder: Path) -> None:
    """Write a case's twelve pictures, twelve scans, or six blocks of a brain."""
    if case == "brain":
        left, _ = read_brain()
        for i in range(6):
            write_pair(folder, f"block{i}", *(array[26 * i : 26 * (i + 1)] for array in left))
        return
    for number in range(12):
        image, mask = scene(number, *(((32, 64, 64), 12) if case == "scans" else ((256, 256), 25)))
        write_pair(folder, f"{number:02}", LOOKS.get(case, eight_bits)(image, number), mask)


def read_brain() -> tuple[list, list]:
    """The left and the right half of the template: head and white matter, of which more than one half counts."""
    from lab.data import scans

    folder = Path(importlib.util.find_spec("nilearn").origin).parent / "datasets" / "data"
    head, white = (
        np.asarray(scans.open_scan(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz").voxels)
        for kind in ("t1", "wm")
    )
    return [head[..., :98], white[..., :98] > 127], [head[..., 99:], white[..., 99:] > 127]


# What is measured


def clipped_threshold(folder: Path, case: str) -> float:
    """Dice of the best threshold on the test samples where values are clipped at their own percentiles."""
    from PIL import Image

    from lab.data import grey_values, scans
    from lab.evaluate import scoring

    def read(place, name):
        path = folder / place / name
        if path.suffix == ".png":
            return np.asarray(Image.open(path))
        return np.asarray(scans.open_scan(path).voxels)

    def prepared(names):
        images = [read("pictures", name)[..., None] for name in names]
        images = [grey_values.range_of(image, CLIPPED).prepare(image) for image in images]
        return np.stack(images), np.stack([read("masks", name)[..., None] != 0 for name in names]).astype(np.float32)

    parts = json.loads((folder / "out" / "split.json").read_text())
    validation, (images, masks) = (prepared(parts[part]) for part in ("validation", "test"))
    threshold, _ = scoring.best_threshold(*validation, absolute=False)
    return scoring.score(masks, scoring.above(images, *threshold))[0]["image_dice"]


def run(case: str, seed: int) -> dict:
    """Train on a case by the script's own command; a row."""

    def call(command: str) -> None:
        script, *flags = command.split()
        subprocess.run([sys.executable, str(_common.ROOT / script), *flags], cwd=folder, env=os.environ, check=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_case(case, folder)
        call(f"{CASES[case]} --images pictures --masks masks --out-dir out --seed {seed}")
        found = json.loads((folder / "out" / "scores.json").read_text())
        baselines = {name: row["image_dice"] for name, row in found["baselines"].items()}
        row = {
            "case": case,
            "seed": seed,
            "command": CASES[case],
            "seconds": found["training_seconds"],
            "raw_threshold": baselines["best threshold, raw values"],
            "threshold": baselines.get("best threshold", baselines.get("best global threshold")),
            "clipped_threshold": clipped_threshold(folder, case),
            "dice": found["test"]["image_dice"],
        }
        if case == "brain":
            write_pair(folder / "out", "right", *read_brain()[1])
            call("predict.py out/model.keras out/pictures --masks out/masks --out-dir predicted")
            with open(folder / "predicted" / "predictions.csv", newline="") as file:
                (line,) = csv.DictReader(file)
            row["dice_of_other_half"] = float(line["dice"])
        return row


def scores_table(rows: list[dict]) -> str:
    """A line for each case: Dice, means over the seeds."""

    def mean(case: str, key: str) -> str:
        values = [row[key] for row in rows if row["case"] == case and key in row]
        return f"{np.mean(values):.4f}" if values else ""

    keys = ("raw_threshold", "clipped_threshold", "threshold", "dice")
    lines = [
        [case, sum(row["case"] == case for row in rows), *(mean(case, key) for key in keys)]
        for case in CASES
        if any(row["case"] == case for row in rows)
    ]
    return _common.table(
        ["", "seeds", "threshold, values in the file", "clipped at 1% and 99%", "as prepared", "U-Net"], lines
    )


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="which cases")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of split, weights and crops")
    args = parser.parse_args(argv)
    for case in args.only:
        for seed in args.seeds:
            row = run(case, seed)
            print(json.dumps(row), flush=True)
            _common.record(NAME, row, lambda row: (row["case"], row["seed"]))
    print(scores_table(_common.rows(NAME)))


if __name__ == "__main__":
    main()
