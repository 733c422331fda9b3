"""Parts of all figures: empty figures, names in any script, labels in the classes' colours, legends.

    from lab.evaluate import drawing
    drawing.overlay(image, labels, colours=classes.colours)     # uint8 (H, W, 3)

Labels are those of `lab/data/sample.py`: 0 background, 1 to K the classes, 255 not labelled.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.data import grey_values
from lab.data.classes import NOT_LABELLED, Classes
from lab.data.pictures import readable
from lab.data.sample import Sample

DARKEST, STRIPE, RIGHT = 80, 128, 50  # grey values: the least on black, of the stripes, of correct pixels
STRIPED: dict = {"colour": "black", "hatch": "//////"}  # the sign for `stripes` in a legend


# Figures


def new_figure(width: float, height: float):
    """An empty Matplotlib figure of width x height inches, which needs no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path: Path, dpi: int = 130) -> None:
    """Write a figure, in letters of every script that a font of the system has."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    families, _ = fonts_with("".join(sorted(set("".join(text.get_text() for text in texts)))))
    if len(families) > 1:
        for text in texts:
            text.set_family(families)
    figure.savefig(path, dpi=dpi)


@functools.lru_cache(maxsize=1024)
def fonts_with(letters: str) -> tuple[list[str], set[str]]:
    """Matplotlib's own font, with fonts of the system for letters that it lacks; the letters that no font has."""
    from matplotlib import font_manager

    families, missing = [], {ord(letter) for letter in letters} - {ord("\n")}
    known = font_manager.fontManager.ttflist  # a font of last resort has a box for each letter
    known = [font for font in known if "last" not in font.name.lower() and "mono" not in font.name.lower()]
    for font in sorted(known, key=lambda font: (font.name != "DejaVu Sans", font.weight != 400, font.style)):
        covered = missing & font_manager.get_font(font.fname).get_charmap().keys() if missing else ()
        families += [font.name] if covered and font.name not in families else []
        missing = missing.difference(covered)
    return families, {chr(letter) for letter in missing}


