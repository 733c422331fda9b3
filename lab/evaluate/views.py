"""Figures of volumes: three orthogonal slices through the object, with contours and errors.

    views.plot_volumes([("typical: head.nii.gz", sample, labels)], "predictions.png", classes)

Samples are those of `lab/data/sample.py`; their `spacing` (depth, height, width) is in millimetres, or None.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.data.classes import NOT_LABELLED, ONE, Classes
from lab.evaluate import drawing, plots

TRUE, FOUND = plots.GREEN, plots.VERMILION  # contours of one class; its errors have the colours of `plots.ERRORS`
EDGES = {"axial": "LR", "coronal": "LR", "sagittal": "PA"}  # left, right, posterior, anterior: the two sides of a view
LEAST, MOST = 300, 1200  # pixels of the sides of a montage's slices, after enlarging


def three_views(mask: np.ndarray, spacing: tuple | None = None) -> dict[str, tuple]:
    """Three orthogonal slices through the middle of the true voxels of `mask` (D, H, W), or of the volume if all are 0.

    Returns:
        For "axial", "coronal" and "sagittal" the index that gives the slice of a volume, head or front upwards, and the
        height of its pixels over their width.
    """
    centre = []
    for axis, side in enumerate(mask.shape):
        counts = np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
        centre.append(int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) if counts.any() else side // 2)
    depth, height, width = spacing or (1, 1, 1)
    whole, turned = slice(None), slice(None, None, -1)
    return {
        "axial": ((centre[0], turned, whole), height / width),
        "coronal": ((turned, centre[1], whole), depth / width),
        "sagittal": ((turned, whole, centre[2]), depth / height),
    }


def plot_volumes(
    rows: list[tuple], path: Path, classes: Classes = ONE, heading: str | None = None, samples: list | None = None
) -> None:
    """Draw each (title, sample, found) as three slices: image, contours of truth and of `found`, errors in colour.

    Each slice has its number; those of scans with an orientation, the letters of their sides (see `montage`) too.
    `found` are the predicted labels (D, H, W), uint8, or None if there is only the truth. Contours of several classes
    have their colours, and the predicted ones are dashed. The legend gives the figures of `samples`, if any.
    """
    figure = drawing.new_figure(8.6, 2.75 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for line, (title, sample, found) in zip(grid, rows, strict=True):
        seen = sample.labels[:] if found is None else np.where(sample.labels[:] == 0, found, sample.labels[:])
        slices = three_views((seen > 0) & (seen != NOT_LABELLED), sample.spacing)
        images = [sample.prepare(sample.image[index]) for index, _ in slices.values()]
        shown = drawing.common_range(images)
        for across, (axes, image, (name, (index, aspect))) in enumerate(zip(line, images, slices.items(), strict=True)):
            axes.imshow(shown.prepare(image)[..., 0], cmap="gray", vmin=0, vmax=1, aspect=aspect)
            _draw_labels(axes, sample.labels[index], None if found is None else found[index], classes, aspect)
            axes.set(xticks=[], yticks=[])
            words = describe_slice(across, index, sample.labels.shape, sample.is_oriented)
            axes.set_xlabel(f"{words}, {image.shape[1]} x {image.shape[0]} voxels", fontsize=8)
            if sample.is_oriented:
                _draw_edges(axes, EDGES[name])
        title = "\n".join(drawing.legible(part, 38) for part in title.split("\n"))
        line[0].set_ylabel(title, fontsize=9, parse_math=False)  # names may hold $
    figure.suptitle(heading, fontsize=10)
    if classes.num > 1 and samples:
        drawing.dataset_legend(figure, samples, classes)
    else:
        _legend(figure, rows, classes)
    drawing.save(figure, path)


def describe_slice(across: int, index: tuple, sides: Sequence[int], oriented: bool) -> str:
    """ "axial 12 of 60": which slice of a volume `index` takes across an axis, counted from 1 on; "depth" for "axial"
    where the volume has no orientation.
    """
    name = list(EDGES)[across] if oriented else ("depth", "height", "width")[across]
    return f"{name} {index[across] + 1} of {sides[across]}"


def plot_dataset(samples: list, path: Path, classes: Classes = ONE) -> None:
    """Draw a page to check the user's scans: examples with the true contours, and the figures of all scans."""
    chosen = drawing.evenly(samples, 4)
    rows = [(f"{sample.name}\n{drawing.describe_share(sample)}", sample, None) for sample in chosen]
    steps = np.array([sample.spacing for sample in samples if sample.spacing])
    ends = [np.unique([f"{step:.3g}" for step in (axis.min(), axis.max())]) for axis in steps.T[::-1]]
    spacing = " x ".join(map(" to ".join, ends)) + " mm" if len(steps) else "not known"
    sides = drawing.describe_sides(samples, "voxels")
    plot_volumes(rows, path, classes, f"{len(samples)} scans, {sides}\nspacing {spacing}", samples)


