"""Dice against noise: the best global threshold, the network, and the best that knows the answer's shape.

    python -m benchmarks.noise                          # 4 trainings of some minutes
    python -m benchmarks.noise --noise 0.25 --seeds 1   # or some of them, added to what is recorded
    python -m benchmarks.noise --plot                   # only the figure and the table, from what is recorded

One default training per noise level and seed. All three are scored on the training's own test set, 512 images; the
curve goes to pictures/noise.png.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks import _common, scores
from lab.evaluate.ball_fit import draw_balls, fit_balls
from lab.evaluate.plots import BLUE, GREEN, ORANGE, new_figure, plain_ticks

LEVELS = (0.1, 0.25, 0.5, 1.0)
LINES = {  # name: (label, colour, marker)
    "fit": ("circle fit, which knows the shape", GREEN, "s"),
    "network": ("U-Net", BLUE, "o"),
    "threshold": ("best global threshold", ORANGE, "^"),
}


def key(row: dict) -> tuple:
    """Which rows are the same measurement, and their order."""
    return row["noise"], row["seed"]


def run(noise: float, seed: int) -> dict:
    """Train with one noise level and seed; score threshold, network and circle fit on its test set."""
    import unet_segmentation as unet
    from lab.evaluate import scoring

    flags = ["--noise", str(noise), "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        found = scores.train(flags, Path(folder))
    args = unet.parse_args(flags)
    images, masks = unet.make_circles(args, args.test_images, unet.TEST)
    fit = scoring.score(masks, draw_balls(fit_balls(images, noise), images.shape[1:3]))[0]
    kept = ("image_dice", "image_dice_p5", "image_dice_min", "image_iou")
    sides = {"threshold": found["baselines"]["best global threshold"], "network": found["test"], "fit": fit}
    return {
        "noise": noise,
        "seed": seed,
        **{name: {key: values[key] for key in kept} for name, values in sides.items()},
        "training_seconds": found["training_seconds"],
        "failure": found["failure"],
        "provenance": found["provenance"],
    }


def means(rows: list[dict], name: str) -> dict[float, float]:
    """Mean Dice over the seeds, by noise level."""
    levels = sorted({row["noise"] for row in rows})
    return {n: statistics.mean(row[name]["image_dice"] for row in rows if row["noise"] == n) for n in levels}


def plot(rows: list[dict], path: Path) -> None:
    """Three lines of mean Dice against noise."""
    figure = new_figure(6.4, 4)
    axes = figure.subplots()
    for name, (label, color, marker) in LINES.items():
        points = means(rows, name)
        axes.plot(points.keys(), points.values(), color=color, marker=marker, label=label)
    axes.set(xscale="log", yscale="logit", ylim=(0.1, 0.99998))
    axes.set(xlabel="noise, standard deviation in grey values (log scale); contrast 0.5")
    axes.set(ylabel="Dice, mean over 512 test images (logit scale)")
    plain_ticks(axes.xaxis, sorted({row["noise"] for row in rows}))
    plain_ticks(axes.yaxis, [0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999])
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside upper center", ncols=3, fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)


def scores_table(rows: list[dict]) -> str:
    """Mean Dice of threshold, network and circle fit by noise, and the worst image of a seed, in Markdown."""
    lines = []
    for noise in sorted({row["noise"] for row in rows}):
        runs = [row for row in rows if row["noise"] == noise]
        cells = [f"{means(rows, name)[noise]:.5f}" for name in ("threshold", "network", "fit")]
        worst = [f"{statistics.mean(row[name]['image_dice_min'] for row in runs):.3f}" for name in ("network", "fit")]
        lines.append([noise, len(runs), *cells, *worst])
    titles = ["noise", "seeds", "best threshold", "U-Net", "circle fit", "worst, U-Net", "worst, fit"]
    return _common.table(titles, lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--noise", type=float, nargs="+", default=LEVELS, help="standard deviations in grey values")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each")
    parser.add_argument("--plot", action="store_true", help="train nothing")
    args = parser.parse_args(argv)
    for seed in args.seeds:
        for noise in [] if args.plot else args.noise:
            _common.record("noise", run(noise, seed), key)
    rows = _common.rows("noise")
    print(scores_table(rows))
    plot(rows, _common.ROOT / "pictures" / "noise.png")


if __name__ == "__main__":
    main()
