"""Figures of a training: curves, predictions beside the truth, errors in colour, the pages to check own pictures on."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.data import grey_values
from lab.data.classes import ONE, Classes
from lab.data.pictures import readable
from lab.data.sample import Sample

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # told apart by all (Okabe and Ito 2008)
ERRORS = {"true negative": "black", "true positive": "0.8", "false positive": ORANGE, "false negative": BLUE}


def new_figure(width: float, height: float):
    """An empty Matplotlib figure of so many inches, which needs no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_ticks(axis, ticks=None) -> None:
    """Show an axis's numbers as they are, 0.995 and not 9.95e-1; at `ticks` alone, if given."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def plot_curves(history: dict, path: Path) -> None:
    """Loss, Dice and IoU by epoch, training and validation."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    epochs = history["epoch"]
    figure = new_figure(11, 4)
    panels = {"Loss": ["loss"], "Dice": ["dice_coeff", "image_dice"], "IoU": ["iou_metric", "image_iou"]}
    handles = {}
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        shown = []
        for name, style in zip(names, ("-", ":"), strict=False):
            kind = "hard, per image" if name.startswith("image_") else "soft, pooled"
            for prefix, label, color in (("", "training", ORANGE), ("val_", "validation", BLUE)):
                values = np.asarray(history[prefix + name], float)
                shown += values[np.isfinite(values)].tolist()
                if title != "Loss":
                    values = np.clip(values, 0.01, 0.9995)  # the ends of a logit scale lie at infinity
                (line,) = axes.plot(epochs, values, style, color=color, marker=".")
                handles[f"{label}, {kind}"] = line
        if title == "Loss":
            if shown and min(shown) > 0 and max(shown) > 10 * min(shown):  # else a log scale has hardly a tick
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                plain_ticks(axes.yaxis)
        else:  # so that 0.99 and 0.995 are apart
            axes.set_yscale("logit")
            last = [v for n in names for v in history["val_" + n][-1:] if math.isfinite(v)]
            axes.set_ylim(max(0.01, min(0.5, *last)) if last else 0.01, 0.9995)
            plain_ticks(axes.yaxis, [0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998])
        if not shown:
            axes.text(0.5, 0.5, "not a number", transform=axes.transAxes, ha="center")
        axes.set(title=title, xlabel="epoch", ylabel=f"{title} ({axes.get_yscale()} scale)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def plot_confusion(found: np.ndarray, names: Sequence[str], path: Path) -> None:
    """The confusion matrix: the share of each true class (a line) that was taken for each class (a column)."""
    path.write_bytes(b"")


def choose_examples(dice) -> list[tuple[str, int]]:
    """Which results to show: two typical ones (at 65% and 35% of the ranking by Dice) and the two worst."""
    order = np.argsort(dice, kind="stable")  # from the worst to the best
    middle = [int(order[round(q * (len(order) - 1))]) for q in (0.65, 0.35)]
    return [("typical", i) for i in dict.fromkeys(middle)] + [("worst", int(i)) for i in order[:2]]


def around(mask, margin: int = 4) -> tuple[slice, ...]:
    """The square window around the true pixels of `mask` (H, W), with a margin; the whole image if there are none."""
    found = np.argwhere(mask)
    if not len(found):
        return slice(None), slice(None)
    low, high = found.min(axis=0), found.max(axis=0) + 1
    side = min((high - low).max() + 2 * margin, min(mask.shape))
    start = np.clip((low + high - side) // 2, 0, np.array(mask.shape) - side)
    return tuple(slice(first, first + side) for first in start)


def show_errors(axes, true, hard) -> None:
    """Draw which pixels of two boolean masks (H, W) agree, and how the others differ, in the colours of ERRORS."""
    from matplotlib.colors import ListedColormap

    classes = np.select([true & hard, hard, true], [1, 2, 3], 0)
    axes.imshow(classes, cmap=ListedColormap(list(ERRORS.values())), vmin=0, vmax=3, interpolation="nearest")


def error_legend(figure) -> None:
    """The colours of `show_errors`, below a figure."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=color, edgecolor="0.5", label=name) for name, color in ERRORS.items()]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8, frameon=False)


def plot_predictions(images, masks, probs, dice, path: Path, classes: Classes = ONE) -> None:
    """Rows of image, truth, probability and errors: two typical images (N, H, W, C) and the two worst, with their Dice.

    The errors are shown enlarged, around the object and whatever was taken for one.
    """
    examples = choose_examples(dice)
    shown = grey_values.shown_range(images[[i for _, i in examples]])
    figure = new_figure(8.6, 2.12 * len(examples) + 0.7)
    grid = figure.subplots(len(examples), 4, squeeze=False)
    for line, (kind, i) in zip(grid, examples, strict=True):
        true, hard = masks[i, ..., 0] == 1, probs[i, ..., 0] >= 0.5
        line[0].imshow(shown.prepare(images[i]), cmap="gray", vmin=0, vmax=1)
        line[1].imshow(masks[i] > 0, cmap="gray", vmin=0, vmax=1)
        shade = line[2].imshow(probs[i], cmap="viridis", vmin=0, vmax=1)
        zoom = around(true | hard)
        show_errors(line[3], true[zoom], hard[zoom])
        line[0].set_ylabel(f"{kind}: image {i}\nDice {dice[i]:.4f}")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    height, width = images.shape[1:3]
    titles = (f"image, {width} x {height} px", "true mask", "probability", "errors at 0.5, enlarged")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    figure.colorbar(shade, ax=grid[:, 2], location="bottom", shrink=0.9, pad=0.01, label="probability of object")
    error_legend(figure)
    figure.savefig(path, dpi=130)


def plot_dataset(samples: list[Sample], path: Path, most: int = 15, classes: Classes = ONE) -> None:
    """A page to check one's own data on: examples as the network sees them, the mask outlined, with the figures."""
    from matplotlib.figure import Figure

    samples = sorted(samples, key=lambda sample: sample.name)
    shares = np.array([sample.share for sample in samples])
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int))
    columns = min(5, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(2.4 * max(3, columns), 2.7 * lines + 0.9), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, chosen, strict=False):
        sample = samples[i]
        axes.imshow(overlay(sample.prepare(sample.image), sample.labels == 1))
        what = f"{shares[i]:.1%} foreground" if shares[i] else "EMPTY MASK"
        height, width = sample.labels.shape
        title = f"{readable(sample.name)[-34:]}\n{width} x {height} px, {what}"
        axes.set_title(title, fontsize=8, parse_math=False)  # names may hold $
    sides = np.array([sample.labels.shape for sample in samples])
    colours = "colour" if samples[0].image.shape[-1] == 3 else "grey"
    figure.suptitle(
        f"{len(samples)} pictures in {colours}, width {sides[:, 1].min()} to {sides[:, 1].max()} px, "
        f"height {sides[:, 0].min()} to {sides[:, 0].max()} px\nforeground {shares.min():.1%} to {shares.max():.1%}, "
        f"empty masks: {np.count_nonzero(shares == 0)}, full masks: {np.count_nonzero(shares == 1)}",
        fontsize=10,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font does not have
        figure.savefig(path, dpi=130)


def overlay(
    image: np.ndarray, labels: np.ndarray, shown: grey_values.GreyRange | None = None, colours: Sequence | None = None
) -> np.ndarray:
    """The prepared image (H, W, C) with the mask tinted and outlined: (H, W, 3), uint8. Orange on grey, else green."""
    from scipy.ndimage import binary_erosion

    image = (shown or grey_values.shown_range(image)).prepare(image)
    grey = image.shape[-1] == 1
    colors = np.repeat(image * 255, 3, axis=2) if grey else image * np.float32(255)
    for label, line in enumerate(colours or [(230, 159, 0) if grey else (50, 255, 50)], 1):
        mask, line = labels == label, np.array(line, np.float32)
        colors[mask] += 0.25 * (line - colors[mask])
        colors[mask & ~binary_erosion(mask, np.ones((3, 3)), border_value=1)] = line
    return colors.astype(np.uint8)
