"""Masks in a folder for each class: 0 and one other value, by class in folders that have the names of the classes.

class_folders.merge(files, labels, read)  # of one image: {1: masks/liver/a.nii, 2: masks/spleen/a.nii} -> labels
known = class_folders.find_classes(seen, ["liver", "spleen"], folder=Path("masks"))
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lab.data import classes
from lab.data.scans import parts


def merge(files: dict[int, Path], labels: np.ndarray, read: Callable[[Path], np.ndarray]) -> None:
    """Write the masks of one image into its labels, slab by slab.

    Args:
        files: class -> its mask.
        labels: (*sides), uint8, 0 before; in memory or on disk.
        read: a file -> its mask (*sides), 1 for the object and 0 elsewhere.

    Raises:
        ValueError: as `read` does, and if two classes claim one pixel or voxel.
    """
    for label, path in files.items():
        mask = read(path)
        for region in parts(labels):
            here, before = mask[region] == 1, labels[region]
            both = here & (before > 0)
            if both.any():
                first = np.unravel_index(both.argmax(), both.shape)
                place = np.add(first, [region.start] + [0] * (labels.ndim - 1))
                shown = ", ".join(f"{axis} {index}" for axis, index in zip("xyz", reversed(place), strict=False))
                what = "pixel" if labels.ndim == 2 else "voxel"
                raise ValueError(
                    f"{files[int(before[first])]} and {path} both claim the {what} {shown}: it has one class."
                )
            before[here] = label


def find_classes(
    masks: Sequence[classes.MaskValues],
    of_class: list[str],
    names: Sequence[str] | None = None,
    ignore: int | None = None,
    folder: Path = Path(),
) -> classes.Classes:
    """The classes of a folder of masks, by its folders `of_class` or, without them, by `classes.find_classes`.

    Raises ValueError as that does, if `names` are not those of the folders, and if no mask holds an object.
    """
    if of_class:
        if names is not None and list(names) != of_class:
            raise ValueError(f"the folders of masks name the classes {', '.join(of_class)}; leave --classes out.")
        if len(of_class) > classes.MOST:
            raise ValueError(f"at most {classes.MOST} classes are possible; got {len(of_class)} folders of masks.")
        classes.check_names(of_class)
        known = classes.Classes(tuple(of_class), tuple(range(len(of_class) + 1)))
    else:
        known = classes.find_classes(masks, names, ignore, folder)
    if not any(mask.counts.keys() - {known.values[0], known.ignore} for mask in masks):
        raise ValueError(f"all masks in {folder} are empty: there is nothing to learn.")
    return known
