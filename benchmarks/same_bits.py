"""Does the code of now give the bits of the record? Trainings, predictions and drawn images, before and after a change.

    python -m benchmarks.same_bits                       # compares all with the record: 3 to 4 minutes, Linux
    python -m benchmarks.same_bits --only lab resumed    # or some cases, with those that they need
    python -m benchmarks.same_bits --record              # makes the record: before the change

A change of structure may change no number. Each case is a command, so small that most of its time goes into imports.
Compared are digests of the numbers in the files that it writes. Of the code behind the commands only the functions that
draw images are called, so a record holds whatever that code looks like. A case of RESUMED is a training that is killed
after its first epoch and goes on. It is compared with the same training undisturbed, not with the record.

Exit code 0: all is the same. 1: a case differs, and its line says in what; or a command failed. 2: nothing was
compared. There is no record, or another processor or other versions made it, and these change bits too.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import data_synth
from benchmarks import _common
from benchmarks.faults import start
from lab.data import scenes

VERSIONS = ("numpy", "scipy", "keras", "tensorflow")
MACHINE = ("processor", "flags", "cores")  # as many threads as cores, and they decide in which order sums are taken
ENVIRONMENT = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}  # on the processor, which the record names
FIRST = "checkpoint-000001.npz"  # a training keeps its newest two


# What is run

TRAINING = "--deterministic --epochs 2"
IMAGES = f"{TRAINING} --val-images 4 --test-images 6 --size 48 --filters 4 --train-images 20"  # the last batch is short
CIRCLES = f"{IMAGES} --radius 3 8 --train-size 48"
# Of trainings that are resumed: while FIRST is kept, an epoch is left to resume.
LAB = f"{CIRCLES} --epochs 3 --train-size 24 --precision float32"
SHAPES = f"{IMAGES} --epochs 3 --shapes --size 64 --train-size 64 --radius 3 5 --precision float32"
PICTURES = f"{IMAGES} --precision float32 --masks data/masks --images"
VOLUMES = f"{TRAINING} --precision float32 --patch 16 --filters 2 --train-patches 5 --val-patches 4"
GREY, SCANS = "data/grey/0.png data/grey/5.png", "data/scans/0.nii.gz data/scans/4.nii.gz"
CASES = {  # script and flags; the name is that of the output folder
    "lab": ("unet_segmentation.py", LAB),
    "resumed": ("unet_segmentation.py", LAB),
    "report": ("unet_segmentation.py", f"{CIRCLES} --recipe report --precision float32"),
    "photographs": ("unet_segmentation.py", f"{CIRCLES} --recipe photographs"),  # bfloat16, where the hardware has it
    "grey": ("unet_segmentation.py", f"{PICTURES} data/grey"),
    "colour": ("unet_segmentation.py", f"{PICTURES} data/colour"),
    "folds": ("unet_segmentation.py", f"{PICTURES} data/grey --folds 2"),
    "classes": ("unet_segmentation.py", f"{PICTURES} data/grey --masks data/classes --class-weights"),
    "class_folds": ("unet_segmentation.py", f"{PICTURES} data/grey --masks data/classes --folds 2"),
    "shapes": ("unet_segmentation.py", SHAPES),
    "resumed_shapes": ("unet_segmentation.py", SHAPES),
    "spheres": ("volume_segmentation.py", f"{VOLUMES} --size 24 --radius 3 6 --spheres 1 1 --test-volumes 2"),
    "scans": ("volume_segmentation.py", f"{VOLUMES} --images data/scans --masks data/scan_masks"),
    "scan_classes": ("volume_segmentation.py", f"{VOLUMES} --images data/scans --masks data/scan_classes"),
    "conv3d": ("conv3d_analysis.py", "--input-shape 16 16 16 1 --filters 2"),
    "predict_grey": ("predict.py", f"grey/model.keras {GREY} --probabilities --masks data/masks"),
    "predict_classes": ("predict.py", f"classes/model.keras {GREY} --probabilities --masks data/classes"),
    "predict_colour": ("predict.py", "colour/model.keras data/colour/0.png --probabilities"),
    "predict_at_scale": ("predict.py", "photographs/model.keras data/grey/0.png --probabilities"),
    "predict_by_two": (
        "predict.py",
        "folds/fold-1/model.keras data/grey/0.png --models folds/fold-2/model.keras --flips --probabilities",
    ),
    "predict_scans": ("predict.py", f"scans/model.keras {SCANS} --probabilities --masks data/scan_masks"),
    "predict_scan_classes": ("predict.py", f"scan_classes/model.keras {SCANS} --masks data/scan_classes"),
}
RESUMED = {"resumed": "lab", "resumed_shapes": "shapes"}  # a case: the same training undisturbed
NEEDS = {  # the cases whose files or digests are used
    **RESUMED,
    "predict_grey": "grey",
    "predict_classes": "classes",
    "predict_colour": "colour",
    "predict_at_scale": "photographs",
    "predict_by_two": "folds",
    "predict_scans": "scans",
    "predict_scan_classes": "scan_classes",
}
NAMES = ("generator", *CASES)


def with_needed(names: Iterable[str]) -> list[str]:
    """The cases of some names and those that they need, in the order in which they are run."""
    wanted = {*names, *(NEEDS.get(name) for name in names)}
    return [name for name in NAMES if name in wanted]


def make_data(folder: Path) -> None:
    """Six pictures, grey and in colour, and five scans, each with its mask; the last of each is longer than a tile.

    Masks of two classes have values of 10 and 20 in the halves of the object.
    """
    import nibabel
    from PIL import Image

    for name in ("grey", "colour", "masks", "classes", "scans", "scan_masks", "scan_classes"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        mask, colour = draw(rng, (64, 1100) if number == 5 else (64, 80), contrast=(80, 40, -40))
        files = {"grey": colour[..., 0], "colour": colour, "masks": 255 * mask, "classes": halves(mask)}
        for name, pixels in files.items():
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    for number in range(5):
        mask, scan = draw(rng, (24, 20, 140) if number == 4 else (24, 20, 32), contrast=(80,))
        for name, voxels in {"scans": scan[..., 0], "scan_masks": mask, "scan_classes": halves(mask)}.items():
            image = nibabel.Nifti1Image(voxels, np.diag([1, 1, 2, 1]))
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / name / f"{number}.nii.gz")


def draw(rng: np.random.Generator, sides: tuple, contrast: tuple) -> tuple[np.ndarray, np.ndarray]:
    """The mask of a disc or a ball, 0 and 1, (*sides), and a noisy picture of it, (*sides, channels); both uint8."""
    centre = [rng.uniform(8, side - 8) for side in sides]
    distance2 = sum((axis - c) ** 2 for axis, c in zip(np.indices(sides), centre, strict=True))
    mask = distance2 <= rng.uniform(5, 8) ** 2
    values = 90 + mask[..., None] * np.array(contrast) + 25 * rng.standard_normal((*sides, len(contrast)))
    return mask.astype(np.uint8), np.clip(values, 0, 255).round().astype(np.uint8)


def halves(mask: np.ndarray) -> np.ndarray:
    """A mask with 10 for the half of its object along the last axis, and 20 for the other half."""
    middle = np.median(np.nonzero(mask)[-1])
    return mask * np.where(np.arange(mask.shape[-1]) < middle, 10, 20).astype(np.uint8)


def run(name: str, folder: Path) -> dict[str, str]:
    """Run a case in `folder`, where the data and the MLflow store of all lie; return the digests of its numbers."""
    if name == "generator":
        return generator()
    script, flags = CASES[name][0], f"{CASES[name][1]} --out-dir {name}"
    if name in RESUMED:
        kill_after_first_epoch(folder, name, flags)
        flags += " --resume"
    if code := start(folder, script, flags, **ENVIRONMENT).wait():
        raise SystemExit(f"same_bits.py: {name} ended with code {code}:\n{(folder / 'console').read_text()}")
    found = digests(folder / name)
    if name == "conv3d":  # its network is among the files of the MLflow run alone
        (file,) = (folder / "mlruns").rglob("architecture.json")
        found["network of architecture.json"] = digest(read_json(file))
    return found


def kill_after_first_epoch(folder: Path, name: str, flags: str) -> None:
    """Begin a training and kill it as soon as its first epoch is kept; SystemExit if it was faster."""
    process, first = start(folder, CASES[name][0], flags, **ENVIRONMENT), folder / name / FIRST
    while not first.exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    if not first.exists():
        raise SystemExit(f"same_bits.py: no epoch is left to resume:\n{(folder / 'console').read_text()}")


def generator() -> dict[str, str]:
    """Digests of images and masks that are drawn."""
    return {
        "circles": digest(data_synth.make_circles(8, 64, seed=(0, 1))),
        "varied circles": digest(scenes.draw_scenes(8, 64, seed=(0, 1), **scenes.VARIED)),
        "spheres": digest(data_synth.make_spheres(2, 32, seed=(0, 1), radius=(3, 8))),
        "shapes": digest(data_synth.make_shapes(8, 64, seed=(0, 1), radius=(3, 5))),
        "bodies": digest(data_synth.make_bodies(2, 32, seed=(0, 1), radius=(3, 4))),
    }


def digest(value) -> str:
    """Of arrays, numbers and texts in dicts, lists and tuples, by SHA-256; the order of a dict does not matter."""

    def describe(array):
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=describe).encode()).hexdigest()[:16]


def digests(folder: Path) -> dict[str, str]:
    """Digests of the files in a folder and below it, by part and file; see PARTS."""
    return {
        f"{part} of {path.relative_to(folder).as_posix()}": digest(read(path))
        for part, (pattern, read) in PARTS.items()
        for path in sorted(folder.rglob(pattern))
    }


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a model file, by their names in it."""
    import h5py

    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        names = []
        file.visit(names.append)
        return {name: file[name][()] for name in names if isinstance(file[name], h5py.Dataset)}


