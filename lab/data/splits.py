"""Which samples train, validate and test: whole samples, or regions of one or two large samples.

    parts = splits.split(samples, seed=0, crop=128)        # {"training": [...], "validation": [...], "test": [...]}

The samples are those of `lab/data/sample.py`.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lab.data import folders
from lab.data.classes import Classes

LEAST = 32  # smallest side of crops from small pictures: a smaller crop hardly shows more than one object
SHARE = 0.15  # of the samples, or of a picture, for validation; the same for the test


def split(samples: list, seed: int, crop: int = 128) -> dict[str, list]:
    """Training, validation and test samples, drawn by `seed`; the last two have SHARE each, at least one sample.

    One or two pictures are split by regions instead, with a gap of `crop` pixels between them: no pixel of a patch, and
    none near it, is in two parts.

    Raises:
        ValueError: if regions would be too small, or no sample of the training holds an object.
    """
    rng = np.random.default_rng(seed)
    if len(samples) < 3:
        layouts = [_split_regions(samples, corner, crop) for corner in rng.permutation(4)]
        return next((parts for parts in layouts if _holds_objects(parts)), None) or _refuse_empty(samples)
    part = max(1, round(SHARE * len(samples)))
    order = [samples[i] for i in rng.permutation(len(samples))]
    parts = {"training": order[2 * part :], "validation": order[:part], "test": order[part : 2 * part]}
    if not any(sample.classes for sample in parts["training"]):
        raise ValueError("the masks of all training pictures are empty: take another --seed, or more pictures.")
    return parts


def folds(samples: list, seed: int, num: int, crop: int = 128) -> list[dict[str, list]]:
    """`num` splits for cross-validation: every picture is in the test part of exactly one.

    One or two pictures are split by regions, as in `split`: each fold is tested in another corner.

    Raises:
        ValueError: for fewer than 2 folds or more folds than pictures (or corners), and as `split` does.
    """
    few = len(samples) < 3
    most = len(samples)
    if few:
        most = 4 if all(sorted(sample.labels.shape)[-2] >= 3 * crop for sample in samples) else 2
    if not 2 <= num <= most:
        raise ValueError(f"--folds must be 2 to {most} with {len(samples)} pictures; got {num}.")
    rng = np.random.default_rng(seed)
    if few:
        splits = [_split_regions(samples, corner, crop) for corner in range(num)]
        if not all(map(_holds_objects, splits)):
            _refuse_empty(samples)
        return splits
    splits = []
    order = rng.permutation(len(samples))
    for tested in np.array_split(order, num):
        others = [i for i in np.roll(order, -tested[-1]) if i not in tested]
        part = max(1, round(SHARE * len(samples)))
        if len(others) <= part:
            raise ValueError(f"{len(samples)} pictures are too few for {num} folds: some would have none to train on.")
        places: dict = {"training": others[part:], "validation": others[:part], "test": tested}
        splits.append({name: [samples[i] for i in chosen] for name, chosen in places.items()})
    return splits


def largest_split(
    samples: list, seed: int, num_folds: int | None, size: int | None, usual: int, least: int = LEAST
) -> tuple[list[dict], int]:
    """The splits, one or `num_folds`, and the side of their crops: `size`, or the `usual` one.

    Without `size`, crops of one or two samples are smaller, down to `least`, until there are objects in all regions.
    """

    def split_by(size):
        return folds(samples, seed, num_folds, size) if num_folds else [split(samples, seed, size)]

    sizes = [size] if size else range(usual, least - 1, -8) if len(samples) < 3 else [usual]
    for side in sizes:
        with contextlib.suppress(ValueError):
            return split_by(side), side
    return split_by(sizes[0]), sizes[0]  # raises its error again


def _split_regions(samples, corner, crop) -> dict[str, list]:
    parts: dict[str, list] = {"training": [], "validation": [], "test": []}
    for sample in samples:
        for name, place in cut_regions(sample.labels.shape, int(corner), crop, sample.name).items():
            parts[name].append(sample.region(place))
    return parts


def cut_regions(sides: tuple[int, ...], corner: int, crop: int, name: str) -> dict[str, tuple[slice, ...]]:
    """Training, validation and test region of a picture, at least `crop` wide and `crop` apart.

    +----------------+   +------------+
    |                |gap| validation |      If the short side has room for three crops; otherwise all three lie along
    |    training    |   +------------+      the long side. `corner` (0 to 3) is the place of the test region: bit 0
    |                |   +------------+      mirrors the long side, bit 1 exchanges test and validation.
    |                |   |    test    |
    +----------------+   +------------+
    """
    long, short = np.argsort(sides, kind="stable")[::-1][:2]
    length, width = sides[long], sides[short]
    beside = width >= 3 * crop
    least = 3 * crop if beside else 5 * crop
    if length < least:
        raise ValueError(
            f"{name} is too small to be split into regions: with crops of {crop} pixels its sides must be at least "
            f"{3 * crop} and {3 * crop}, or one of them {5 * crop}; got {' x '.join(map(str, reversed(sides)))}. "
            "Take a smaller --size, or at least 3 pictures."
        )
    # Each region's first and last place along the long side, and along the short side.
    if beside:
        strip = min(max(crop, round(2 * SHARE * length)), length - 2 * crop)
        half = (width - crop) // 2
        training = [0, length - strip - crop, 0, width]
        validation = [length - strip, length, 0, half]
        test = [length - strip, length, width - half, width]
    else:
        part = min(max(crop, round(SHARE * length)), (length - 3 * crop) // 2)
        training = [0, length - 2 * part - 2 * crop, 0, width]
        validation = [length - 2 * part - crop, length - part - crop, 0, width]
        test = [length - part, length, 0, width]
    if corner & 2:
        validation, test = test, validation
    places = {}
    for part_name, (first, last, top, bottom) in {"training": training, "validation": validation, "test": test}.items():
        place = [slice(0, side) for side in sides]
        place[long] = slice(length - last, length - first) if corner & 1 else slice(first, last)
        place[short] = slice(top, bottom)
        places[part_name] = tuple(place)
    return places


def _holds_objects(parts: dict[str, list]) -> bool:
    return all(any(sample.classes for sample in samples) for samples in parts.values())


def _refuse_empty(samples):
    for sample in samples:
        if not sample.classes:
            raise ValueError(f"the mask of {sample.name} is empty: of one or two pictures, each must hold objects.")
    raise ValueError("split by regions, one part holds no object: take a smaller --size, or at least 3 pictures.")


def describe_classes(parts: dict[str, list], classes: Classes) -> list[str]:
    """Sentences about several classes: their names and shares, and the classes that no training sample holds."""
    if classes.num == 1:
        return []
    every = [sample for samples in parts.values() for sample in samples]
    seen = {label for sample in parts["training"] for label in sample.classes}
    missing = [name for label, name in enumerate(classes.names, 1) if label not in seen]
    unseen = f"No training sample holds {', '.join(missing)}: the network will not find it. Take another --seed."
    return [classes.describe(every), *([unseen] if missing else [])]


def describe_parts(parts: dict[str, list], validation: np.ndarray) -> list[str]:
    """Sentences about the parts, the masks (N, *sides, C) of the validation's patches, and small pictures."""
    _, *sides, channels = validation.shape
    every = [sample for samples in parts.values() for sample in samples]
    what, unit = ("picture", "pixels") if len(sides) == 2 else ("scan", "voxels")
    one, many = ("crop", "crops") if len(sides) == 2 else ("patch", "patches")
    what, size = "region" if every[0].is_region else what, f"{' x '.join(map(str, sides))} {unit}"
    num_training, num_validation, num_test = (len(parts[part]) for part in ("training", "validation", "test"))
    empty = sum(not (masks[..., channels > 1 :] == 1).any() for masks in validation)
    small = sum(any(np.less(sample.labels.shape, sides)) for sample in every)
    outside = f"Smaller than {size}: {small} of {len(every)} {what}s; the part outside them is not labelled, and "
    return [
        f"{folders.count(num_training, what)} for training, {num_validation} for validation, {num_test} for the test; "
        "split.json names them.",
        f"Validation takes {len(validation)} {one if len(validation) == 1 else many} of {size}, {empty} of them "
        f"without an object; the test takes each {what} as a whole.",
        *([f"{outside}changes no loss and no score."] if small else []),
    ]


def describe(parts: dict[str, list]) -> str:
    """Number of samples and a digest of names, images and masks: a resumed run must have the same."""
    samples = sorted((sample for part in parts.values() for sample in part), key=lambda sample: sample.name)
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.name, sample.image.shape)).encode())
        for array in (sample.image, sample.labels):
            for part in array:  # a large scan stays on disk
                digest.update(np.ascontiguousarray(part).data)
    return f"{len(samples)} samples, {digest.hexdigest()[:16]}"


def files(parts: dict[str, list], plot_dataset: Callable[[list, Path], None]) -> dict[str, Callable[[Path], object]]:
    """The files that show which samples were read, and the part of each: name -> a function that writes it."""
    names = {part: [sample.name for sample in samples] for part, samples in parts.items()}
    every = [sample for samples in parts.values() for sample in samples]
    return {
        "split.json": lambda path: path.write_text(json.dumps(names, indent=1) + "\n"),
        "dataset.png": lambda path: plot_dataset(every, path),
    }
