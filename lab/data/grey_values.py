"""Grey values as a network sees them: in each channel, one value becomes 0 and another 1. Only defined here.

    settings, parts, remark = grey_values.settle(parts, "auto")      # one range for the folder, or one for each picture
    grey_range = grey_values.range_of(image, settings)               # of a new picture (H, W, C) or volume (D, H, W, C)
    seen = grey_range.prepare(image)                                 # float32

Nothing is clipped, because the object may be brighter than 99% of the pixels: values outside the range are compressed
by a logarithm, so that their order stays and different values stay different. The settings lie inside the model file
(`lab/model/model_file.py`): a network cannot be used with another preprocessing than that of its training.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# Values are divided by the maximum of their type; or two percentiles of each channel become 0 and 1.
ABSOLUTE = {"grey": "ITU-R 601 luma, transparent is black", "stretch": None, "beyond": "log"}
STRETCHED: dict = {**ABSOLUTE, "stretch": [1, 99], "surroundings": 0.25}
QUANTILES = (1, 50, 99)  # percentiles of an image that are compared with those seen in training
TIE = 0.01  # of the contrast: if one range and many differ by less, absolute values are kept
WIDEST = 2.0  # prepared values from here on are drawn as white: 2.7 times the range above its lower end


@dataclasses.dataclass(frozen=True)
class GreyRange:
    """The values of each channel that become 0 and 1, and what happens to values outside them."""

    low: np.ndarray  # (C,)
    high: np.ndarray  # (C,), above `low`
    beyond: str = "log"  # "clip": cut off, as in model files of version 2; "keep": neither

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """An image (..., C) as the network sees it, float32.

            y = (image - low) / (high - low)
            y for 0 <= y <= 1;  1 + log(y) for y > 1;  -log(1 - y) for y < 0

        Continuous, with a continuous slope, and strictly rising: at y = 1000, a step of 1/235 still changes the result
        by 4e-6, where float32 resolves 5e-7. Example: of a range of 40 to 150, 210 becomes 1.44 and 260 becomes 1.69.
        """
        seen = image.astype(np.float32)
        seen -= np.float32(self.low)
        seen /= np.subtract(self.high, self.low, dtype=np.float32)
        if self.beyond == "clip":
            return np.clip(seen, 0, 1, out=seen)
        if self.beyond == "log":
            np.log(seen, out=seen, where=(above := seen > 1))
            seen[above] += 1
            np.negative(seen, out=seen, where=(below := seen < 0))
            np.log1p(seen, out=seen, where=below)
            np.negative(seen, out=seen, where=below)
        return seen


def raw(samples: Sequence) -> list:
    """The same samples with their values as they are in the file."""
    unchanged = GreyRange(np.zeros(1, np.float32), np.ones(1, np.float32), "keep")
    return [dataclasses.replace(sample, grey_range=unchanged) for sample in samples]


# The range of one image


def range_of(image: np.ndarray, settings: dict) -> GreyRange:
    """The grey range of a picture (H, W, C) or a volume (D, H, W, C), as the settings say.

    `window`: the same two values for every image, or two for each channel. Else `stretch`: two percentiles of each
    channel of the image itself, without its `surroundings` (see `without_surroundings`). If both percentiles are equal,
    the objects are the few pixels that differ from this value, and the least and the largest value are taken. Without
    both settings: the limits of the image's type.
    """
    channels, beyond = image.shape[-1], settings["beyond"]
    if settings.get("window"):
        low, high = (np.full(channels, value, np.float32) for value in settings["window"])
        return GreyRange(low, high, beyond)
    if settings["stretch"] is None:
        maximum = np.iinfo(image.dtype).max if image.dtype.kind in "ui" else 1
        return GreyRange(np.zeros(channels, np.float32), np.full(channels, maximum, np.float32), beyond)
    pixels = without_surroundings(thin_out(image).reshape(-1, channels), settings.get("surroundings"))
    low, high = np.percentile(pixels, settings["stretch"], axis=0)
    if np.any(low == high):
        axes = tuple(range(image.ndim - 1))
        low, high = np.where(low == high, (image.min(axis=axes), image.max(axis=axes)), (low, high))
    least = [least_range(image[..., channel]) for channel in range(channels)]
    return GreyRange(*_apart(low, high, least), beyond)


def _apart(low, high, least=0) -> tuple[np.ndarray, np.ndarray]:
    """Both ends in float32, the higher one above the lower one by `least` or more."""
    low = low.astype(np.float32)
    high = np.maximum(high, low + least).astype(np.float32)
    return low, np.maximum(high, np.nextafter(low, np.float32(np.inf)))  # a least range may vanish beside `low`


def without_surroundings(pixels: np.ndarray, share: float | None) -> np.ndarray:
    """Pixels (n, C) without the most frequent value of each channel, if at least a `share` of them has it.

    The empty surroundings of a scan, or the ground of a drawing, do not show how bright a tissue is, but their size
    would decide the percentiles. nnU-Net leaves out zeros for the same reason, from the same share on (Isensee et al.
    2021).
    """
    if share is None:
        return pixels
    most_frequent = []
    for channel in pixels.T:
        values, counts = np.unique(channel, return_counts=True)
        most_frequent.append(values[counts.argmax()])
    empty = (pixels == np.array(most_frequent)).all(axis=-1)
    return pixels[~empty] if share <= empty.mean() < 1 else pixels


def thin_out(image: np.ndarray, most: int = 2**20) -> np.ndarray:
    """Every k-th pixel (*, C) along each axis, about `most` of them: enough for percentiles."""
    ndim = image.ndim - 1
    step = math.ceil((math.prod(image.shape[:-1]) / most) ** (1 / ndim))
    return image[(slice(None, None, step),) * ndim]


def least_range(channel: np.ndarray) -> float:
    """The smallest range of values (*sides) that may become 0 to 1. It keeps a flat channel flat.

    It follows from the channel alone, so that its type, its exposure and its unit do not matter. Noise differs from
    structure, because neighbours do not share it: its standard deviation is estimated from the differences of
    neighbouring pixels, to which the steps between the levels add theirs. The structure is the range of the means of
    8 x 8 pixels. The least range is 10 noise (noise / structure)^2, but at most 20 noise: it is small where objects
    stand out clearly, and where there is only noise, the noise takes a quarter of the range.
    """
    blocks = _blocks(channel)
    values = np.unique(blocks)
    step = np.diff(values).min() if len(values) > 1 else 0
    between = np.abs(np.diff(blocks, axis=-1))
    sigma = np.median(between) / (0.6745 * math.sqrt(2)) if between.size else 0  # of normal noise
    noise = math.sqrt(sigma**2 + step**2 / 12)
    if noise == 0:
        return 1.0  # one value only: any range makes it 0
    structure = np.ptp(np.percentile(blocks.mean(axis=tuple(range(1, blocks.ndim, 2))), [1, 99]))
    return 20 * noise / max(1, 2 * (structure / noise) ** 2)


def _blocks(channel: np.ndarray) -> np.ndarray:
    """Blocks of 8 x 8 pixels, about 2^20 pixels in all and evenly spread: (n, 8, m, 8), float32; in 3D likewise."""
    sides = [max(1, min(8, length // 4)) for length in channel.shape]
    counts = [length // side for length, side in zip(channel.shape, sides, strict=True)]
    whole = channel[tuple(slice(num * side) for num, side in zip(counts, sides, strict=True))]
    blocks = whole.reshape([n for pair in zip(counts, sides, strict=True) for n in pair])
    step = math.ceil((whole.size / 2**20) ** (1 / channel.ndim))
    return blocks[(slice(None, None, step), slice(None)) * channel.ndim].astype(np.float32)


# One range for the folder, or one for each picture


def settle(parts: dict[str, list], wanted: str) -> tuple[dict, dict[str, list], str]:
    """Give the samples of a folder their grey ranges: one for all, or each its own.

    Pictures of one camera, or scans in absolute units, keep their absolute values with a range for the folder; scans of
    two scanners need a range for each. "auto" takes the one by which the objects agree better (see `disagreement`).

    Args:
        parts: training, validation and test samples (see `lab/data/sample.py`), which have their own `grey_range` each.
        wanted: "folder", "picture", or "auto" to measure which of the two suits the training samples.

    Returns:
        The settings for the model file, the parts with their ranges, and a sentence about the choice.
    """
    training = parts["training"]
    window = folder_range(training)
    common = disagreement(training, window)
    own: Any = disagreement(training)  # None where `common` is
    if wanted == "auto":
        wanted = "folder" if common is not None and common < own + TIE else "picture"
    if wanted == "folder":
        settings = {**STRETCHED, "window": [window.low.tolist(), window.high.tolist()]}
        with_window = functools.partial(dataclasses.replace, grey_range=window)
        parts = {name: list(map(with_window, samples)) for name, samples in parts.items()}
        ends = ", ".join(f"{low:g} to {high:g}" for low, high in zip(window.low, window.high, strict=True))
        remark = f"one range for the folder, {ends}"
    else:
        settings, remark = dict(STRETCHED), "a range for each picture"
    if common is not None:
        both = f"{common:.3f} with one for the folder, {own:.3f} with one for each picture"
        remark += f"; objects and surroundings differ from picture to picture by this share of their contrast: {both}"
    return settings, parts, f"Grey values: {remark}. (--grey-range)"


def folder_range(samples: Sequence) -> GreyRange:
    """One range for all samples: the percentiles of all of them together, without their surroundings.

    If zero lies inside the grey values of every sample, as in CT's Hounsfield units, the percentiles are air and bone,
    and the small differences of soft tissues would be lost between them. The range is then three times as wide as the
    objects' grey values (percentiles 1 to 99), with these in its middle. Example: the brain's 20 to 50 Hounsfield units
    give -10 to 80.
    """
    stretch, share = STRETCHED["stretch"], STRETCHED["surroundings"]
    thinned = [thin_out(few_slices(sample.image), 2**16) for sample in samples]
    pixels = [without_surroundings(image.reshape(-1, image.shape[-1]), share) for image in thinned]
    together = np.concatenate(pixels)
    low, high = np.percentile(together, stretch, axis=0)
    low, high = np.where(low == high, (together.min(axis=0), together.max(axis=0)), (low, high))
    ends = (np.percentile(image, stretch) for image in thinned)
    if all(least < -0.05 * (largest - least) for least, largest in ends):  # zero lies well inside
        objects = np.concatenate([_around_objects(sample, label)[0] for sample in samples for label in sample.classes])
        first, last = np.percentile(objects, stretch, axis=0) if len(objects) else (low, high)
        low, high = np.where(last > first, (2 * first - last, 2 * last - first), (low, high))
    return GreyRange(*_apart(low, high))


def disagreement(samples: Iterable, common: GreyRange | None = None) -> float | None:
    """How much grey values differ from sample to sample, as a share of the contrast of objects and surroundings.

        sqrt(sum over channels of (var(m) + var(b)) / 2) / median(|m - b|)

    m and b (C,) are the medians of a sample's objects and of their surroundings, prepared with the `common` range or
    with the sample's own. With several classes it is the mean over those that two samples or more have; None if there
    is no such class.
    """
    middles: dict[int, list] = {}
    for sample in samples:
        prepare = (common or sample.grey_range).prepare
        for label in sample.classes:
            both = _around_objects(sample, label)
            if all(map(len, both)):
                middles.setdefault(label, []).append([np.median(prepare(values), axis=0) for values in both])
    spreads = []
    for medians in (np.array(of_class) for of_class in middles.values() if len(of_class) > 1):  # (samples, 2, C)
        contrast = np.median(np.linalg.norm(medians[:, 0] - medians[:, 1], axis=-1))
        spreads.append(math.sqrt(medians.var(axis=0).sum() / 2) / max(float(contrast), 1e-6))
    return float(np.mean(spreads)) if spreads else None


def _around_objects(sample, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Values (n, C) of pixels of a class, and of pixels near them of another one; few are read from a sample on disk.

    Near pixels lie at a random distance of up to 4 along each axis, then 8, 16, ..., until a tenth of them lie outside
    the class.
    """
    rng, sides = np.random.default_rng(0), np.array(sample.labels.shape)
    objects = sample.places[label]
    chosen = objects[np.linspace(0, len(objects) - 1, min(2**12, len(objects))).astype(int)]
    places = np.stack(np.unravel_index(chosen, sides), axis=-1)
    near, reach = places[:0], 4
    while len(near) < len(places) / 10 and reach < 2 * sides.max():
        near = np.clip(places + rng.integers(-reach, reach + 1, places.shape), 0, sides - 1)
        near = near[~np.isin(sample.labels[tuple(near.T)], (label, 255))]
        reach *= 2
    return sample.image[tuple(places.T)], sample.image[tuple(near.T)]