def read_preprocessing(path: Path) -> dict:
    """How a model file says that its pictures are prepared."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("preprocessing.json"))


def read_json(path: Path) -> dict:
    """A whole JSON file."""
    return json.loads(path.read_text())


def read_scores(path: Path) -> dict:
    """The scores on the test set, of the network and of what needs none; no times."""
    found = read_json(path)
    return {name: found[name] for name in ("test", "baselines")}


def read_rows(path: Path) -> list[dict[str, float]]:
    """The numbers of a table, without texts and times: for each row a dict by column."""
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.append({})
            for name in row.keys() - {"seconds"}:
                with contextlib.suppress(ValueError):  # a text
                    rows[-1][name] = float(row[name])
    return rows


def read_image(path: Path) -> np.ndarray:
    """The pixels of a picture, or the voxels of a scan, as they are in the file."""
    import nibabel
    from PIL import Image

    return np.asarray(nibabel.load(path).dataobj if path.suffix == ".gz" else Image.open(path))


PARTS = {  # of what a case has written: which files, and what reads their numbers
    "weights": ("model.keras", read_weights),
    "preprocessing": ("model.keras", read_preprocessing),
    "history": ("history.json", read_json),
    "scores": ("scores.json", read_scores),
    "mean scores": ("folds.json", read_json),
    "rows": ("*.csv", read_rows),
    "mask": ("*_mask.*", read_image),
    "probabilities": ("*_probability*", read_image),
    "curves": ("simulation.json", read_json),
}


# The comparison


def why_not_comparable(recorded: dict, here: dict) -> str | None:
    """A sentence if there is no record, or one of another processor or other versions; None if it can be compared."""
    if not recorded:
        return "Nothing is recorded yet: --record makes the record, before the change."
    pairs = [(name, recorded["machine"][name], here["machine"][name]) for name in MACHINE]
    pairs += [(name, recorded["versions"].get(name), here["versions"].get(name)) for name in VERSIONS]
    others = [f"{name} is {now}, in the record {then}" for name, then, now in pairs if now != then]
    return f"Nothing is compared, for this changes bits too: {'; '.join(others)}." if others else None


def verdict(name: str, expected: dict[str, str], found: dict[str, str]) -> str:
    """A line: whether the digests of a case are those expected, and if not, which of them differ."""
    parts = [part for part in sorted(expected | found) if expected.get(part) != found.get(part)]
    return f"DIFFERENT: {name} ({', '.join(parts)})" if parts else f"same: {name}"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, help="which cases")
    parser.add_argument("--record", action="store_true", help="make the record, of all cases")
    args = parser.parse_args(argv)
    if args.record and args.only:
        parser.error("--record makes the record of all cases: give it without --only.")
    recorded = _common.read("same_bits")
    if not args.record and (reason := why_not_comparable(recorded, _common.circumstances())):
        print(reason)
        sys.exit(2)
    found, lines = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder / "data")
        for name in with_needed(args.only or NAMES):
            found[name] = run(name, folder)
            if name in RESUMED:
                lines.append(verdict(name, found[RESUMED[name]], found[name]))
            elif args.record:
                lines.append(f"made: {name}, {len(found[name])} digests")
            else:
                lines.append(verdict(name, recorded["digests"].get(name, {}), found[name]))
            print(lines[-1], flush=True)
    if any(line.startswith("DIFFERENT") for line in lines):
        sys.exit(1)
    if args.record:
        _common.write("same_bits", {"digests": found})


if __name__ == "__main__":
    main()
