"""The patch of scans to train on, planned for the time and the memory of a training step."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lab.model import checkpoints, memory
from lab.system import backend, processes

DIVISOR = 8  # of the sides: three poolings of the network halve them
LARGEST = 128  # side of the largest patch: larger ones would take minutes per step
# Voxels of a patch where there is no graphics card: more steps help more than larger patches. White matter in six
# blocks of a brain: 1,350 steps of 24 x 64 x 64 in 5 minutes give a Dice of 0.96 (benchmarks/grey_values.py). On a
# processor without AVX-512 the largest patches, 32 x 128 x 104, took 21 minutes.
MOST_VOXELS = 2**17


def choose_patch(
    build: Callable, samples: list, batch_size: int, optimizer: str, budget_gib: float | None, then: Path | None
) -> tuple[int, ...]:
    """The patch of the training in the folder `then`, if one is resumed, else that of `plan_patch` for the samples.

    Process 0 decides: other processes may have less free memory, or may not see the folder.
    """
    former = checkpoints.settings_of_then(then).get("patch") if then else None
    if former:
        patch = tuple(map(int, re.findall(r"\d+", former)))
    else:
        shape = tuple(np.median([sample.labels.shape for sample in samples], axis=0))
        patch = plan_patch(build, shape, batch_size, optimizer, budget_gib)
    return tuple(json.loads(processes.from_first_process(json.dumps(patch).encode())))


def plan_patch(
    build: Callable, shape: tuple[int, ...], batch_size: int, optimizer: str, budget_gib: float | None = None
) -> tuple[int, ...]:
    """The largest patch that trains within the memory, and is no larger than the scans; prints what was tried.

    Without `budget_gib`, seven tenths of the free memory are taken; without a graphics card, the patch then has at most
    about MOST_VOXELS voxels.

    Args:
        build: sides -> the network of that input size.
        shape: of the scans, in voxels.
        batch_size, optimizer: of a training step.
        budget_gib: memory for a training step.

    Raises:
        ValueError: if not even the smallest patch fits.
    """
    most = LARGEST**3 if budget_gib or backend.accelerators() else MOST_VOXELS
    shape = tuple(np.minimum(shape, longest_side(shape, most)))
    budget = budget_gib or 0.7 * memory.free_memory() / memory.GIB
    patch, tried = memory.largest_patch(build, budget, batch_size, optimizer, backend.processor(), shape, DIVISOR)
    print(f"Memory of a training step of {batch_size} patches; at most {budget:.1f} GiB:")
    for row in tried:
        taken = ", taken" if row["sides"] == patch else "" if row["fits"] else ", too large"
        print(f"  {' x '.join(map(str, row['sides'])):>15} voxels: {row['gib']:5.1f} GiB{taken}", flush=True)
    if patch is None:
        raise ValueError(f"no patch trains within {budget:.2f} GiB; take a larger --memory, or fewer --filters.")
    return patch


def longest_side(shape: tuple[int, ...], most: int) -> int:
    """The longest side of a cube, up to LARGEST, of which at most `most` voxels lie inside a scan of this shape."""
    sides = range(DIVISOR, LARGEST + 1, DIVISOR)
    return max(side for side in sides if side == sides[0] or np.minimum(shape, side).prod() <= most)
