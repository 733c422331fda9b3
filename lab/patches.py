"""Grids, tiles and their blending, in any number of dimensions."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np


def axis_tiles(length: int, tile: int, overlap: int) -> list[tuple[int, np.ndarray]]:
    """Tiles along one axis: (start, weights) each. The weights of all tiles that hold a pixel sum to 1.

    Evenly spaced, from the first pixel to the last, neighbours overlapping by at least `overlap`; their weights
    rise and fall as a cosine over `overlap` pixels (Tukey window). One tile where the axis is not longer than it.
    """
    from scipy.signal.windows import tukey

    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be in [0, tile), here [0, {tile}); got {overlap}.")
    if length <= tile:
        return [(0, np.ones(tile, np.float32))]
    num = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(i * (length - tile) / (num - 1)) for i in range(num)]
    window = tukey(tile + 2, min(1, 2 * overlap / tile))[1:-1]  # without the zeros at its ends
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += window
    return [(start, (window / total[start : start + tile]).astype(np.float32)) for start in starts]


def reflect(places: np.ndarray, length: int) -> np.ndarray:
    """Indices folded back into [0, length) by reflection at the first and last pixel."""
    period = max(1, 2 * (length - 1))
    folded = places % period
    return np.minimum(folded, period - folded) if length > 1 else 0 * places


def cut_tile(picture: np.ndarray, starts, tile) -> np.ndarray:
    """The tile at `starts`, reflected where it reaches over the end of `picture`."""
    axes = zip(picture.shape, starts, tile, strict=True)
    return picture[np.ix_(*(reflect(np.arange(start, start + side), length) for length, start, side in axes))]


def predict_tiles(
    picture: np.ndarray, predict: Callable, tile: tuple[int, ...], overlap: int = 32, batch: int = 1
) -> Iterator[np.ndarray]:
    """Predict a picture (H, W) or a volume (D, H, W) of any size in overlapping tiles, blended without a seam.

    Args:
        picture: of any size and type.
        predict: tiles (N, *tile, 1) of the picture's type -> values (N, *tile, 1).
        tile: sides of a tile; where the picture is smaller, it is reflected.
        overlap: pixels that neighbouring tiles share, at least, in [0, tile).
        batch: tiles per call of `predict`.

    Yields:
        Bands of the result, float32, from the first line to the last: in memory are the picture and one row of tiles.
    """
    rows, *others = (axis_tiles(length, side, overlap) for length, side in zip(picture.shape, tile, strict=True))
    row_ends = [start for start, _ in rows[1:]] + [picture.shape[0]]
    places = list(itertools.product(*others))
    pending = np.zeros((tile[0], *picture.shape[1:]), np.float32)
    for row, end in zip(rows, row_ends, strict=True):
        for first in range(0, len(places), batch):
            group = [(row, *place) for place in places[first : first + batch]]
            tiles = np.stack([cut_tile(picture, [start for start, _ in place], tile) for place in group])
            for place, values in zip(group, predict(tiles[..., None])[..., 0], strict=True):
                region = pending[:, *(slice(start, start + len(weights)) for start, weights in place[1:])]
                weight = functools.reduce(np.multiply.outer, [weights for _, weights in place])
                inside = tuple(slice(side) for side in region.shape)
                region += (values * weight)[inside]
        done = end - row[0]
        yield pending[:done].copy()
        pending = np.concatenate([pending[done:], np.zeros_like(pending[:done])])
