"""Volumes to look at: three orthogonal slices through the object, with contours and errors.

    views.plot_volumes([("typical: head.nii.gz", sample, probs >= 0.5)], "predictions.png")

Samples are those of `lab/data/sample.py`; their `spacing` (depth, height, width) is in millimetres, or None.
"""

import warnings
from pathlib import Path

import numpy as np

from lab.data import grey_values, pictures
from lab.data.classes import ONE, Classes
from lab.evaluate import plots

TRUE, FOUND = plots.GREEN, plots.VERMILION  # contours; errors have the colours of `plots.ERRORS`


def three_views(mask: np.ndarray, spacing: tuple | None = None) -> dict[str, tuple]:
    """Three orthogonal slices through the middle of what `mask` (D, H, W) marks, or of the volume if it marks nothing.

    Returns:
        For "axial", "coronal" and "sagittal" what a volume is indexed with to give the slice, head or front upwards,
        and the height of its pixels over their width.
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


def plot_volumes(rows: list[tuple], path: Path, classes: Classes = ONE) -> None:
    """Draw each (title, sample, found) as three slices: image, contours of truth and of `found`, errors in colour.

    `found` is the predicted mask (D, H, W), bool, or None where there is nothing but a truth.
    """
    figure = plots.new_figure(8.6, 2.75 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for line, (title, sample, found) in zip(grid, rows, strict=True):
        seen = sample.labels == 1 if found is None else (sample.labels == 1) | (found == 1)
        slices = three_views(seen, sample.spacing)
        images = [sample.prepare(sample.image[index]) for index, _ in slices.values()]
        shown = _shown_range(images)
        for axes, image, (name, (index, aspect)) in zip(line, images, slices.items(), strict=True):
            true = sample.labels[index] == 1
            axes.imshow(shown.prepare(image)[..., 0], cmap="gray", vmin=0, vmax=1, aspect=aspect)
            if found is not None:
                axes.imshow(_errors(true, found[index] == 1), aspect=aspect, interpolation="nearest")
                _contour(axes, found[index] == 1, FOUND)
            _contour(axes, true, TRUE)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"{name}, {image.shape[1]} x {image.shape[0]} voxels", fontsize=8)
        title = "\n".join(map(pictures.readable, title.split("\n")))
        line[0].set_ylabel(title, fontsize=9, parse_math=False)  # names may hold $
    _legend(figure, any(found is not None for *_, found in rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font does not have
        figure.savefig(path, dpi=130)


def plot_dataset(samples: list, path: Path, most: int = 4, classes: Classes = ONE) -> None:
    """A page to check one's own scans on: the first ones, with the true contours."""
    shown = [(f"{sample.name}\n{sample.share:.2%} foreground", sample, None) for sample in samples[:most]]
    plot_volumes(shown, path, classes)


def _shown_range(images):
    """From black to white for the slices of a volume, which are drawn alike."""
    return grey_values.shown_range(np.concatenate([image.ravel() for image in images]))


def _errors(true, found):
    """False positives and negatives of two masks (H, W) as translucent colours (H, W, 4)."""
    from matplotlib.colors import to_rgba

    colours = np.zeros((*true.shape, 4))
    colours[found & ~true] = to_rgba(plots.ERRORS["false positive"], 0.6)
    colours[true & ~found] = to_rgba(plots.ERRORS["false negative"], 0.6)
    return colours


def _contour(axes, mask, colour):
    if mask.any() and not mask.all():
        axes.contour(np.pad(mask, 1).astype(float)[1:-1, 1:-1], [0.5], colors=colour, linewidths=0.8)


def _legend(figure, predicted):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list = [Line2D([], [], color=TRUE, label="true contour")]
    if predicted:
        handles.append(Line2D([], [], color=FOUND, label="predicted contour"))
        for name in ("false positive", "false negative"):
            handles.append(Patch(facecolor=plots.ERRORS[name], alpha=0.6, label=name))
    figure.legend(handles=handles, loc="outside lower right", ncols=4, fontsize=8, frameon=False)


def montage(image: np.ndarray, mask: np.ndarray, spacing: tuple | None, overlay, prepare) -> np.ndarray:
    """The three slices side by side, (H, W, 3), uint8: `overlay` draws a mask (H, W) on a prepared image (H, W, C), in
    the range of grey values that it is given.

    Slices are enlarged to pixels that are as high as wide, by repetition, and stand on one line.
    """
    finest = min(spacing) if spacing else 1
    steps = tuple(max(1, round(step / finest)) for step in spacing) if spacing else (1, 1, 1)
    places, panels = [index for index, _ in three_views(mask, spacing).values()], []
    slices = [prepare(image[index]) for index in places]
    shown = _shown_range(slices)
    for part, index, axes in zip(slices, places, ((1, 2), (0, 2), (0, 1)), strict=True):
        panel = overlay(part, mask[index], shown)
        for axis, along in enumerate(axes):
            panel = np.repeat(panel, steps[along], axis=axis)
        panels.append(panel)
    height = max(len(panel) for panel in panels)
    return np.concatenate([np.pad(p, ((height - len(p), 0), (0, 4), (0, 0))) for p in panels], axis=1)
