"""A row for each object that was found: where it lies, how large, how bright and how sure it is; and its number drawn.

    rows = objects.find(labels, chosen, picture, ("cell", "wall"))
    numbered = objects.draw_numbers(overlay, rows)

Objects of one class that touch, also at corners, are one. Pixels stand for voxels too. x runs along the width, y along
the height, z along the depth, from 0 on, which is the centre of the first pixel; a scan's axes are those of its overlay
(see `lab/data/scans.py`): x to the right, y to the front, z to the head, as its millimetres do.
"""

from collections.abc import Sequence

import numpy as np

from lab.model import prediction

COLUMNS = (
    *("picture", "class", "number", "size_pixels", "area_mm2", "volume_mm3"),
    *("x_pixels", "y_pixels", "z_pixels", "x_mm", "y_mm", "z_mm"),
    *("x_min_pixels", "x_max_pixels", "y_min_pixels", "y_max_pixels", "z_min_pixels", "z_max_pixels"),
    *("mean_grey", "confidence", "touches_border"),
)


def find(
    labels: np.ndarray,
    chosen: np.ndarray,
    image,
    names: Sequence[str],
    voxel: float | None = None,
    affine: np.ndarray | None = None,
) -> list[dict]:
    """The objects of labels (H, W) or (D, H, W), of one class after the other, as rows without their picture.

    Args:
        labels: uint8, 0 for background, 1 to K for the classes.
        chosen: of the same sides, the probability of what was chosen, in 16 bits (see `prediction.segment`).
        image: the file's values, (H, W, C) or (D, H, W); it may lie on disk, and is read by slabs.
        names: of the classes.
        voxel: the area (mm^2) or volume (mm^3) of a pixel; None where the file names no unit.
        affine: (4, 4), from (z, y, x) to millimetres, or (3, 3), from (y, x); None where the file has none.

    Returns:
        Rows of COLUMNS. `number` counts from 1 on in the picture; `mean_grey` is the mean over the colours too;
        `confidence` is the mean probability of the object's class inside; boxes hold their first and last pixel.
    """
    from scipy import ndimage

    rows: list[dict] = []
    for label, name in enumerate(names, 1):
        parts, num = ndimage.label(labels == label, np.ones((3,) * labels.ndim))
        sizes, *sums = _sums(parts, num, image, chosen)
        means = np.divide(sums, sizes).T
        for size, (grey, sure, *centre), box in zip(sizes, means, ndimage.find_objects(parts), strict=True):
            row = {"class": name, "number": len(rows) + 1, "size_pixels": int(size)}
            if voxel:
                row["area_mm2" if labels.ndim == 2 else "volume_mm3"] = _short(size * voxel)
            for axis, place, ends in zip("xyz", centre[::-1], box[::-1], strict=False):
                row[f"{axis}_pixels"] = _short(place)
                row |= {f"{axis}_min_pixels": ends.start, f"{axis}_max_pixels": ends.stop - 1}
            if affine is not None:
                row |= dict(zip(("x_mm", "y_mm", "z_mm"), map(_short, affine[:-1] @ [*centre, 1]), strict=False))
            border = any(ends.start == 0 or ends.stop == side for ends, side in zip(box, labels.shape, strict=True))
            rows.append(row | {"mean_grey": _short(grey), "confidence": _short(sure), "touches_border": border})
    return rows


def _sums(parts: np.ndarray, num: int, image, chosen: np.ndarray) -> np.ndarray:
    """Of each part its pixels, and the sums of grey values, probabilities and places along each axis: (3 + axes, num).

    In memory are the foreground's values of a slab.
    """
    total = np.zeros((3 + parts.ndim, num + 1))
    for lines in prediction.slab_lines(parts):
        first, *others = np.nonzero(parts[lines])
        which, grey = parts[lines][first, *others], np.asarray(image[lines][first, *others])
        grey = grey.mean(axis=1) if grey.ndim > 1 else grey
        values = (None, grey, chosen[lines][first, *others] / np.float32(2**16 - 1), first + lines.start, *others)
        total += [np.bincount(which, value, num + 1) for value in values]
    return total[:, 1:]


def _short(value: float) -> float:
    """A number to six digits: more would only seem exact."""
    return float(f"{value:.6g}")


def sizes(rows: list[dict], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The pixels of the objects of each class."""
    return {name: np.array([row["size_pixels"] for row in rows if row["class"] == name], int) for name in names}


def draw_numbers(drawn: np.ndarray, rows: list[dict], step: int = 1) -> np.ndarray:
    """An overlay (H, W, 3), uint8, of every `step`-th pixel, with each object's number at its centroid."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(drawn)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(max(10, max(drawn.shape) // 60))
    for row in rows:
        place = row["x_pixels"] / step, row["y_pixels"] / step
        pen.text(place, str(row["number"]), "white", font, "mm", stroke_width=2, stroke_fill="black")
    return np.asarray(picture)
