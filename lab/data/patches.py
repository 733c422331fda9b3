"""Patches of pictures and volumes: random ones to train on, grids to validate on, tiles to predict; in any dimension.

    images, masks = patches.random_patches(samples, num=8, size=128, seed=0, augment=patches.vary)     # of one class
    for slab in patches.predict_tiles(image, network.predict_on_batch, tile=(512, 512)): ...

Patches are cut from samples (see `lab/data/sample.py`). Every image has a trailing channel axis: a picture is
(H, W, C), a volume (D, H, W, C). Labels come without it. Either may be an array, a memory map, or any object with
`shape`, `dtype` and slicing by a tuple of slices: only the patch is read from it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lab.data.classes import NOT_LABELLED
from lab.data.sample import to_masks

Size = int | Sequence[int]  # of all axes, or one per axis


# Cutting


def reflect(places: np.ndarray, length: int) -> np.ndarray:
    """Indices folded back into [0, length) by reflection at the first and last voxel."""
    period = max(1, 2 * (length - 1))
    folded = places % period
    return np.minimum(folded, period - folded)


def cut_patch(array, starts: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The patch of `size` at `starts` of an array (*sides) or (*sides, C), reflected beyond the array's end."""
    axes = zip(array.shape, starts, size, strict=False)  # not along the channels
    places = [reflect(np.arange(start, start + side), length) for length, start, side in axes]
    read = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in places)
    return np.asarray(array[read])[np.ix_(*(axis - axis.min() for axis in places))]


def axis_tiles(length: int, tile: int, overlap: int) -> list[tuple[int, np.ndarray]]:
    """Tiles along one axis: (start, weights) each. The weights of all tiles that hold a voxel sum to 1.

    Evenly spaced, from the first voxel to the last, neighbours overlapping by at least `overlap`; their weights
    rise and fall as a cosine over `overlap` voxels (Tukey window). An axis that is not longer than a tile has one.
    """
    from scipy.signal.windows import tukey

    if length <= tile:
        return [(0, np.ones(tile, np.float32))]
    num = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(i * (length - tile) / (num - 1)) for i in range(num)]
    window = tukey(tile + 2, min(1, 2 * overlap / tile))[1:-1]  # without the zeros at its ends
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += window
    return [(start, (window / total[start : start + tile]).astype(np.float32)) for start in starts]


# Training and validation


