"""Figures of a training: curves, predictions beside the truth, errors in colour, pages to check the user's pictures."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.data.classes import NOT_LABELLED, ONE, Classes
from lab.data.sample import Sample, describe_place
from lab.evaluate import drawing
from lab.evaluate.drawing import legible, new_figure, overlay, plain_ticks, save
from lab.evaluate.scoring import hard_masks

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # for all to see (Okabe and Ito 2008)
ERRORS = {"true negative": "black", "true positive": "0.8", "false positive": ORANGE, "false negative": BLUE}
LARGEST = 256  # pixels: the longest side of a picture that is drawn whole


def plot_curves(history: dict, path: Path, classes: Classes = ONE) -> None:
    """Draw loss, Dice and IoU by epoch, of training and validation; thin lines are the validation of several classes.

    The history has them as `val_image_dice/NAME`; `classes` give their order and their colours.
    """
    from matplotlib.ticker import MaxNLocator

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
                (line,) = axes.plot(history["epoch"], values, style, color=color, marker=".")
                handles[f"{label}, {kind}"] = line
        of_classes = _plot_classes(axes, history, f"val_{names[-1]}/", classes)
        keys = [f"val_{name}" for name in names] + [f"val_{names[-1]}/{name}" for name in of_classes]
        _scale(axes, title, shown, [history[key][-1] for key in keys])
        axes.set(title=title, xlabel="epoch", ylabel=f"{title} ({axes.get_yscale()} scale)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    columns = 4
    if len(of_classes) <= 8:
        handles |= {f"{legible(name, 18)}, validation": line for name, line in of_classes.items()}
    else:
        handles[f"each of {len(of_classes)} classes, validation"], columns = next(iter(of_classes.values())), 5
    figure.set_figheight(3.8 + 0.2 * math.ceil(len(handles) / columns))
    place = {"loc": "outside lower center", "ncols": columns}
    figure.legend(handles.values(), handles.keys(), **place, frameon=False, fontsize=9)
    save(figure, path, dpi=150)


def _plot_classes(axes, history: dict, start: str, classes: Classes) -> dict:
    """Draw the curves of several classes, whose keys begin with `start`; return the lines by name."""
    lines = {}
    for name, colour in zip(classes.names, np.divide(classes.colours, 255), strict=True):
        if start + name in history:
            shown = np.clip(np.asarray(history[start + name], float), 0.011, 0.9995)  # 0 is seen above the frame
            (lines[name],) = axes.plot(history["epoch"], shown, color=colour, linewidth=0.8, zorder=1)
    return lines


def _scale(axes, title: str, shown: list[float], last: list[float]) -> None:
    """Choose the vertical scale for the `shown` values; for scores by the `last` values of the validation."""
    from matplotlib.ticker import LogLocator

    if title == "Loss":
        if shown and min(shown) > 0 and max(shown) > 10 * min(shown):  # else a log scale has hardly a tick
            axes.set_yscale("log")
            few = max(shown) > 1000 * min(shown)  # else the numbers would lie on each other
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if few else (1, 2, 5)))
            plain_ticks(axes.yaxis)
    else:  # so that 0.99 and 0.995 are apart
        axes.set_yscale("logit")
        finite = [value for value in last if math.isfinite(value)]
        axes.set_ylim(max(0.01, min(0.5, *finite)) if finite else 0.01, 0.9995)
        plain_ticks(axes.yaxis, [0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998])
    if not shown:
        axes.text(0.5, 0.5, "not a number", transform=axes.transAxes, ha="center")


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix: the share of each true class (a line) that was predicted as each class (a column).

    `counts` are numbers of pixels (K + 1, K + 1), `names` those of background and classes. Up to 10 classes, shares and
    counts are written; up to 20, only shares; beyond that there are only colours. Nothing is written for 0.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    num, totals = len(counts), counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
    side = num * (0.72 if num <= 11 else 0.46 if num <= 21 else 0.28)
    figure = new_figure(side + 3, side + 2)
    axes = figure.subplots()
    axes.set_facecolor("0.85")  # seen through NaN
    shade = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # so that 1% is no white
    for line, column in np.argwhere(counts > 0) if num <= 21 else ():
        share, places = shares[line, column], 1 if num <= 11 else 0
        least = 0.1 ** (places + 2)
        sign = "<" if share < least else ">" if 1 - least < share < 1 else ""
        text = f"{sign}{min(max(share, least), 1 - least if sign else 1):.{places}%}"
        text += f"\n{counts[line, column]:,}" if num <= 11 else ""
        axes.text(column, line, text, ha="center", va="center", fontsize=6.5, color="w" if share > 0.35 else "k")
    labels = [legible(name, 26) for name in names]
    axes.set_xticks(range(num), labels, rotation=90 if num > 5 or max(map(len, labels)) > 10 else 0, fontsize=8)
    axes.set_yticks(range(num), labels, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    if np.isnan(shares).any():
        axes.set_title("grey line: no pixel is of that class", fontsize=8)
    bar = figure.colorbar(shade, shrink=min(0.9, 4 / side), label="share of the true class", format=PercentFormatter(1))
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    save(figure, path)


def choose_examples(dice) -> list[tuple[str, int]]:
    """Which results to show: two typical ones (at 65% and 35% of the ranking by Dice) and the two worst."""
    order = np.argsort(dice, kind="stable")  # from the worst to the best
    middle = [int(order[round(q * (len(order) - 1))]) for q in (0.65, 0.35)]
    return [("typical", i) for i in dict.fromkeys(middle)] + [("worst", int(i)) for i in order[:2]]


def around(mask) -> tuple[slice, ...]:
    """The square window around the true pixels of `mask` (H, W), and 4 more; the whole image if there are none."""
    pixels = np.argwhere(mask)
    if not len(pixels):
        return slice(None), slice(None)
    low, high = pixels.min(axis=0), pixels.max(axis=0) + 1
    side = min((high - low).max() + 8, min(mask.shape))
    start = np.clip((low + high - side) // 2, 0, np.array(mask.shape) - side)
    return tuple(slice(first, first + side) for first in start)


def show_errors(axes, true, hard) -> None:
    """Draw which pixels of two boolean masks (H, W) agree, and how the others differ, in the colours of ERRORS."""
    from matplotlib.colors import ListedColormap

    classes = np.select([true & hard, hard, true], [1, 2, 3], 0)
    axes.imshow(classes, cmap=ListedColormap(list(ERRORS.values())), vmin=0, vmax=3, interpolation="nearest")


def window(title: str, image, mask, probs) -> tuple:
    """A row of `plot_predictions`; of a large picture only a part around its objects, with its place in the title."""
    sides, several = mask.shape[:2], mask.shape[-1] > 1
    if max(sides) <= LARGEST:
        return title, image, mask, probs
    objects = (np.argwhere((array[..., several:] == 1).any(axis=-1)) for array in (mask, hard_masks(probs)))
    places = next(filter(len, objects), np.array([sides]) // 2)
    middle = places[np.abs(places - np.median(places, axis=0)).sum(axis=1).argmin()]
    starts = np.clip(middle - LARGEST // 2, 0, np.maximum(0, np.subtract(sides, LARGEST))).tolist()
    part = tuple(slice(start, min(start + LARGEST, side)) for start, side in zip(starts, sides, strict=True))
    return f"{title}\n{describe_place(part)}", image[part], mask[part], probs[part]


def plot_predictions(rows: list[tuple], path: Path, classes: Classes = ONE) -> None:
    """Draw each (title, image, mask, probs) of arrays (H, W, C) as image, truth, prediction and errors.

    The errors are enlarged, around true and predicted objects. For one class the prediction is its probability; for
    several, truth and prediction are in the classes' colours. Of pictures with a side above LARGEST a window is shown.
    """
    rows, several = [window(*row) for row in rows], classes.num > 1
    shown = drawing.common_range([image for _, image, *_ in rows])
    sides = [mask.shape[:2] for _, _, mask, _ in rows]
    aspect = np.clip(max(height / width for height, width in sides), 0.85, 1) if several else 1
    figure = new_figure(8.6, 2.12 * len(rows) * aspect + 0.7)
    grid = figure.subplots(len(rows), 4, squeeze=False)
    draw = functools.partial(_draw_classes, colours=classes.colours) if several else _draw_probability
    for line, (title, image, mask, probs) in zip(grid, rows, strict=True):
        line[0].imshow(shown.prepare(image), cmap="gray", vmin=0, vmax=1)
        shade = draw(line[1:], mask, probs)
        title = "\n".join(legible(part, 30) for part in title.split("\n"))
        line[0].set_ylabel(title, parse_math=False, fontsize=8)  # names may hold $
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    first = "image" + (f", {sides[0][1]} x {sides[0][0]} px" if len(set(sides)) == 1 else "")
    columns = ("true mask", "probability", "errors at 0.5, enlarged")
    if several:
        columns = ("true classes", "predicted classes", "errors around objects")
    for axes, title in zip(grid[0], (first, *columns), strict=True):
        axes.set_title(title, fontsize=10)
    labelled = all((mask.any(axis=-1) if several else mask[..., 0] >= 0).all() for _, _, mask, _ in rows)
    more = [] if labelled else [drawing.patch("not labelled", **drawing.STRIPED)]
    if several:
        errors = [drawing.patch("errors: right", str(drawing.RIGHT / 255)), drawing.patch("errors: missed", "w")]
        drawing.class_legend(figure, classes, more=errors + more)
    else:
        figure.colorbar(shade, ax=grid[:, 2], location="bottom", shrink=0.9, pad=0.01, label="probability of object")
        handles = [*(drawing.patch(name, colour) for name, colour in ERRORS.items()), *more]
        figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    save(figure, path)


def _draw_probability(line, mask, probs):
    """For one class: the mask (H, W, 1), the probability, the errors; return the image of the probability."""
    true, labelled = mask[..., 0] == 1, mask[..., 0] >= 0
    hard = (probs[..., 0] >= 0.5) & labelled
    zoom = around(true | hard)
    line[0].imshow(mask > 0, cmap="gray", vmin=0, vmax=1)
    shade = line[1].imshow(probs, cmap="viridis", vmin=0, vmax=1)
    show_errors(line[2], true[zoom], hard[zoom])
    for axes, place in ((line[0], ...), (line[2], zoom)):
        axes.imshow(np.where(drawing.stripes(~labelled[place])[..., None], [0.5, 0.5, 0.5, 1.0], 0.0))
    return shade


def _draw_classes(line, mask, probs, colours) -> None:
    """For several classes: the mask (H, W, K + 1), the predicted classes, the errors."""
    true = np.where(mask.any(axis=-1), mask.argmax(axis=-1), NOT_LABELLED)
    found = np.nan_to_num(probs).argmax(axis=-1)
    seen = (true != NOT_LABELLED) & ((true > 0) | (found > 0))
    zoom = around(seen)
    if np.count_nonzero(seen[zoom]) < np.count_nonzero(seen):  # no square window holds all
        zoom = ...
    line[0].imshow(drawing.label_colours(true, colours), interpolation="nearest")
    line[1].imshow(drawing.label_colours(found, colours), interpolation="nearest")
    line[2].imshow(drawing.error_colours(true[zoom], found[zoom], colours), interpolation="nearest")


def plot_dataset(samples: list[Sample], path: Path, classes: Classes = ONE) -> None:
    """Draw a page to check the user's data: examples as the network sees them, with outlined classes and figures."""
    chosen = drawing.evenly(samples, 15)
    columns = min(5, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    aspect = max(sample.labels.shape[0] / sample.labels.shape[1] for sample in chosen)
    figure = new_figure(2.4 * max(3, columns), (2.2 * np.clip(aspect, 0.4, 1) + 0.5) * lines + 0.9)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    colours = classes.colours if classes.num > 1 else None
    for axes in grid:
        axes.axis("off")
    for axes, sample in zip(grid, chosen, strict=False):
        axes.imshow(overlay(sample.prepare(sample.image), sample.labels, colours=colours))
        height, width = sample.labels.shape
        title = f"{legible(sample.name[-34:])}\n{width} x {height} px, {drawing.describe_share(sample)}"
        axes.set_title(title, fontsize=8, parse_math=False)  # names may hold $
    kind = "colour" if samples[0].image.shape[-1] == 3 else "grey"
    figure.suptitle(f"{len(samples)} pictures in {kind}, {drawing.describe_sides(samples, 'px')}", fontsize=10)
    drawing.dataset_legend(figure, samples, classes)
    save(figure, path)
