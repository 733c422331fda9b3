"""An image or a volume with its mask: what patches are cut from, to train, validate, test and draw."""

import dataclasses
import functools
import math

import numpy as np

from lab.data.grey_values import GreyRange

MOST_PLACES = 2**20  # indices of object voxels that are kept


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture (H, W, C), or a volume (D, H, W, C) in memory or on disk, with its mask."""

    name: str
    image: np.ndarray  # (*sides, C), as stored
    mask: np.ndarray  # (*sides), anything but 0 is object
    grey_range: GreyRange  # of the whole picture, or one for the folder
    spacing: tuple[float, ...] | None = None  # of the voxels' centres along the axes, in mm
    steps: np.ndarray | None = None  # (3, 3) in mm, one axis a column: of a scan whose axes are not at right angles

    @functools.cached_property
    def objects(self) -> np.ndarray:
        """Flat indices of voxels of objects, evenly thinned out to at most MOST_PLACES."""
        places = np.flatnonzero(self.mask)
        return places[:: max(1, math.ceil(len(places) / MOST_PLACES))]

    def prepare(self, patch: np.ndarray) -> np.ndarray:
        """A patch of the image as the network sees it."""
        return self.grey_range.prepare(patch)

    def region(self, place: tuple[slice, ...]) -> "Sample":
        """The part at `place`, with a name that says where it lies."""
        axes = zip("xyz", reversed(place), strict=False)
        where = " ".join(f"{axis} {part.start}-{part.stop - 1}" for axis, part in axes)
        return dataclasses.replace(self, name=f"{self.name} ({where})", image=self.image[place], mask=self.mask[place])
