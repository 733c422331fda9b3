"""What one or several networks say of an image of any size, and what a mask holds: pictures and volumes alike.

models = load_models([Path("outputs/unet/model.keras")])
prepare = prepare_pictures(models, image)
slabs = probabilities(models, image, prepare)            # (h, W) each, from the first line to the last
mask, figures, _ = segment(slabs, image.shape[:-1])
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from lab.data import grey_values, patches
from lab.model import memory, model_file, scale, timing
from lab.system import library_limits

# By the number of axes: the side of the largest tiles, and what neighbours share. Two such pictures at a time, or one
# volume, take about 1 GB in the network.
LIMITS = {2: (768, 32), 3: (128, 16)}
PIXELS = 2**18  # predicted at a time where tiles are small
SLAB = 2**22  # pixels that a mask is looked at at a time


def load_models(paths: list[Path]) -> list[model_file.Model]:
    """Load models whose probabilities are averaged; ValueError if one is unusable or they do not go together."""
    models = [model_file.load_model(path) for path in paths]
    first = models[0].preprocessing
    for path, (_, other) in zip(paths, models, strict=True):
        for key, what in (("ndim", "axes"), ("channels", "channels"), ("spacing", "mm between voxels")):
            if other.get(key) != first.get(key):
                wanted = f"{first.get(key)}, as in {paths[0]}"
                raise ValueError(f"the model {path} takes images of {other.get(key)} {what}, not of {wanted}.")
        if other["channels"] not in {2: (1, 3), 3: (1,)}[other["ndim"]]:
            raise ValueError(
                f"the model {path} takes {other['channels']} channels; 1 (grey) or 3 (colour) can be read."
            )
    choose_tile(models, first["size"])
    return models


def choose_tile(models: list[model_file.Model], sides: tuple[int, ...]) -> list[int]:
    """Sides of the tiles that an image is predicted in: few and hardly larger than needed, as all models allow."""
    found = [model.preprocessing for model in models]
    divisor = math.lcm(*(settings["divisor"] or 1 for settings in found))
    fixed = {tuple(settings["size"]) for settings in found if settings["divisor"] is None}
    if len(fixed) > 1 or any(side % divisor for tile in fixed for side in tile):
        raise ValueError("models of fixed size can only be averaged with others that take the same size.")
    if fixed:
        return list(*fixed)
    least = [-(-max(axis) // divisor) * divisor for axis in zip(*(settings["size"] for settings in found), strict=True)]
    return [patches.fit_tile(*axis, divisor, *LIMITS[len(sides)]) for axis in zip(sides, least, strict=True)]


def prepare_pictures(models: list[model_file.Model], image: np.ndarray) -> list[Callable]:
    """The preprocessing of a picture, or a volume, for each model; its grey range is taken once."""

    @functools.cache
    def range_of(settings):
        return grey_values.range_of(image, json.loads(settings))

    keys = ("stretch", "window", "surroundings", "beyond")
    settings = [{key: model.preprocessing.get(key) for key in keys} for model in models]
    return [range_of(json.dumps(one)).prepare for one in settings]


def probabilities(
    models: list[model_file.Model], image, prepare: list[Callable], flips: bool = False, tell: bool = False
) -> Iterator[np.ndarray]:
    """The probabilities of a picture (H, W, C) or a volume (D, H, W, C): the mean over models, and over mirror images.

    Args:
        models: by `load_models`.
        image: an array, or what reads one from disk (see `lab/data/patches.py`).
        prepare: a function for each model: tiles as they are in `image` -> what the network sees.
        flips: whether to mirror along every axis and combination of axes: 4 times as long for pictures, 8 for volumes.
        tell: whether to say what is left, if the whole takes seconds.

    Yields:
        Slabs (h, W) or (d, H, W), from the first line to the last: in memory is one row of tiles.
    """
    ndim = image.ndim - 1
    tile = choose_tile(models, image.shape[:-1])
    mirrored = [flip for num in range(ndim + 1) for flip in itertools.combinations(range(1, ndim + 1), num)]
    mirrored = mirrored if flips else [()]
    batch = max(library_limits.LEAST_IMAGES[ndim], PIXELS // math.prod(tile))

    def predict(tiles):
        total = np.float32(0)
        together = max(1, batch // len(tiles))  # mirror images of few tiles fill a call up, as more tiles would
        for (network, _), prepared in zip(models, prepare, strict=True):
            seen = prepared(tiles)
            for first in range(0, len(mirrored), together):
                group = mirrored[first : first + together]
                views = np.concatenate([np.flip(seen, flip) for flip in group])
                probs = np.split(library_limits.predict_batch(network, views), len(group))
                for flip, values in zip(group, probs, strict=True):
                    total = total + np.flip(values, flip)
        return total / (len(models) * len(mirrored))

    overlap = [min(LIMITS[ndim][1], side // 2) for side in tile]
    slabs = patches.predict_tiles(image, predict, tile, overlap, batch)
    if tell:
        slabs = timing.told(slabs, len(patches.axis_tiles(image.shape[0], tile[0], overlap[0])))
    for slab in slabs:
        yield slab[..., 0]


def choose_scale(models: list, image: np.ndarray, prepare: list, wanted: float | None = None) -> float:
    """How many times as large a picture is looked at: as `wanted`, or of the scales that the model names the surest."""
    tried = models[0].preprocessing.get("scales")
    chosen = wanted or 1.0
    if wanted is None and tried:
        chosen = scale.find_scale(image, lambda picture: probabilities(models, picture, prepare), tried)
    if chosen != 1:
        pixels = math.prod(image.shape[:2]) * max(1, chosen**2)
        memory.check_room(4 * pixels * (image.shape[-1] + 2), f"a picture looked at {chosen:g} times as large")
    return chosen


def picture_probabilities(
    models: list, image: np.ndarray, prepare: list, wanted: float | None = None, flips: bool = False, tell: bool = False
) -> tuple[Iterable[np.ndarray], float]:
    """The probabilities of a picture (H, W, C) in slabs (h, W), and the scale at which it is looked at."""
    chosen = choose_scale(models, image, prepare, wanted)

    def slabs_of(picture):
        return probabilities(models, picture, prepare, flips, tell)

    return slabs_of(image) if chosen == 1 else [scale.at_scale(slabs_of, image, chosen)], chosen


def segment(slabs: Iterator[np.ndarray], sides: tuple[int, ...], threshold: float = 0.5, keep: bool = False):
    """Collect slabs of probabilities.

    Returns:
        The mask of 0 and 1 (*sides), uint8; a dict of `foreground`, `confidence` (mean of max(p, 1 - p)) and `remark`;
        the probabilities in 16 bits, 65535 for 1, or None unless `keep`.

    Raises:
        ValueError: if a probability is no number.
    """
    mask = np.empty(sides, np.uint8)
    kept = np.empty(sides, np.uint16) if keep else None
    line, confidence, lowest, highest = 0, 0.0, 1.0, 0.0
    for slab in slabs:
        if not np.isfinite(slab).all():
            raise ValueError("the network's probabilities are NaN or infinite; train it again, or in float32.")
        lines = slice(line, line + len(slab))
        mask[lines] = slab >= threshold
        confidence += np.maximum(slab, 1 - slab).sum(dtype=float)
        lowest, highest = min(lowest, slab.min()), max(highest, slab.max())
        if keep:
            kept[lines] = np.round(np.clip(slab, 0, 1) * (2**16 - 1))
        line += len(slab)
    figures = {"foreground": np.count_nonzero(mask) / mask.size, "confidence": confidence / mask.size}
    return mask, {**figures, "remark": describe_extreme(figures["foreground"], lowest, highest)}, kept


def describe_extreme(foreground: float, lowest: float, highest: float) -> str | None:
    """A sentence if a prediction is all background or all foreground, else None."""
    causes = "objects of another size than in training, or another kind of picture"
    if foreground == 0:
        return (
            f"All background (highest probability {highest:.2f}): nothing is there, a --threshold too high, {causes}."
        )
    if foreground == 1:
        return f"All foreground (lowest probability {lowest:.2f}): a --threshold too low, {causes}."
    return None


def compare_masks(true: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Dice and IoU of a mask against the true one, of the same sides, slab by slab."""
    from metrics import DiceCoefficient, IoU

    scores = {"dice": DiceCoefficient(), "iou": IoU()}
    for lines in _slabs(mask):
        pair = [array[None, lines, ..., None].astype(np.float32) for array in (true, mask)]
        for metric in scores.values():
            metric.update_state(*pair)
    return {name: float(metric.result()) for name, metric in scores.items()}


def measure_objects(mask: np.ndarray, voxel: float = 1.0) -> dict[str, float]:
    """The number of `objects`, and the median `diameter` of a circle, or a ball, as large as each of them.

    The unit is the pixel, or where `voxel` is the area or volume of one, that of its side. Objects that touch, also at
    corners, are one.
    """
    from scipy.ndimage import label

    labels, num = label(mask, np.ones((3,) * mask.ndim))
    if not num:
        return {"objects": 0}
    sizes = sum(np.bincount(labels[lines].ravel(), minlength=num + 1) for lines in _slabs(mask))[1:]
    of_unit = {2: math.pi / 4, 3: math.pi / 6}[mask.ndim]  # area or volume at diameter 1
    return {"objects": num, "diameter": (np.median(sizes) * voxel / of_unit) ** (1 / mask.ndim)}


def _slabs(mask: np.ndarray) -> Iterator[slice]:
    lines = max(1, SLAB // math.prod(mask.shape[1:]))
    return (slice(first, first + lines) for first in range(0, len(mask), lines))
