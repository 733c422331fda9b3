"""Find round things on real photographs with a network that has seen synthetic ones only.

    flags="--train-images 128 --train-size 128 --batch-size 4 --learning-rate 3e-3"
    python unet_segmentation.py $flags --out-dir outputs/plain
    python unet_segmentation.py --recipe photographs --out-dir outputs/varied
    python unet_segmentation.py --recipe photographs --seed 1 --out-dir outputs/varied1     # and so on
    python -m benchmarks.photographs outputs/plain outputs/varied outputs/varied1

The photographs are scikit-image's, brought to the size of the circles: ancient coins; a cell under the microscope; a
cup of coffee, whose opening is looked for; galaxies of the Hubble deep field; nuclei in the connective tissue of a
stained section, in grey; the optic disc of a retina; a clock that was moved while the picture was taken. The recipe was
chosen on the first three (TUNED_ON); the others (HELD_OUT) were looked at by nothing but this comparison. The networks
of several seeds stand there alone and as the mean of their probabilities, which `predict.py --models` gives. Beside the
networks stand Otsu's threshold (1979), which is told whether objects are dark or bright, and the watershed of
scikit-image's own tutorial.

The true masks are this folder's PNG files, made by `reference` and looked at: a watershed from seeds set by hand, one
per object (coins, cell, nuclei; they favour the watershed a little, which shares their edges); an ellipse drawn by
hand (cup, optic disc, clock); for the galaxies, what is brighter than the sky by five times its noise.

Then the other way: half of the coins and half of the nuclei, cut into 6 labelled crops each, are trained on by
`unet_segmentation.py --images --masks`, and all are compared on the other half.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._common import ROOT, table, write
from lab.data import grey_values, pictures
from lab.evaluate import plots
from lab.model import prediction
from lab.system import backend

MASKS = ROOT / "benchmarks" / "photographs"
TUNED_ON = ("coins", "cell", "cup")
HELD_OUT = ("galaxies", "nuclei", "optic disc", "clock")
DARK = ("nuclei",)  # where objects are darker than what is around them
# Row, column, half-length, half-width, and the length's angle to the row in degrees, of each object; or its radius.
SEEDS = {
    "coins": [
        (44, 335, 29), (51, 155, 23), (51, 215, 23), (53, 276, 20), (54, 44, 21), (56, 100, 19), (119, 271, 25),
        (124, 45, 20), (124, 205, 20), (125, 336, 19), (126, 102, 19), (127, 154, 18), (187, 347, 32), (193, 212, 24),
        (194, 275, 22), (196, 102, 22), (197, 44, 19), (198, 154, 19), (260, 46, 28), (261, 172, 27), (263, 301, 25),
        (263, 244, 24), (266, 114, 21), (268, 358, 22),
    ],
    "cell": [(125, 143, 21)],
    "nuclei": [
        (23, 144, 16, 8, -30), (21, 196, 22, 21, 0), (59, 200, 22, 10, -40), (96, 235, 16, 10, 75),
        (108, 93, 21, 8, 85), (135, 133, 18, 9, 55), (108, 9, 18, 8, 55), (199, 83, 32, 12, 78), (271, 100, 27, 9, 70),
        (198, 183, 23, 9, 75), (268, 193, 18, 8, 75), (304, 199, 10, 10, 0), (314, 229, 46, 15, 75),
        (320, 174, 20, 8, 68), (308, 57, 22, 13, -10), (349, 54, 20, 14, -20), (379, 76, 15, 12, 15),
        (404, 34, 21, 15, 55), (411, 167, 48, 12, 52), (412, 147, 14, 13, 0), (466, 127, 18, 10, 95),
        (485, 103, 21, 14, 60), (514, 55, 35, 14, 78), (470, 52, 24, 8, 25), (480, 21, 27, 6, 88),
        (480, 240, 22, 8, 50), (531, 164, 21, 12, 60), (555, 142, 15, 8, -5), (555, 251, 22, 8, 80),
        (611, 150, 23, 10, 50), (600, 239, 19, 11, 58), (634, 244, 18, 10, 60), (32, 8, 14, 7, 40),
    ],
}  # fmt: skip
OUTLINES = {
    "cup": (28.0, 73.0, 30.0, 23.7, 5),
    "optic disc": (129.8, 43.6, 19.3, 20.3, 0),
    "clock": (155, 213, 68, 57, 0),
}
LEVELS = {"coins": (30, 150), "cell": (75, 120)}  # grey values that are surely background, surely object
HALVES = {"coins": (1, "coins, right half"), "nuclei": (0, "nuclei, lower half")}  # axis, and what is tested on
OWN = "--epochs 30 --train-images 64 --size 96 --batch-size 4 --learning-rate 3e-3"


def photographs() -> dict[str, np.ndarray]:
    """The pictures (H, W), uint8."""
    from skimage import data

    def grey(array):
        return Image.fromarray(array).convert("L")

    def enlarged(image, left, top, right, bottom):
        sides = 3 * (right - left), 3 * (bottom - top)
        return image.crop((left, top, right, bottom)).resize(sides, Image.Resampling.BICUBIC)

    found = {
        "coins": grey(data.coins()),
        "cell": grey(data.cell()).reduce(3),
        "cup": grey(data.coffee()).reduce(4),
        "galaxies": enlarged(grey(data.hubble_deep_field()), 300, 200, 760, 560),
        "nuclei": enlarged(grey(data.immunohistochemistry()), 162, 290, 255, 512),
        "optic disc": grey(data.retina()).reduce(5),
        "clock": grey(data.clock()),
    }
    return {name: np.asarray(image) for name, image in found.items()}


def watershed(picture: np.ndarray, markers: np.ndarray) -> np.ndarray:
    """Flood the edges of `picture` from markers (1 background, 2 object, 0 undecided): (H, W), bool."""
    from scipy.ndimage import binary_fill_holes
    from skimage.filters import sobel
    from skimage.segmentation import watershed as flood

    return binary_fill_holes(flood(sobel(picture), markers) == 2)


def distance(sides: tuple, ellipses: list) -> np.ndarray:
    """How far each pixel (H, W) is from the centre of the nearest ellipse, in its radii: 1 on the outline."""
    rows, columns = np.indices(sides)
    found = []
    for row, column, *axes in ellipses:
        length, width, angle = axes if len(axes) == 3 else (axes[0], axes[0], 0)
        sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
        along = (columns - column) * cosine + (rows - row) * sine
        across = (rows - row) * cosine - (columns - column) * sine
        found.append(np.hypot(along / length, across / width))
    return np.min(found, axis=0)


def reference(name: str, picture: np.ndarray) -> np.ndarray:
    """The mask that is taken for true, (H, W), bool."""
    from skimage.filters import gaussian
    from skimage.morphology import disk, opening, remove_small_objects

    if name in OUTLINES:
        return distance(picture.shape, [OUTLINES[name]]) <= 1
    if name == "galaxies":  # as a catalogue of galaxies is made: smoothed, above the sky's noise, not too small
        sky = np.median(picture)
        noise = 1.4826 * np.median(np.abs(picture - sky))
        return remove_small_objects(255 * gaussian(picture, 3) > sky + 5 * noise, max_size=180)
    far = distance(picture.shape, SEEDS[name])
    markers = np.select([far < 0.7, far > 1.25], [2, 1], 0)
    smooth = gaussian(picture, 3 if name == "nuclei" else 1)  # the nuclei are enlarged by 3
    return opening(watershed(smooth, markers), disk(3))


def classical(name: str, picture: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of the methods that learn nothing."""
    from skimage.filters import threshold_otsu

    bright = picture > threshold_otsu(picture)
    found = {"Otsu's threshold": ~bright if name in DARK else bright}
    if name in LEVELS:
        low, high = LEVELS[name]
        found["watershed"] = watershed(picture, np.select([picture < low, picture > high], [1, 2], 0))
    return found


