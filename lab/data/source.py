"""The data of a training: drawn or read, images or volumes, with the same names for all."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.data import grey_values, patches, splits
from lab.data.classes import ONE, Classes

TRAIN, VALIDATION, TEST, TYPICAL = range(4)  # streams of the seed: sets that share no image
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
    typical: Callable[[], np.ndarray] | None = None  # see `typical_images`
    # How grey values are prepared, for the model file; drawn ones are as they are (see `lab/data/grey_values.py`).
    preprocessing: dict = dataclasses.field(default_factory=lambda: dict(grey_values.ABSOLUTE))
    classes: Classes = ONE
    references: Callable[[Any], dict[str, dict]] | None = None  # test -> scores of methods that know the objects
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

    def typical_images(self) -> np.ndarray:
        """Images (N, *sides, C) like those to predict: `typical`, or else those of the first 32 batches."""
        first = itertools.islice(self.batches(0), 32)
        return self.typical() if self.typical else np.concatenate([images for images, _ in first])

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


def own_data(
    parts: dict[str, list],
    classes: Classes,
    sides: tuple[int, ...],
    num_validation: int,
    plot_dataset: Callable,
    *,
    settings: dict,
    remarks: Sequence[str],
) -> dict[str, Any]:
    """Fields of the Source of a user's own pictures or scans: what validates and tests, what is said and recorded.

    Args:
        parts: training, validation and test samples (see `splits`), with the grey ranges of `grey_values.settle`.
        classes: of the samples.
        sides, num_validation: of the patches to validate on, and at most so many.
        plot_dataset: samples, path, classes -> writes the picture that shows them.
        settings, remarks: of the Source; those of the parts and the classes are added here.
    """

    def grid(samples):
        return patches.grid_patches(samples, sides, num_validation, classes.num)

    validation = grid(parts["validation"])
    about_parts, about_classes = splits.describe_parts(parts, validation[1]), splits.describe_classes(parts, classes)
    return {
        "validation": validation,
        "test": parts["test"],
        "classes": classes,
        "raw": lambda: (grid(grey_values.raw(parts["validation"])), grey_values.raw(parts["test"])),
        "settings": {"data": splits.describe(parts), **settings, **classes.settings()},
        "files": splits.files(parts, functools.partial(plot_dataset, classes=classes)),
        "remarks": (*about_parts, *remarks, *about_classes),
    }
