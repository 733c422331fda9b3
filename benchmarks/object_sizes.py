"""Dice against the size of objects, of a network that was trained on one range of sizes, at the scale that it finds.

    python unet_segmentation.py --recipe photographs --out-dir outputs/photographs
    python -m benchmarks.object_sizes outputs/photographs     # 2 minutes on 2 cores

Images of the recipe's own kind, a few objects of one radius in each, without dust and highlights, for a speck of 4
pixels and an object of 4 pixels look alike. They are predicted as they are, at the scale that
`predict.py` finds by itself, and at every scale that it tries; the best of those, chosen by the true masks, is what
a better choice of scale could reach.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks import _common
from lab.data import scenes
from lab.evaluate import plots
from lab.model import prediction, scale
from lab.system import backend

NAME = "object_sizes"
RADII = (4, 6, 8, 12, 16, 25, 35, 45, 60)
NUM, SIZE, SEED = 12, 256, (0, 99)  # images of each radius, a seed of their own
TRAINED_ON = (8, 25)  # radii in pixels


def score(models, image: np.ndarray, mask: np.ndarray) -> dict:
    """The scale that is found, and hard Dice at each that is tried."""
    prepare = prediction.prepare_pictures(models, image)

    def slabs_of(picture):
        return prediction.probabilities(models, picture, prepare)

    tried = models[0].preprocessing["scales"]
    masks = {one: scale.at_scale(slabs_of, image, one)[..., 0] >= 0.5 for one in tried}
    dice = {one: prediction.compare_masks(mask, found)["dice"] for one, found in masks.items()}
    return {"found": prediction.choose_scale(models, image, prepare), "dice": dice}


def measure(models, radius: float) -> dict:
    """A row: mean Dice over the images of one radius, and how often each scale was found."""
    settings = {**scenes.VARIED, "num_circles": (1, 3), "radius": (radius, radius), "dust": 0, "highlights": 0}
    images, masks = scenes.draw_scenes(NUM, SIZE, seed=(*SEED, radius), **settings)
    scores = [score(models, image, mask[..., 0] == 1) for image, mask in zip(images, masks, strict=True)]
    found = [one["found"] for one in scores]
    return {
        "radius": radius,
        "dice_as_it_is": float(np.mean([one["dice"][1.0] for one in scores])),
        "dice": float(np.mean([one["dice"][one["found"]] for one in scores])),
        "dice_of_best_scale": float(np.mean([max(one["dice"].values()) for one in scores])),
        "scales": {f"{one:g}": found.count(one) for one in sorted(set(found))},
    }


def plot(rows: list[dict], path: Path) -> None:
    """Mean Dice against radius: as it is, at the scale found, at the best one."""
    figure = plots.new_figure(6.4, 3.8)
    axes = figure.subplots()
    radii = [row["radius"] for row in rows]
    axes.axvspan(*TRAINED_ON, color="0.93", label=f"trained on: {TRAINED_ON[0]} to {TRAINED_ON[1]} pixels")
    lines = {
        "dice_of_best_scale": ("the best of the scales, by the truth", plots.GREEN, ":"),
        "dice": ("at the scale that predict.py finds", plots.BLUE, "-"),
        "dice_as_it_is": ("as it is, --scale 1", plots.ORANGE, "--"),
    }
    for key, (label, colour, style) in lines.items():
        axes.plot(radii, [row[key] for row in rows], style, marker=".", color=colour, label=label)
    axes.set(xscale="log", xlabel="radius of the objects, pixels", ylabel="mean Dice", ylim=(0, 1))
    plots.plain_ticks(axes.xaxis, radii)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def describe(found: dict) -> str:
    """What was found, in a sentence."""

    def dice(key, *radii):
        values = [row[key] for row in found["rows"] if row["radius"] in radii]
        return f"{min(values):.2f}" if len(radii) == 1 else f"{min(values):.2f} to {max(values):.2f}"

    radii = [row["radius"] for row in found["rows"]]
    inside = [radius for radius in radii if TRAINED_ON[0] <= radius <= TRAINED_ON[1]]
    ends = ", ".join(
        f"{dice('dice', radius)} at {radius} pixels (as it is {dice('dice_as_it_is', radius)})"
        for radius in radii
        if radius not in inside
    )
    return (
        f"Mean Dice of {found['images']} images of the recipe's kind for each radius, at the scale that `predict.py` "
        f"finds: {dice('dice', *inside)} for {TRAINED_ON[0]} to {TRAINED_ON[1]} pixels, which were trained on (as it "
        f"is {dice('dice_as_it_is', *inside)}); {ends}."
    )


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run of --recipe photographs")
    args = parser.parse_args(argv)
    backend.import_keras()
    models = prediction.load_models([args.run / "model.keras"])
    rows = []
    for radius in RADII:
        rows.append(measure(models, radius))
        print(rows[-1], flush=True)
    found = {"images": NUM, "size": SIZE, "rows": rows}
    _common.write(NAME, found)
    plot(rows, _common.ROOT / "pictures" / "object_sizes.png")
    print(describe(found))


if __name__ == "__main__":
    main()
