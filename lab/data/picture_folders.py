"""Folders of pictures to train on, with their masks.

from lab.data import picture_folders
samples, classes = picture_folders.read_folder(Path("pictures"), Path("masks"))
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.data import class_folders, classes, folders, grey_values
from lab.data.folders import describe_sides
from lab.data.pictures import describe_loss, find_pictures, in_colours, read_labels, read_picture, read_values
from lab.data.sample import Sample


def read_folder(
    images: Path, masks: Path, names: Sequence[str] | None = None, ignore: int | None = None
) -> tuple[list[Sample], classes.Classes]:
    """Read all pictures of a folder with their masks in another, by name, each with its own grey range.

    If all are in colour, samples have three channels; if one is grey, all are read as grey. Everything stays in memory:
    a byte per pixel and channel, two with 16 bits, and one for the labels.

    Args:
        images: folder of pictures.
        masks: folder of masks of the same sizes, or of a folder for each class (see `folders.pair_by_name`).
        names, ignore: see `classes.find_classes`.

    Raises:
        ValueError: with all problems, a line each: files without a partner, unreadable files, different sizes,
            wrong mask values, one name twice, one picture twice (it could be in training and test), no object in any
            mask.
    """
    of_class, pairs, problems = folders.pair_by_name(images, masks, find_pictures, "picture")
    pictures: list[tuple[Path, np.ndarray]] = []
    values_of: list[tuple] = []  # path, values, kind and palette of each picture's mask
    known: dict = {}
    for path, mask_path in pairs:
        try:
            image = read_picture(path)
            mask = (merged(mask_path, image.shape[:2]), "grey", None) if of_class else read_values(mask_path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if image.shape[:2] != mask[0].shape:
            sides, mask_sides = map(describe_sides, (image.shape[:2], mask[0].shape))
            problems.append(f"{path} is {sides} pixels, its mask {mask_sides}.")
        twin = known.setdefault(hashlib.sha256(image.tobytes()).digest(), path)
        if twin is not path:
            problems.append(f"{path} shows the same as {twin.name}.")
        pictures.append((path, image))
        values_of.append((masks if of_class else mask_path, *mask))
    mapping = classes.ONE
    try:
        values_of = _by_colour_if_needed(values_of)
        seen = [_mask_values(*mask) for mask in values_of]
        mapping = class_folders.find_classes(seen, of_class, names, ignore, masks) if seen else mapping
    except ValueError as error:
        problems.append(str(error))
    folders.refuse(problems, "picture")
    colours = sum(image.shape[-1] == 3 for _, image in pictures)
    if 0 < colours < len(pictures):
        print(f"Not all pictures in {images} are in colour ({colours} of {len(pictures)}): all are used in grey.")
        pictures = [(path, image if image.shape[-1] == 1 else read_picture(path, 1)) for path, image in pictures]
    for sentence, num in Counter(describe_loss(*picture) for picture in pictures).items():
        if sentence:
            print(f"{num} of {len(pictures)} pictures in {images}: {sentence}")
    return [
        Sample(path.name, image, mapping.to_labels(values, path), grey_values.range_of(image, grey_values.STRETCHED))
        for (path, image), (_, values, *_) in zip(pictures, values_of, strict=True)
    ], mapping


def merged(files: dict[int, Path], sides: tuple[int, ...]) -> np.ndarray:
    """The masks of one picture, class -> file, as its labels (*sides), uint8.

    Raises ValueError as `pictures.read_labels` and `class_folders.merge` do, and for a mask of other sides.
    """

    def read(path):
        mask = read_labels(path)
        if mask.shape != sides:
            raise ValueError(f"{path} is {describe_sides(mask.shape)} pixels, its picture {describe_sides(sides)}.")
        return mask

    labels = np.zeros(sides, np.uint8)
    class_folders.merge(files, labels, read)
    return labels


def _by_colour_if_needed(values_of: list[tuple]) -> list[tuple]:
    """Turn masks with palettes into colours, if palettes differ, or if a mask is black and one other colour.

    Each mask is (path, values, kind, palette). Raises ValueError if palettes differ and two numbers of a mask have one
    colour.
    """
    palettes = {palette for *_, palette in values_of if palette}
    numbers = set().union(*(np.unique(values).tolist() for _, values, kind, _ in values_of if kind == "palette"))
    if len(palettes) == 1 and len(numbers) > 2 and all(kind == "palette" for _, _, kind, _ in values_of):
        return values_of
    result = []
    for path, values, kind, palette in values_of:
        if kind == "palette":
            numbers = np.unique(values)
            if len(palettes) > 1 and len(np.unique(in_colours(numbers, palette))) < len(numbers):
                raise ValueError(
                    f"{path} has another palette than other masks, and two of its numbers, of "
                    f"{', '.join(map(str, numbers))}, have one colour: save all masks with one palette."
                )
            values, kind, palette = in_colours(values, palette), "colour", None
        result.append((path, values, kind, palette))
    return result


def _mask_values(path: Path, values: np.ndarray, kind: str, palette) -> classes.MaskValues:
    """The values of a mask, as `find_classes` needs them."""
    from scipy.ndimage import label, maximum_filter, minimum_filter

    counts = _count(values)
    if kind != "grey" or not 2 < len(counts) <= classes.MOST + 2:
        return classes.MaskValues(path, counts, kind, palette)
    one_region_each = all(label(values == value, np.ones((3, 3)))[1] == 1 for value in counts if value)
    soft = _count(values[(minimum_filter(values, 3) < values) & (maximum_filter(values, 3) > values)])
    between = frozenset(value for value in counts if soft[value] >= 0.9 * counts[value])
    return classes.MaskValues(path, counts, kind, palette, one_region_each, between)


def _count(values: np.ndarray) -> Counter:
    present, numbers = np.unique(values, return_counts=True)
    return Counter(dict(zip(present.tolist(), numbers.tolist(), strict=True)))
