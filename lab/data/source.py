"""The data of a training: drawn or read, images or volumes, with the same names for all."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.data.classes import ONE, Classes
from lab.data.grey_values import ABSOLUTE

Batch = tuple[np.ndarray, np.ndarray]  # images (N, *sides, C) and masks (see `sample.to_masks`), float32


@dataclasses.dataclass(frozen=True)
class Source:
    """The data of one training."""

    name: str  # such as "circles" or "own scans"
    origin: str  # the call that draws the data, or their folder
    batches: Callable[[int], Iterator[Batch]]  # an epoch, from 0 on -> its batches; the same epoch, the same batches
    num_training: int  # images of an epoch
    sides: tuple[int, ...]  # of a training image
    validation: Batch
    test: Any  # (images, masks) of drawn images; a list of samples of own pictures and of volumes
    typical: Callable[[], np.ndarray]  # images (N, *sides, C) like those to predict
    # How grey values are prepared, for the model file; drawn ones are as they are (see `lab/data/grey_values.py`).
    preprocessing: dict = dataclasses.field(default_factory=lambda: dict(ABSOLUTE))
    classes: Classes = ONE
    references: Callable[[], dict[str, dict]] | None = None  # scores of methods that know the objects
    raw: Callable[[], Sequence] | None = None  # validation and test with the values of the files, if they differ
    learning_rate: float = 0.0  # peak step size, where the command line gives none
    settings: dict = dataclasses.field(default_factory=dict)  # beside the flags; a resumed training must have the same
    files: dict[str, Callable[[Path], object]] = dataclasses.field(default_factory=dict)  # name -> writes it
    remarks: tuple[str, ...] = ()  # sentences for the console

    @property
    def channels(self) -> int:
        """Channels of an image: 1 of grey ones, 3 of colour."""
        return self.validation[0].shape[-1]

    @property
    def num_test(self) -> int:
        """Number of test images, pictures or volumes."""
        return len(self.test[0] if isinstance(self.test, tuple) else self.test)

    def describe(self) -> str:
        """What the network sees, such as "circles: trained on 64 x 64 pixels in grey, validated on 128 x 128."."""
        unit, colour = "pixels" if len(self.sides) == 2 else "voxels", "grey" if self.channels == 1 else "colour"
        trained, validated = (" x ".join(map(str, sides)) for sides in (self.sides, self.validation[0].shape[1:-1]))
        return f"{self.name}: trained on {trained} {unit} in {colour}, validated on {validated}."


def image_batches(
    make_images: Callable[..., Batch], num: int, batch_size: int, seed: int, fixed: bool = False
) -> Callable[[int], Iterator[Batch]]:
    """A function epoch -> its batches: new images, or if `fixed` the same images in another order.

    `make_images(num, *stream)` gives (images, masks) of a stream of the seed. New images are in memory batch by batch.
    """
    images = make_images(num) if fixed else None

    def batches(epoch):
        order = np.random.default_rng((seed, epoch)).permutation(num)
        for batch, start in enumerate(range(0, num, batch_size)):
            chosen = order[start : start + batch_size]  # the last batch may be shorter
            yield tuple(array[chosen] for array in images) if images else make_images(len(chosen), epoch, batch)

    return batches