def legible(name: str, most: int = 34) -> str:
    """A name for a figure: "?" for letters that no font has; a long name loses its middle."""
    name = readable(name)
    unknown = fonts_with("".join(sorted(set(name))))[1]
    name = "".join("?" if letter in unknown else letter for letter in name)
    return name if len(name) <= most else name[: (most - 1) // 2] + "\u2026" + name[-(most // 2) :]


def plain_ticks(axis, ticks=None) -> None:
    """Show an axis's numbers as 0.995 and not as 9.95e-1; only at `ticks`, if given."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


# Pictures of labels


def common_range(images: Sequence[np.ndarray]) -> grey_values.GreyRange:
    """The range from black to white for prepared images, of any shapes, that are shown together."""
    return grey_values.shown_range(np.concatenate([image.ravel() for image in images]))


def on_black(colours) -> np.ndarray:
    """Colours (n, 3) of 0 to 255; dark ones are mixed with white, until they are visible on black."""
    colours = np.asarray(colours, np.float32)
    luma = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    share = np.maximum(0, (DARKEST - luma) / (255 - np.minimum(luma, 254)))
    return colours + share[:, None] * (255 - colours)


def stripes(where: np.ndarray) -> np.ndarray:
    """Oblique stripes over the true pixels of `where` (H, W): a mask that is true on every third of them."""
    lines, columns = np.ogrid[: where.shape[0], : where.shape[1]]
    width = max(2, min(where.shape) // 48)
    return where & ((lines + columns) // width % 3 == 0)


def label_colours(labels: np.ndarray, colours) -> np.ndarray:
    """Labels (H, W) in the classes' colours, on black: (H, W, 3), uint8; grey stripes where nothing is labelled."""
    table = np.zeros((256, 3), np.uint8)
    table[1 : len(colours) + 1] = on_black(colours)
    shown = table[labels]
    shown[stripes(labels == NOT_LABELLED)] = STRIPE
    return shown


def error_colours(true: np.ndarray, found: np.ndarray, colours) -> np.ndarray:
    """Wrong labels (H, W) in the colour of the predicted class, white if that is background: (H, W, 3), uint8.

    Right labels are grey, or black for the background; pixels that are not labelled are neither right nor wrong.
    """
    shown = label_colours(np.where(true == NOT_LABELLED, true, found), colours)
    shown[(found == 0) & (true != NOT_LABELLED)] = 255
    shown[true == found] = RIGHT
    shown[(true == found) & (true == 0)] = 0
    return shown


def overlay(
    image: np.ndarray, labels: np.ndarray, shown: grey_values.GreyRange | None = None, colours: Sequence | None = None
) -> np.ndarray:
    """The prepared image (H, W, C) with each class tinted and outlined in its colour: (H, W, 3), uint8.

    `labels` (H, W) may be a mask; stripes are drawn where nothing is labelled. `colours` are the classes' red, green
    and blue of 0 to 255; by default there is one class, orange on grey and green on colours.
    """
    from scipy.ndimage import binary_erosion

    image = (shown or grey_values.shown_range(image)).prepare(image)
    grey = image.shape[-1] == 1
    drawn = np.repeat(image * 255, 3, axis=2) if grey else image * np.float32(255)
    for label, line in enumerate(on_black(colours or [[230, 159, 0] if grey else [50, 255, 50]]), 1):
        mask = labels == label
        drawn[mask] += 0.25 * (line - drawn[mask])
        drawn[mask & ~binary_erosion(mask, np.ones((3, 3)), border_value=1)] = line
    drawn[stripes(labels == NOT_LABELLED)] = STRIPE
    return drawn.astype(np.uint8)


# Legends and titles


def patch(label: str, colour, **options):
    """A rectangle of a colour, for a legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor="0.5", label=label, **options)


def class_legend(figure, classes: Classes, labels: Sequence[str] | None = None, more: Sequence = ()) -> None:
    """Add a legend below a figure: the colours of several classes with names or `labels`, and `more` handles."""
    pairs = zip(labels or map(legible, classes.names), on_black(classes.colours) / 255, strict=True)
    handles = [*(patch(*pair) for pair in pairs if classes.num > 1), *more]
    widest = max(len(handle.get_label()) for handle in handles)
    lines = math.ceil(len(handles) / max(1, int(figure.get_figwidth() / (0.5 + 0.07 * widest))))
    columns = math.ceil(len(handles) / lines)
    figure.set_figheight(figure.get_figheight() + 0.17 * lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def evenly(samples: list[Sample], most: int) -> list[Sample]:
    """At most `most` of the samples, evenly spread in the order of their names."""
    samples = sorted(samples, key=lambda sample: sample.name)
    return [samples[round(i)] for i in np.linspace(0, len(samples) - 1, min(most, len(samples)))]


def describe_share(sample: Sample) -> str:
    """ "2.5% foreground", or that the mask is empty."""
    return f"{sample.share:.{1 if sample.share >= 0.01 else 2}%} foreground" if sample.share else "EMPTY MASK"


def describe_sides(samples: list[Sample], unit: str) -> str:
    """Two lines above a page of samples: their sides, to end the first line, and the shares of their masks."""
    shares = np.array([sample.share for sample in samples])
    sides = zip(*(sample.labels.shape[::-1] for sample in samples), strict=True)
    names = ("width", "height", "depth")
    ends = [f"{name} {min(side)} to {max(side)} {unit}" for name, side in zip(names, sides, strict=False)]
    return (
        f"{', '.join(ends)}\nforeground {shares.min():.1%} to {shares.max():.1%}, "
        f"empty masks: {np.count_nonzero(shares == 0)}, full masks: {np.count_nonzero(shares == 1)}"
    )


def dataset_legend(figure, samples: list[Sample], classes: Classes) -> None:
    """Add a legend: each class with its value, its share of the pixels and the number of samples that hold it.

    It has the share of pixels that are not labelled too. There is no legend for one class if all pixels are labelled.
    """
    counts = np.array([sample.counts for sample in samples])
    shares, labels = counts.sum(axis=0) / counts.sum(), []
    for k, (name, value) in enumerate(zip(classes.names, classes.values[1:], strict=True), 1):
        num = np.count_nonzero(counts[:, k])
        labels.append(f"{legible(name)} ({classes.shown(value)}): {shares[k]:.2%}, in {num}")
    share = shares[NOT_LABELLED]
    more = [patch(f"not labelled: {share:.2%}", **STRIPED)] if share else []
    if classes.num > 1 or more:
        class_legend(figure, classes, labels, more)
