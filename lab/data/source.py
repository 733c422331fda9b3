"""The data of a training: drawn or read, images or volumes, with the same names for all."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.data.classes import ONE, Classes

Batch = tuple[np.ndarray, np.ndarray]  # images (N, *sides, C) and masks (see `sample.to_masks`), float32


@dataclasses.dataclass(frozen=True)
class Source:
    """The data of one training."""

    name: str  # such as "circles" or "own scans"
    origin: str  # the call that draws the data, or their folder
    batches: Callable[[int], Iterator[Batch]]  # an epoch, from 0 on -> its batches; the same epoch, the same batches
    num_training: int  # images of an epoch
    sides: tuple[int, ...]  # of a training image
    channels: int
    validation: Batch
    test: Any  # (images, masks) of drawn images; a list of samples of own pictures and of volumes
    num_test: int
    preprocessing: dict  # how grey values are prepared, for the model file (see `lab/data/grey_values.py`)
    typical: Callable[[], np.ndarray]  # images (N, *sides, C) like those to predict
    classes: Classes = ONE
    references: Callable[[], dict[str, dict]] | None = None  # scores of methods that know the objects
    raw: Callable[[], Sequence] | None = None  # validation and test with the values of the files, if they differ
    settings: dict = dataclasses.field(default_factory=dict)  # a resumed training must have the same
    files: dict[str, Callable[[Path], object]] = dataclasses.field(default_factory=dict)  # name -> writes it
    remarks: tuple[str, ...] = ()  # sentences for the console
