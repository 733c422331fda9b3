"""Predict an image of any size, a picture or a volume, with one or several networks, and measure its mask.

    models = load_models(["outputs/unet/model.keras"])
    labels, probs = predict(models, image)                   # (H, W), and (H, W, 1) or (H, W, K + 1)

`predict.py` takes the steps one by one, for its tables and for images that are larger than the memory.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lab.data import grey_values, patches
from lab.data.classes import NOT_LABELLED
from lab.model import memory, model_file, scale, timing
from lab.system import backend, library_limits

# By the number of axes: the side of the largest tiles, and the overlap of neighbours. Two such pictures at a time, or
# one volume, take about 1 GB in the network.
LIMITS = {2: (768, 32), 3: (128, 16)}
PIXELS = 2**18  # in one call of a network, if tiles are small
SLAB = 2**22  # pixels of a mask that are measured at a time


def load_models(paths: Sequence[str | Path]) -> list[model_file.Model]:
    """Load models whose probabilities are averaged; ValueError if one is unusable or they do not go together."""
    models = [model_file.load_model(Path(path)) for path in paths]
    if backend.choose_precision("auto") == "float32":  # a processor that emulates bfloat16 is slow, or fails
        models = [model._replace(network=model_file.to_float32(model.network)) for model in models]
    first = models[0].preprocessing
    for path, (_, other) in zip(paths, models, strict=True):
        for key, what in (("ndim", "axes"), ("channels", "channels"), ("spacing", "mm between voxels")):
            if other.get(key) != first.get(key):
                wanted = f"{first.get(key)}, as in {paths[0]}"
                raise ValueError(f"the model {path} takes images of {other.get(key)} {what}, not of {wanted}.")
        channels = other["channels"]
        if channels not in {2: (1, 3), 3: (1,)}[other["ndim"]]:
            raise ValueError(f"the model {path} takes {channels} channels; 1 (grey) or 3 (colour) can be read.")
        known, wanted = (model_file.classes_of(settings) for settings in (other, first))
        if known.num != wanted.num or known.num > 1 and known.with_values != wanted.with_values:
            raise ValueError(
                f"the model {path} knows {known.with_values}, where {paths[0]} knows {wanted.with_values}: give models "
                "of the same classes."
            )
    choose_tile(models, first["size"])
    return models


def predict(models: list[model_file.Model], image: np.ndarray, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of a picture (H, W, C) or a volume (D, H, W, C), of any size: the mean over models.

    Args:
        image: the values of a file, not scaled and of its type; grey images also as (H, W) or (D, H, W). The voxels of
            a volume must be as far apart as those that the models were trained on.
        threshold: see `segment`.

    Returns:
        Labels (*sides), uint8, 0 to K, and probabilities (*sides, 1), or of several classes (*sides, K + 1), float32.

    Raises:
        ValueError: for an array of other axes, other channels, or a type that files do not have.
    """
    ndim, channels = (models[0].preprocessing[key] for key in ("ndim", "channels"))
    given = image.shape
    if image.ndim == ndim and channels == 1:
        image = image[..., None]
    if image.ndim != ndim + 1 or image.shape[-1] != channels or not image.size:
        sides = "H, W" if ndim == 2 else "D, H, W"
        raise ValueError(f"the model takes an array ({sides}, {channels}); got one of shape {given}.")
    if image.dtype.kind not in "buif" or image.dtype in (np.int64, np.uint64):  # their maximum would be white
        raise ValueError(f"an array of its file's type, such as uint8 or float32, was expected; got {image.dtype}.")
    prepare = prepare_pictures(models, image if ndim == 2 else grey_values.few_slices(image))
    slabs, _ = picture_probabilities(models, image, prepare)
    probs = np.concatenate(list(slabs))
    return segment([probs], image.shape[:-1], threshold)[0], probs


