"""Find round things on real photographs with a network that has seen synthetic circles only.

    flags="--train-images 128 --batch-size 4 --learning-rate 3e-3"
    python unet_segmentation.py $flags --no-small-images --out-dir outputs/plain
    python unet_segmentation.py $flags --varied --out-dir outputs/varied
    python unet_segmentation.py $flags --varied --seed 1 --out-dir outputs/varied1     # and so on
    python -m benchmarks.photographs outputs/plain outputs/varied outputs/varied1

The photographs are scikit-image's: ancient coins, and a cell under the microscope, reduced by 3 to the size of the
circles. Beside the networks stand Otsu's threshold (1979) and the watershed of scikit-image's own tutorial, with its
grey levels for the coins. The true masks are this folder's PNG files: a watershed from seeds set by hand, one per
object (SEEDS), looked at. They favour the watershed a little, which shares their edges.

Then the other way: the left half of the coins, cut into 6 labelled crops, is trained on by
`unet_segmentation.py --images --masks`, and all are compared on the right half.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import predict
from benchmarks._common import ROOT, table, write
from lab import pictures

MASKS = ROOT / "benchmarks" / "photographs"
SEEDS = {  # row, column and radius of each object, in pixels: by hand
    "coins": [
        (44, 335, 29), (51, 155, 23), (51, 215, 23), (53, 276, 20), (54, 44, 21), (56, 100, 19), (119, 271, 25),
        (124, 45, 20), (124, 205, 20), (125, 336, 19), (126, 102, 19), (127, 154, 18), (187, 347, 32), (193, 212, 24),
        (194, 275, 22), (196, 102, 22), (197, 44, 19), (198, 154, 19), (260, 46, 28), (261, 172, 27), (263, 301, 25),
        (263, 244, 24), (266, 114, 21), (268, 358, 22),
    ],
    "cell": [(125, 143, 21)],
}  # fmt: skip
LEVELS = {"coins": (30, 150), "cell": (75, 120)}  # grey values that are surely background, surely object
OWN = "--epochs 30 --train-images 64 --size 96 --batch-size 4 --learning-rate 3e-3"


def photographs() -> dict[str, np.ndarray]:
    """The pictures (H, W), uint8."""
    from skimage import data

    return {"coins": data.coins(), "cell": np.asarray(Image.fromarray(data.cell()).reduce(3))}


def watershed(picture: np.ndarray, markers: np.ndarray) -> np.ndarray:
    """Flood the edges of `picture` from markers (1 background, 2 object, 0 undecided): (H, W), bool."""
    from scipy.ndimage import binary_fill_holes
    from skimage.filters import sobel
    from skimage.segmentation import watershed as flood

    return binary_fill_holes(flood(sobel(picture), markers) == 2)


def reference(picture: np.ndarray, seeds: list) -> np.ndarray:
    """The mask that is taken for true: a watershed of the slightly blurred picture, from one seed per object."""
    from skimage.filters import gaussian
    from skimage.morphology import disk, opening

    rows, columns = np.indices(picture.shape)
    distance = np.min([np.hypot(rows - row, columns - column) / radius for row, column, radius in seeds], axis=0)
    markers = np.select([distance < 0.7, distance > 1.25], [2, 1], 0)
    return opening(watershed(gaussian(picture, 1), markers), disk(3))


def classical(name: str, picture: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of the methods that learn nothing."""
    from skimage.filters import threshold_otsu

    low, high = LEVELS[name]
    markers = np.select([picture < low, picture > high], [1, 2], 0)
    return {"Otsu's threshold": picture > threshold_otsu(picture), "watershed": watershed(picture, markers)}


