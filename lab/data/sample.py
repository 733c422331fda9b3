"""An image or a volume with its labels. Patches are cut from it to train, validate, test and draw."""

import dataclasses
import functools
import math

import numpy as np

from lab.data import grey_values
from lab.data.classes import NOT_LABELLED
from lab.data.grey_values import GreyRange

MOST_PLACES = 2**20  # indices of a class's voxels that are kept


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture (H, W, C), or a volume (D, H, W, C) in memory or on disk, with its labels."""

    name: str
    image: np.ndarray  # (*sides, C), as stored
    labels: np.ndarray  # (*sides), uint8: 0 background, 1 to K the classes, 255 not labelled
    grey_range: GreyRange  # of the whole picture, or one for the folder
    spacing: tuple[float, ...] | None = None  # of the voxels' centres along the axes, in mm
    steps: np.ndarray | None = None  # (3, 3) in mm, one axis a column: of a scan whose axes are not at right angles
    is_region: bool = False  # part of a picture; other parts validate or test
    is_oriented: bool = False  # a scan whose axes are known to point to the head, the front and the right

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """How many voxels have each of the labels 0 to 255."""
        counts = np.zeros(256, np.int64)
        for part in self.labels:  # a large scan stays on disk
            counts += np.bincount(part.ravel(), minlength=256)
        return counts

    @property
    def share(self) -> float:
        """The share of the voxels that belongs to a class."""
        return float(self.counts[1:NOT_LABELLED].sum() / self.labels.size)

    @property
    def classes(self) -> list[int]:
        """The classes that it holds, 1 to K."""
        return [label for label in range(1, NOT_LABELLED) if self.counts[label]]

    @functools.cached_property
    def places(self) -> dict[int, np.ndarray]:
        """Flat indices of the voxels of each class that it holds, evenly thinned out to at most MOST_PLACES."""
        all_places = {label: np.flatnonzero(self.labels == label) for label in self.classes}
        return {label: places[:: max(1, math.ceil(len(places) / MOST_PLACES))] for label, places in all_places.items()}

    def prepare(self, patch: np.ndarray) -> np.ndarray:
        """A patch of the image as the network sees it."""
        return self.grey_range.prepare(patch)

    def region(self, place: tuple[slice, ...]) -> "Sample":
        """The part at `place`, with a name that says where it lies."""
        name = f"{self.name} ({describe_place(place)})"
        return dataclasses.replace(self, name=name, image=self.image[place], labels=self.labels[place], is_region=True)


def drawn_samples(images: np.ndarray, labels: np.ndarray) -> list[Sample]:
    """Samples of drawn volumes (N, D, H, W, 1) and their labels; a network sees their grey values as they are."""
    absolute = grey_values.range_of(images[:1], grey_values.ABSOLUTE)
    return [Sample(f"volume {i}", *pair, absolute) for i, pair in enumerate(zip(images, labels, strict=True))]


def describe_place(place: tuple[slice, ...]) -> str:
    """x first, as in a viewer: rows 4 to 7, columns 0 to 9 -> "x 0-9 y 4-7"."""
    axes = zip("xyz", reversed(place), strict=False)
    return " ".join(f"{axis} {part.start}-{part.stop - 1}" for axis, part in axes)


def to_masks(labels: np.ndarray, num_classes: int = 1) -> np.ndarray:
    """The masks for training a network, float32, from labels (N, *sides).

    For one class (N, *sides, 1): 1 for the class, 0 for the background, -1 where nothing is labelled. For K classes
    (N, *sides, K + 1): one channel each, background first; all channels are 0 where nothing is labelled.
    """
    if num_classes > 1:
        return (labels[..., None] == np.arange(num_classes + 1)).astype(np.float32)
    masks = (labels == 1).astype(np.float32)
    masks[labels == NOT_LABELLED] = -1
    return masks[..., None]