def segment(folders: list[Path], picture: np.ndarray, wanted: float | None = None) -> np.ndarray:
    """The mask (H, W) of the models of some runs together, at the scale that is wanted or found."""
    return at_scale(folders, picture, wanted)[0]


def at_scale(folders: list[Path], picture: np.ndarray, wanted: float | None) -> tuple[np.ndarray, float]:
    """The mask (H, W), and the scale at which the picture was looked at: as `predict.py --models` does it."""
    models = prediction.load_models([folder / "model.keras" for folder in folders])
    image = picture[..., None]
    prepare = prediction.prepare_pictures(models, image)
    slabs, found = prediction.picture_probabilities(models, image, prepare, wanted)
    return prediction.segment(slabs, picture.shape)[0], found


def dice(true: np.ndarray, mask: np.ndarray) -> float:
    return prediction.compare_masks(true, mask)["dice"]


def train_own(picture: np.ndarray, mask: np.ndarray, folder: Path) -> Path:
    """Cut picture and mask into 3 x 2 crops, train on them by the folder command, return the run's folder."""
    for name, array in (("pictures", picture), ("masks", mask.astype(np.uint8) * 255)):
        (folder / name).mkdir()
        for i, part in enumerate(part for row in np.array_split(array, 3) for part in np.array_split(row, 2, axis=1)):
            Image.fromarray(part).save(folder / name / f"crop{i}.png")
    script = str(ROOT / "unet_segmentation.py")
    flags = ["--images", "pictures", "--masks", "masks", "--out-dir", "out", *OWN.split()]
    subprocess.run([sys.executable, script, *flags], cwd=folder, check=True)
    return folder / "out"