def random_patches(
    samples: list, num: int, size: Size, seed, augment: Callable | None = None, num_classes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Patches to train on, each from a sample and a place drawn at random.

    Every second patch holds a voxel of an object, if its sample has any: otherwise small objects are hardly ever seen.
    The class is drawn first, evenly among those of the sample, then one of its voxels: a rare class is seen as often as
    a frequent one. Whether the first patch holds one is drawn at random, so that half of them do in batches of one too.

    Args:
        samples: see `lab/data/sample.py`.
        num: number of patches.
        size: sides of a patch; a sample that is smaller is reflected.
        seed: a seed for `np.random.default_rng`.
        augment: image (*size, C), labels (*size), rng -> varied image and labels, such as `vary`.
        num_classes: K, see `to_masks`.

    Returns:
        images (num, *size, C) and masks (num, *size, 1), or (num, *size, K + 1) of several classes, float32.
    """
    rng = np.random.default_rng(seed)
    aimed = rng.integers(2)
    pairs = []
    for i in range(num):
        sample = samples[rng.integers(len(samples))]
        sides = sample.labels.shape
        patch = np.broadcast_to(size, len(sides))
        room = np.maximum(1, np.subtract(sides, patch) + 1)
        start = rng.integers(room)
        if (i + aimed) % 2 and sample.classes:
            label = sample.classes[rng.integers(len(sample.classes)) if len(sample.classes) > 1 else 0]
            places = sample.places[label]
            voxel = np.unravel_index(places[rng.integers(len(places))], sides)
            start = np.clip(voxel - rng.integers(patch), 0, room - 1)
        pair = _cut_pair(sample, start, patch)
        pairs.append(augment(*pair, rng) if augment else pair)
    return _stack(pairs, num_classes)


def grid_patches(samples: Sequence, size: Size, most: int, num_classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Patches that cover every sample, never augmented; if they are more than `most`, so many of them, evenly spread.

    Returns:
        images (N, *size, C) and masks (N, *size, 1), or (N, *size, K + 1) of several classes, float32.
    """
    places = []
    for sample in samples:
        sides = sample.labels.shape
        patch = np.broadcast_to(size, len(sides))
        axes = (axis_tiles(length, side, 0) for length, side in zip(sides, patch, strict=True))
        places += [(sample, [start for start, _ in place], patch) for place in itertools.product(*axes)]
    chosen = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
    return _stack([_cut_pair(*places[i]) for i in chosen], num_classes)


def _cut_pair(sample, starts, size):
    """Image and labels of a patch; outside the sample the image is reflected, and the labels are "not labelled"."""
    inside = tuple(slice(side - start) for start, side in zip(starts, sample.labels.shape, strict=True))
    labels = np.full(size, NOT_LABELLED, np.uint8)
    labels[inside] = cut_patch(sample.labels, starts, size)[inside]
    return sample.prepare(cut_patch(sample.image, starts, size)), labels


def _stack(pairs, num_classes):
    images, labels = zip(*pairs, strict=True)
    return np.stack(images).astype(np.float32, copy=False), to_masks(np.stack(labels), num_classes)


def vary(
    image: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    flips: Sequence[int] | None = None,
    planes: Sequence[tuple[int, int]] | None = None,
    contrast: float = 0.25,
    brightness: float = 0.15,
    tint: float = 0.1,
    noise: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Augment an image (*size, C) and its labels (*size): flips and quarter turns; the image's grey values too.

    Nothing is clipped: the brightest pixels stay the brightest.

    Args:
        image, labels, rng: a prepared image, its labels, and the source of the random numbers.
        flips: axes that may be flipped; by default all of them.
        planes: pairs of axes that span the planes of quarter turns; by default all pairs of equal sides.
        contrast: grey values are spread around 0.5 by 1 - contrast to 1 + contrast.
        brightness: -brightness to brightness is added to them.
        tint: each channel of a colour image is raised to its own power of 1 - tint to 1 + tint, like more or less of a
            stain: the light that passes n layers of dye is the n-th power of the light that passes one.
        noise: largest standard deviation of Gaussian noise.
    """
    axes = range(labels.ndim)
    if planes is None:
        planes = [
            plane for plane in itertools.combinations(axes, 2) if labels.shape[plane[0]] == labels.shape[plane[1]]
        ]
    flipped = tuple(axis for axis in (axes if flips is None else flips) if rng.integers(2))
    image, labels = np.flip(image, flipped), np.flip(labels, flipped)
    for plane in planes:
        turns = int(rng.integers(4))
        image, labels = np.rot90(image, turns, plane), np.rot90(labels, turns, plane)
    channels: int = image.shape[-1]
    if channels > 1 and tint:
        image = power(image, rng.uniform(1 - tint, 1 + tint, channels).astype(np.float32))
    spread, shift = rng.uniform(1 - contrast, 1 + contrast), rng.uniform(-brightness, brightness)
    image = (image - 0.5) * np.float32(spread) + np.float32(0.5 + shift)
    if noise:
        image = image + np.float32(rng.uniform(0, noise)) * rng.standard_normal(image.shape, np.float32)
    return image, labels


def power(image: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """Values raised to a power; a negative value keeps its sign: -x becomes -(x^exponent)."""
    return np.sign(image) * np.abs(image) ** exponent


def symmetries(samples: Sequence, patch: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """The axes to flip and the planes of quarter turns that scans allow, for `vary`.

    Where all scans lie in one known orientation, left and right alone are exchanged: up and down, front and back tell
    the network where it is. All other scans are flipped along each axis, and turned in planes of equal sides and, in
    all scans, equal spacings.
    """
    if all(sample.is_oriented for sample in samples):
        return [2], []
    steps = np.array([sample.spacing or (1, 1, 1) for sample in samples])

    def alike(a, b):
        return patch[a] == patch[b] and np.allclose(steps[:, a], steps[:, b], rtol=0.1)

    return [0, 1, 2], [plane for plane in itertools.combinations(range(3), 2) if alike(*plane)]


# Prediction


def fit_tile(length: int, least: int, divisor: int, most: int, overlap: int) -> int:
    """The side of tiles that cover `length` voxels: few and hardly larger than needed, at most about `most`."""
    num = max(1, -(-(length - overlap) // (most - overlap)))
    side = -(-(length + (num - 1) * overlap) // num)
    return max(least, -(-side // divisor) * divisor)


def predict_tiles(
    image, predict: Callable, tile: Sequence[int], overlap: Size = 32, batch: int = 1
) -> Iterator[np.ndarray]:
    """Predict a picture (H, W, C) or a volume (D, H, W, C) of any size in overlapping tiles, blended without a seam.

    Args:
        image: of any size and type; read tile by tile.
        predict: tiles (N, *tile, C) of the image's type -> values (N, *tile, K).
        tile: sides of a tile; where the image is smaller, it is reflected.
        overlap: least number of voxels that neighbouring tiles share, in [0, tile).
        batch: tiles per call of `predict`, also from neighbouring rows; only the last call may get fewer.

    Yields:
        Slabs (d, *sides[1:], K) of the result, float32, from the first to the last; one row of tiles is in memory.
    """
    sides = image.shape[:-1]
    axes = zip(sides, tile, np.broadcast_to(overlap, len(sides)), strict=True)
    rows, *others = (axis_tiles(*axis) for axis in axes)
    row_ends = [start for start, _ in rows[1:]] + [sides[0]]
    places = list(itertools.product(*others))
    all_places = ((row, *place) for row in rows for place in places)

    def predicted():
        while group := list(itertools.islice(all_places, batch)):
            tiles = np.stack([cut_patch(image, [start for start, _ in place], tile) for place in group])
            yield from zip(group, predict(tiles), strict=True)

    results = predicted()
    pending: Any = None
    for row, end in zip(rows, row_ends, strict=True):
        for place, values in itertools.islice(results, len(places)):
            if pending is None:
                pending = np.zeros((tile[0], *sides[1:], values.shape[-1]), np.float32)
            region = pending[:, *(slice(start, start + len(weights)) for start, weights in place[1:])]
            weight = functools.reduce(np.multiply.outer, [weights for _, weights in place])[..., None]
            inside = tuple(slice(side) for side in region.shape)
            region += (values * weight)[inside]
        done = end - row[0]
        yield pending[:done].copy()
        pending = np.concatenate([pending[done:], np.zeros_like(pending[:done])])