def choose_tile(models: list[model_file.Model], sides: tuple[int, ...]) -> list[int]:
    """Sides of the tiles that an image is predicted in: few and hardly larger than needed, as all models allow."""
    all_settings = [model.preprocessing for model in models]
    divisor = math.lcm(*(settings["divisor"] or 1 for settings in all_settings))
    fixed = {tuple(settings["size"]) for settings in all_settings if settings["divisor"] is None}
    if len(fixed) > 1 or any(side % divisor for tile in fixed for side in tile):
        raise ValueError("models of fixed size can only be averaged with others that take the same size.")
    if fixed:
        return list(*fixed)
    sizes = (settings["size"] for settings in all_settings)
    least = [-(-max(axis) // divisor) * divisor for axis in zip(*sizes, strict=True)]
    return [patches.fit_tile(*axis, divisor, *LIMITS[len(sides)]) for axis in zip(sides, least, strict=True)]


def prepare_pictures(models: list[model_file.Model], image: np.ndarray) -> list[Callable]:
    """The preprocessing of a picture, or a volume, for each model; equal grey ranges are computed once."""

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
        image: an array, or an object that reads one from disk (see `lab/data/patches.py`).
        prepare: a function for each model: tiles as they are in `image` -> tiles for the network.
        flips: mirror along every axis and combination of axes: 4 times as long for pictures, 8 for volumes.
        tell: print the time left, if the whole takes seconds.

    Yields:
        Slabs (h, W, 1) or (d, H, W, 1), of K classes with K + 1 channels, from the first line to the last; only one row
        of tiles is in memory.
    """
    ndim = image.ndim - 1
    tile = choose_tile(models, image.shape[:-1])
    axes = range(1, ndim + 1) if flips else ()
    mirrored = [flip for num in range(ndim + 1) for flip in itertools.combinations(axes, num)]
    batch = max(library_limits.LEAST_IMAGES[ndim], PIXELS // math.prod(tile))

    def predict(tiles):
        total = np.float32(0)
        together = max(1, batch // len(tiles))  # mirror images of few tiles share a call
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
    # Where tiles overlap, their weights are rounded: a sum of certain ones may exceed 1 by 1e-7.
    slabs = (np.minimum(slab, 1) for slab in patches.predict_tiles(image, predict, tile, overlap, batch))
    yield from timing.told(slabs, len(patches.axis_tiles(image.shape[0], tile[0], overlap[0]))) if tell else slabs


def choose_scale(models: list, image: np.ndarray, prepare: list, wanted: float | None = None) -> float:
    """How many times as large a picture is predicted: `wanted`, or the surest of the scales that the model names."""
    tried = models[0].preprocessing.get("scales")
    chosen = wanted or 1.0
    if wanted is None and tried:
        chosen = scale.find_scale(image, lambda picture: probabilities(models, picture, prepare), tried)
    if chosen != 1:
        pixels = math.prod(image.shape[:2]) * max(1, chosen**2)
        memory.check_room(4 * pixels * (image.shape[-1] + 2), f"a picture predicted {chosen:g} times as large")
    return chosen


def picture_probabilities(
    models: list, image: np.ndarray, prepare: list, wanted: float | None = None, flips: bool = False, tell: bool = False
) -> tuple[Iterable[np.ndarray], float]:
    """The probabilities of an image in slabs (see `probabilities`), and the scale at which it is predicted."""
    chosen = choose_scale(models, image, prepare, wanted)
    slabs_of = functools.partial(probabilities, models, prepare=prepare, flips=flips, tell=tell)
    return slabs_of(image) if chosen == 1 else [scale.at_scale(slabs_of, image, chosen)], chosen


def segment(slabs: Iterable[np.ndarray], sides: tuple[int, ...], threshold: float = 0.5, keep: bool = False):
    """Collect slabs of probabilities.

    Returns:
        Labels (*sides), uint8: of one class 1 where the probability is at least the threshold, else 0; of several
        classes the class of the highest probability (the first of equal ones). A dict of `foreground`, `confidence`
        (mean probability of the chosen class) and `remark`. The probabilities (*sides, C) in 16 bits, 65535 for 1; None
        unless `keep`. Of one class its probability, of several that of each pixel's label, (*sides) in 16 bits.

    Raises:
        ValueError: if a probability is no number.
    """
    labels, probs, chosen = np.empty(sides, np.uint8), None, np.empty(sides, np.uint16)
    line, confidence, lowest, highest = 0, 0.0, 1.0, 0.0
    for slab in slabs:
        if not np.isfinite(slab).all():
            raise ValueError("the network's probabilities are NaN or infinite; train it again, or in float32.")
        lines = slice(line, line + len(slab))
        one = slab.shape[-1] == 1
        foreground = slab[..., 0] if one else 1 - slab[..., 0]
        labels[lines] = foreground >= threshold if one else slab.argmax(axis=-1)
        sure = np.maximum(foreground, 1 - foreground) if one else slab.max(axis=-1)
        confidence += sure.sum(dtype=float)
        chosen[lines] = _in_16_bits(foreground if one else sure)
        lowest, highest = min(lowest, foreground.min()), max(highest, foreground.max())
        if keep and not one:
            probs = np.empty((*sides, slab.shape[-1]), np.uint16) if probs is None else probs
            probs[lines] = _in_16_bits(slab)
        line += len(slab)
    probs = chosen[..., None] if keep and one else probs
    figures = {"foreground": np.count_nonzero(labels) / labels.size, "confidence": confidence / labels.size}
    return labels, {**figures, "remark": describe_extreme(figures["foreground"], lowest, highest, one)}, probs, chosen


def _in_16_bits(probs: np.ndarray) -> np.ndarray:
    return np.round(np.clip(probs, 0, 1) * (2**16 - 1))


def describe_extreme(foreground: float, lowest: float, highest: float, threshold: bool = True) -> str | None:
    """A sentence if a prediction is all background or all foreground, with the causes; `threshold`: it may be one."""
    causes = "objects of another size than in training, or another kind of picture"
    high, low = ("a --threshold too high, ", "a --threshold too low, ") if threshold else ("", "")
    if foreground == 0:
        return f"All background (highest probability {highest:.2f}): nothing is there, {high}{causes}."
    if foreground == 1:
        return f"All foreground (lowest probability {lowest:.2f}): {low}{causes}."
    return None


def compare_masks(true: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Dice and IoU of a mask against the true one, of the same sides, slab by slab."""
    from metrics import DiceCoefficient, IoU

    scores = {"dice": DiceCoefficient(), "iou": IoU()}
    for lines in slab_lines(mask):
        pair = [array[None, lines, ..., None].astype(np.float32) for array in (true, mask)]
        for metric in scores.values():
            metric.update_state(*pair)
    return {name: float(metric.result()) for name, metric in scores.items()}


def compare_labels(true: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Dice and IoU of labels against the true ones, without the pixels that are not labelled.

    Of several classes the means are over those that are there or predicted; each of these has its `dice/NAME` too.
    """
    labelled, scores = true != NOT_LABELLED, {}
    for label, name in enumerate(names, 1):
        pair = true == label, (labels == label) & labelled
        if len(names) == 1:
            return compare_masks(*pair)
        if pair[0].any() or pair[1].any():
            scores[name] = compare_masks(*pair)
    means = {key: float(np.mean([one[key] for one in scores.values()])) for key in ("dice", "iou")} if scores else {}
    return means | {f"dice/{name}": one["dice"] for name, one in scores.items()}


def measure_objects(
    labels: np.ndarray, names: Sequence[str], voxel: float = 1.0, of_class: dict[str, np.ndarray] | None = None
) -> dict[str, float]:
    """The number of `objects`, and the median `diameter` of a circle, or a ball, as large as each of them.

    The unit is the pixel, or where `voxel` is the area or volume of one, that of its side. Objects of one class that
    touch, also at corners, are one. Of several classes also `foreground/NAME`, `objects/NAME` and `diameter/NAME`.
    `of_class` are the pixels of each class's objects, where they are known.
    """
    from scipy import ndimage

    of_unit = {2: math.pi / 4, 3: math.pi / 6}[labels.ndim]  # area or volume at diameter 1

    def described(sizes, suffix=""):
        figures = {f"objects{suffix}": len(sizes)}
        if len(sizes):
            figures[f"diameter{suffix}"] = (np.median(sizes) * voxel / of_unit) ** (1 / labels.ndim)
        return figures

    if of_class is None:
        of_class = {}
        for label, name in enumerate(names, 1):
            parts, num = ndimage.label(labels == label, np.ones((3,) * labels.ndim))
            of_class[name] = np.bincount(parts.ravel(), minlength=num + 1)[1:]
    row = described(np.concatenate([*of_class.values()]))
    for name, sizes in of_class.items() if len(names) > 1 else ():
        row |= {f"foreground/{name}": sizes.sum() / labels.size, **described(sizes, f"/{name}")}
    return row


def slab_lines(mask: np.ndarray) -> Iterator[slice]:
    """Slices along the first axis that together are the whole, about SLAB pixels each."""
    lines = max(1, SLAB // math.prod(mask.shape[1:]))
    return (slice(first, first + lines) for first in range(0, len(mask), lines))