def scores_table(results: dict) -> str:
    """The README's table: Dice of each method on each photograph."""
    found = results["dice"]
    methods = list(dict.fromkeys(method for of_picture in found.values() for method in of_picture))
    cells = [[f"{found[name][method]:.3f}" if method in found[name] else "" for name in found] for method in methods]
    return table(["", *found], [[method, *row] for method, row in zip(methods, cells, strict=True)])


def plot(panels: dict[str, dict], shown: tuple[str, ...], scores: dict, path: Path) -> None:
    """A row per photograph, as high as it is; a column for it and for each mask that is `shown`, with its Dice."""
    heights = [masks["photograph"].shape[0] / masks["photograph"].shape[1] for masks in panels.values()]
    heights = [min(height, 1.2) for height in heights]
    figure = plots.new_figure(8.6, 8.6 / (len(shown) + 1) * sum(heights) + 0.3 * len(panels))
    grid = figure.subplots(len(panels), len(shown) + 1, squeeze=False, height_ratios=heights)
    for line, (name, masks) in zip(grid, panels.items(), strict=True):
        picture = masks["photograph"][..., None]
        image = grey_values.range_of(picture, grey_values.STRETCHED).prepare(picture)
        for axes, method in zip(line, ("photograph", *shown), strict=True):
            axes.axis("off")
            axes.imshow(plots.overlay(image, masks[method] if method in shown else np.zeros(picture.shape[:2])))
            title = {"photograph": name, "true mask": "true mask"}.get(method, method.removeprefix("U-Net, "))
            axes.set_title(f"{title}: {scores[name][method]:.3f}" if method in scores[name] else title, fontsize=9)
    figure.savefig(path, dpi=150)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plain", type=Path, help="folder of a run on plain circles")
    parser.add_argument("varied", type=Path, nargs="+", help="folders of runs for photographs; the first one is drawn")
    parser.add_argument("--references", action="store_true", help="make the true masks anew first")
    args = parser.parse_args(argv)
    backend.import_keras()
    found, files = photographs(), {name: MASKS / f"{name.replace(' ', '_')}_mask.png" for name in TUNED_ON + HELD_OUT}
    if args.references:
        for name, picture in found.items():
            Image.fromarray(reference(name, picture)).save(files[name])
    true = {name: pictures.read_labels(file) for name, file in files.items()}
    networks = {"U-Net, plain circles": [args.plain], "U-Net, varied circles": args.varied[:1]}
    if len(args.varied) > 1:
        networks[f"mean of {len(args.varied)} such"] = args.varied
    found_scales = {name: at_scale(args.varied[:1], picture, None)[1] for name, picture in found.items()}
    panels = {}
    for name, picture in found.items():
        masks = {method: segment(folders, picture) for method, folders in networks.items()}
        panels[name] = {"photograph": picture, "true mask": true[name], **classical(name, picture), **masks}

    for name, (axis, rest) in HALVES.items():
        first, second = (
            {method: np.array_split(mask, 2, axis)[half] for method, mask in panels[name].items()} for half in (0, 1)
        )
        with tempfile.TemporaryDirectory() as folder:
            own = train_own(first["photograph"], first["true mask"], Path(folder))
            panels[rest] = {**second, "U-Net, 6 own crops": segment([own], second["photograph"])}
    scores = {
        name: {method: dice(masks["true mask"], mask) for method, mask in list(masks.items())[2:]}
        for name, masks in panels.items()
    }
    seeds = {
        name: [dice(true[name], segment([folder], picture)) for folder in args.varied]
        for name, picture in found.items()
    }
    unscaled = {name: dice(true[name], segment(args.varied[:1], picture, 1)) for name, picture in found.items()}
    print(scores_table({"dice": scores}), f"scales: {found_scales}, Dice without: {unscaled}", sep="\n")
    print(f"varied circles, by seed: {seeds}")
    whole = {name: panels[name] for name in found}
    compared = ("true mask", "Otsu's threshold", "U-Net, plain circles", "U-Net, varied circles")
    plot(whole, compared, scores, ROOT / "pictures" / "photographs.png")
    halves = {rest: panels[rest] for _, rest in HALVES.values()}
    before_and_after = ("true mask", "U-Net, varied circles", "U-Net, 6 own crops")
    plot(halves, before_and_after, scores, ROOT / "pictures" / "own_crops.png")
    recipe = {"recipe_chosen_on": TUNED_ON, "held_out": HELD_OUT, "own_crops": OWN}
    recipe |= {"scales": found_scales, "dice_at_scale_1": unscaled}
    write("photographs", {"dice": scores, "dice_of_varied_by_seed": seeds, **recipe})


if __name__ == "__main__":
    main()