def few_slices(image: np.ndarray) -> np.ndarray:
    """Every k-th line or slice, so that about 2^24 pixels are left; no others are read from disk."""
    return image[:: math.ceil(math.prod(image.shape) / 2**24)]


# Grey values seen in training


def describe_training(images: np.ndarray, settings: dict) -> dict:
    """Entries of the model file: `settings`, the input size, the range of each of QUANTILES over `images`."""
    quantiles = np.percentile(images, QUANTILES, axis=tuple(range(1, images.ndim)))  # (quantiles, N)
    seen = {f"{q}%": [float(row.min()), float(row.max())] for q, row in zip(QUANTILES, quantiles, strict=True)}
    return {**settings, "size": list(images.shape[1:-1]), "seen": seen}


def describe_strangeness(image: np.ndarray, seen: dict) -> str | None:
    """A sentence if the values of a prepared picture lie outside those of the training, else None."""
    for (name, (low, high)), value in zip(seen.items(), np.percentile(image, QUANTILES), strict=True):
        if not low - 0.05 <= value <= high + 0.05:
            what = {"1%": "darkest 1%", "50%": "median", "99%": "brightest 1%"}[name]
            return (
                f"its grey values lie outside those of the training ({what}: {value:.2f}, in training {low:.2f} to "
                f"{high:.2f}): another exposure, inverted contrast or another kind of picture; "
                f"train on {'scans like it' if image.ndim == 4 else 'pictures like it, or with --recipe photographs'}."
            )
    return None


def shown_range(images: np.ndarray) -> GreyRange:
    """The range from black to white for prepared images (..., C): values beyond 0 and 1 stay visible, up to WIDEST."""
    low, high = min(0.0, float(images.min())), max(1.0, float(images.max()))
    return GreyRange(np.array([max(low, 1 - WIDEST)]), np.array([min(high, WIDEST)]), "clip")