def _draw_edges(axes, letters: str) -> None:
    """Write the letters of a slice's left and right side onto its edges."""
    from matplotlib.patheffects import withStroke

    for letter, x, place in zip(letters, (0.02, 0.98), ("left", "right"), strict=True):
        text = axes.text(x, 0.5, letter, transform=axes.transAxes, ha=place, va="center", color="w", fontsize=9)
        text.set_path_effects([withStroke(linewidth=2, foreground="k")])


def _draw_labels(axes, true, found, classes, aspect) -> None:
    """Draw errors and contours of the labels (H, W) on a slice; `found` may be None."""
    from matplotlib.colors import to_rgba

    several = classes.num > 1
    colours = drawing.on_black(classes.colours) / 255
    tints = ["w", *colours] if several else [plots.ERRORS["false negative"], plots.ERRORS["false positive"]]
    drawn = np.zeros((*true.shape, 4))
    drawn[drawing.stripes(true == NOT_LABELLED)] = to_rgba("0.5", 0.8)
    if found is not None:
        for label, tint in enumerate(tints):
            drawn[(found == label) & (true != label) & (true != NOT_LABELLED)] = to_rgba(tint, 0.6)
    axes.imshow(drawn, aspect=aspect, interpolation="nearest")
    for label, colour in enumerate(colours, 1):
        for labels, line_color, style in ((found, FOUND, "dashed" if several else "solid"), (true, TRUE, "solid")):
            mask = np.zeros(1) if labels is None else labels == label
            if mask.any() and not mask.all():
                axes.contour(mask, [0.5], colors=[colour] if several else line_color, linewidths=0.8, linestyles=style)


def _legend(figure, rows, classes):
    from matplotlib.lines import Line2D

    several = classes.num > 1
    handles = [Line2D([], [], color="0.5" if several else TRUE, label="true contour")]
    if any(found is not None for *_, found in rows):
        style: dict = {"color": "0.5", "linestyle": "dashed"} if several else {"color": FOUND}
        handles.append(Line2D([], [], **style, label="predicted contour"))
        errors = {"errors: missed": "w"} if several else {name: plots.ERRORS[name] for name in list(plots.ERRORS)[2:]}
        handles += [drawing.patch(name, colour, alpha=0.6) for name, colour in errors.items()]
    if any(sample.counts[NOT_LABELLED] for _, sample, _ in rows):
        handles.append(drawing.patch("not labelled", **drawing.STRIPED))
    drawing.class_legend(figure, classes, more=handles)


def montage(
    image: np.ndarray, labels: np.ndarray, spacing: tuple | None, prepare, colours=None, oriented: bool = False
) -> np.ndarray:
    """The three slices of a volume (D, H, W, C) side by side, its labels or its mask drawn on them: (H, W, 3), uint8.

    Slices are enlarged by repetition: pixels become as high as wide, and slices are large enough to read. Each has its
    number, from 1 on; if the volume is `oriented`, as a NIfTI file is, also the name of its plane, and letters for left
    (L), right (R), back (P) and front (A).
    """
    steps = np.divide(spacing, min(spacing)) if spacing else np.ones(3)
    _, least, most = np.sort(np.multiply(labels.shape, steps))  # the longer sides of the three slices
    factor = max(1, min(math.ceil(LEAST / least), MOST // most))
    repeats = (steps * factor).round().astype(int)
    places = [index for index, _ in three_views(labels > 0, spacing).values()]
    slices = [prepare(image[index]) for index in places]
    shown, panels = drawing.common_range(slices), []
    for across, (part, index, edges) in enumerate(zip(slices, places, EDGES.values(), strict=True)):
        seen = labels[index]
        for axis, times in enumerate(np.delete(repeats, across)):
            part, seen = np.repeat(part, times, axis), np.repeat(seen, times, axis)
        words = describe_slice(across, index, labels.shape, oriented)
        panels.append(_captioned(drawing.overlay(part, seen, shown, colours), words, edges if oriented else ""))
    height = max(len(panel) for panel in panels)
    return np.concatenate([np.pad(p, ((height - len(p), 0), (0, 4), (0, 0))) for p in panels], axis=1)


def _captioned(panel: np.ndarray, words: str, edges: str) -> np.ndarray:
    """A picture (H, W, 3) with a line of words above it, and a letter at its left and right edge."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    width = max(panel.shape[1], int(font.getlength(words)) + 8)
    drawn = Image.fromarray(np.pad(panel, ((20, 0), (0, width - panel.shape[1]), (0, 0))))
    pen = ImageDraw.Draw(drawn)
    pen.text((4, 2), words, "white", font)
    for letter, x, anchor in zip(edges, (4, panel.shape[1] - 5), ("lm", "rm"), strict=False):
        pen.text((x, 20 + len(panel) // 2), letter, "white", font, anchor, stroke_width=2, stroke_fill="black")
    return np.asarray(drawn)