def train_own(picture: np.ndarray, mask: np.ndarray, folder: Path) -> Path:
    """Cut picture and mask into 3 x 2 crops, train on them by the folder command, return the model's file."""
    for name, array in (("pictures", picture), ("masks", mask.astype(np.uint8) * 255)):
        (folder / name).mkdir()
        for i, part in enumerate(part for row in np.array_split(array, 3) for part in np.array_split(row, 2, axis=1)):
            Image.fromarray(part).save(folder / name / f"crop{i}.png")
    script = str(ROOT / "unet_segmentation.py")
    flags = ["--images", "pictures", "--masks", "masks", "--out-dir", "out", *OWN.split()]
    subprocess.run([sys.executable, script, *flags], cwd=folder, check=True)
    return folder / "out" / "model.keras"


def scores_table(results: dict) -> str:
    """The README's table: Dice of each method on each photograph."""
    dice = results["dice"]
    methods = list(dice["coins, right half"])
    cells = [[f"{dice[name][method]:.3f}" if method in dice[name] else "" for name in dice] for method in methods]
    return table(["", *dice], [[method, *row] for method, row in zip(methods, cells, strict=True)])


def plot(panels: dict[str, dict], scores: dict, path: Path) -> None:
    """A row per photograph: each method's mask on it, with its Dice."""
    from matplotlib.figure import Figure

    columns = max(map(len, panels.values()))
    figure = Figure(figsize=(2.6 * columns, 2.5 * len(panels)), layout="constrained")
    for line, (name, masks) in zip(figure.subplots(len(panels), columns), panels.items(), strict=True):
        picture = masks["photograph"]
        for axes in line:
            axes.axis("off")
        for axes, (method, mask) in zip(line, masks.items(), strict=False):
            image = pictures.preprocess(picture, *pictures.grey_range(picture, pictures.STRETCHED))
            axes.imshow(pictures.overlay(image, np.zeros_like(mask) if method == "photograph" else mask))
            dice = f"\nDice {scores[name][method]:.3f}" if method in scores[name] else ""
            axes.set_title((name if method == "photograph" else method) + dice, fontsize=9)
    figure.savefig(path, dpi=120)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plain", type=Path, help="folder of a run on plain circles")
    parser.add_argument("varied", type=Path, nargs="+", help="folders of runs with --varied; the first one is drawn")
    parser.add_argument("--references", action="store_true", help="make the true masks anew first")
    args = parser.parse_args(argv)
    pictures = photographs()
    if args.references:
        for name, picture in pictures.items():
            Image.fromarray(reference(picture, SEEDS[name])).save(MASKS / f"{name}_mask.png")
    true = {name: pictures.read_mask(MASKS / f"{name}_mask.png") for name in pictures}
    models = {
        "U-Net, plain circles": predict.load_model(args.plain / "model.keras"),
        "U-Net, varied circles": predict.load_model(args.varied[0] / "model.keras"),
    }
    varied = [predict.load_model(folder / "model.keras") for folder in args.varied]
    panels, scores = {}, {}
    for name, picture in pictures.items():
        found = classical(name, picture)
        found |= {method: predict.segment(model, picture, 0.5)[0] for method, model in models.items()}
        panels[name] = {"photograph": picture, "true mask": true[name], **found}

    half = pictures["coins"].shape[1] // 2
    with tempfile.TemporaryDirectory() as folder:
        own = predict.load_model(train_own(pictures["coins"][:, :half], true["coins"][:, :half], Path(folder)))
    panels["coins, right half"] = {method: mask[:, half:] for method, mask in panels["coins"].items()}
    right = predict.segment(own, pictures["coins"][:, half:], 0.5)[0]
    panels["coins, right half"]["U-Net, 6 own crops"] = right
    for name, masks in panels.items():
        methods = list(masks)[2:]
        scores[name] = {method: predict.score(masks["true mask"], masks[method])["dice"] for method in methods}
    seeds = {
        name: [predict.score(true[name], predict.segment(model, picture, 0.5)[0])["dice"] for model in varied]
        for name, picture in pictures.items()
    }
    print(scores_table({"dice": scores}), f"varied circles, by seed: {seeds}", sep="\n")
    plot(panels, scores, ROOT / "pictures" / "photographs.png")
    write("photographs", {"dice": scores, "dice_of_varied_by_seed": seeds, "own_crops": OWN})


if __name__ == "__main__":
    main()
