"""Scans to train on and to predict: folders of scans with masks, their grids and grey values.

    from lab.data import volumes
    samples, classes = volumes.read_folder(Path("scans"), Path("masks"), spacing=(1, 1, 1))

Voxels stay on disk (see `lab/data/scans.py`): only the patches that are cut out are read.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lab.data import class_folders, classes, folders, grey_values
from lab.data.folders import describe_sides
from lab.data.sample import Sample
from lab.data.scans import Scan, count_values, find_scans, look_through, open_scan, parts, read_mask, scratch, to_labels

THICK = 2.0  # slices are thick if the largest spacing is more than this times the smallest


def read_folder(
    images: Path,
    masks: Path,
    spacing: tuple | None = None,
    names: Sequence[str] | None = None,
    ignore: int | None = None,
) -> tuple[list[Sample], classes.Classes]:
    """Open all scans of a folder with their masks in another, by name (NAME or NAME_mask); the voxels stay on disk.

    Args:
        images: folder of scans.
        masks: folder of masks on the same grids, or of a folder for each class (see `folders.pair_by_name`).
        spacing: (depth, height, width) in mm: resample all to it (see `resample`); None leaves every grid as it is.
        names, ignore: see `classes.find_classes`.

    Raises:
        ValueError: with all problems, a line each: files without a partner, unreadable files, masks of another grid,
            values that are no classes, NaN, constant scans, one name twice, one scan twice (it could be in training
            and test), no spacing where resampling needs one.
    """
    of_class, pairs, problems = folders.pair_by_name(images, masks, find_scans, "scan")
    triples, seen = [], []
    known: dict = {}

    def attempt(function, *arguments):
        try:
            return function(*arguments)
        except ValueError as error:
            problems.append(str(error))

    _allow_open_files(4 * len(pairs))
    for scan_path, mask_path in pairs:
        scan = attempt(open_scan, scan_path)
        mask = None if of_class else attempt(open_scan, mask_path)
        if scan is None:
            continue
        twin = known.setdefault(attempt(look_through, scan) or scan.path, scan.path)
        if twin is not scan.path:
            problems.append(f"{scan.path} shows the same as {twin.name}.")
        if of_class:
            mask = attempt(merged, mask_path, scan)
        if mask is not None:
            attempt(check_same_grid, scan, mask)
            counts = attempt(count_values, mask)
            seen += [classes.MaskValues(mask.path, counts)] if counts else []
        triples.append((scan, mask, attempt(grid_shape, scan, spacing)))
    mapping = attempt(class_folders.find_classes, seen, of_class, names, ignore, masks) if seen else None
    folders.refuse(problems, "scan")
    return [_to_grid(scan, to_labels(mask, mapping), grid) for scan, mask, grid in triples], mapping


def merged(files: dict[int, Path], scan: Scan) -> Scan:
    """The masks of a scan, class -> file, as one mask whose voxels are labels, on disk.

    Raises ValueError as `scans.read_mask`, `check_same_grid` and `class_folders.merge` do.
    """

    def read(path):
        mask = read_mask(path)
        check_same_grid(scan, mask)
        return mask.voxels

    labels = scratch(scan.voxels.shape, np.uint8)
    class_folders.merge(files, labels, read)
    return scan._replace(voxels=labels)


def _allow_open_files(num):
    """Ask the system for enough open files: each array on disk needs one, and the usual limit is 1,024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, num + 256)), hard))


def check_same_grid(scan: Scan, mask: Scan) -> None:
    """Raise ValueError unless the mask's voxels lie on the scan's, within a tenth of a voxel at the corners."""
    if (scan.affine is None) != (mask.affine is None):
        raise ValueError(f"{mask.path} and {scan.path} must be of one kind, both NIfTI or both TIFF.")
    if scan.voxels.shape != mask.voxels.shape:
        sides, scan_sides = (describe_sides(one.voxels.shape) for one in (mask, scan))
        raise ValueError(f"{mask.path} has {sides} voxels, its scan {scan_sides}.")
    if scan.affine is None:
        return
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(scan.voxels.shape) - 1)
    both = [corners @ one.affine[:3, :3].T + one.affine[:3, 3] for one in (scan, mask)]
    shift = np.abs(both[0] - both[1]).max()
    if not shift <= 0.1 * min(scan.spacing):
        raise ValueError(f"{mask.path} lies up to {shift:.3g} mm beside its scan: their affines differ.")


def _to_grid(scan, mask, grid):
    sides = zip(scan.spacing or (), scan.voxels.shape, grid, strict=False)
    spacing = tuple(step * old / new for step, old, new in sides) or None
    image = resample(scan.voxels, grid)[..., None]
    own_range = grey_values.range_of(grey_values.few_slices(image), grey_values.STRETCHED)
    steps = scan.steps * np.divide(scan.voxels.shape, grid) if scan.sheared else None
    labels, is_oriented = resample(mask.voxels, grid, labels=True), scan.affine is not None and scan.lacks != "affine"
    return Sample(scan.path.name, image, labels, own_range, spacing, steps, is_oriented=is_oriented)


def describe_grids(samples: list[Sample]) -> list[str]:
    """Sentences about grids that may harm a training: thick slices, different spacings."""
    sentences = []
    known: list = [sample for sample in samples if sample.spacing]
    thick = [sample for sample in known if max(sample.spacing) > THICK * min(sample.spacing)]
    if thick:
        worst = max(thick, key=lambda sample: max(sample.spacing) / min(sample.spacing))
        sentences.append(
            f"Slices are thick in {len(thick)} of {len(samples)} scans ({worst.name}: {_millimetres(worst.spacing)}): "
            "patches are not turned out of the slices; between slices the network sees little."
        )
    steps = np.array([sample.spacing for sample in known])
    if len(steps) > 1 and (steps.max(axis=0) > 1.25 * steps.min(axis=0)).any():
        middle = " ".join(f"{step:g}" for step in np.median(steps, axis=0).round(3))
        sentences.append(f"The scans' spacings differ; --spacing {middle} would bring all to one spacing.")
    return sentences


def spacings_of(samples: list[Sample]) -> list[list[float]] | None:
    """The smallest and the largest spacing of scans along each axis, for the model file; None if one is unknown."""
    steps = [sample.spacing for sample in samples]
    return None if None in steps else [np.min(steps, axis=0).tolist(), np.max(steps, axis=0).tolist()]


def describe_spacing(spacing: tuple | None, seen: list | None) -> str | None:
    """A sentence if a scan's spacing is unknown, or more than a tenth outside those of the training, else None."""
    if seen is None:
        return None
    low, high = np.array(seen)
    if spacing and (low <= np.multiply(spacing, 1.1)).all() and (spacing <= high * 1.1).all():
        return None
    trained = " to ".join(dict.fromkeys(map(_millimetres, seen)))
    what = f"are {_millimetres(spacing)}" if spacing else "have a size that the file does not say"
    return (
        f"Its voxels {what}, in training they were {trained}: objects look different to the network; "
        f"resample the scan, or train with --spacing {' '.join(f'{step:.3g}' for step in np.mean(seen, axis=0))}."
    )


def _millimetres(spacing):
    return " x ".join(f"{step:.3g}" for step in reversed(spacing)) + " mm"


# Resampling


def grid_shape(scan: Scan, spacing: tuple | None) -> tuple[int, int, int]:
    """The voxels along (depth, height, width) of the scan's field of view at `spacing`; None: the scan's own.

    Raises ValueError if the scan's spacing is unknown.
    """
    if spacing is None:
        return scan.voxels.shape
    if scan.spacing is None:
        raise ValueError(f"{scan.path} does not say its spacing, which --spacing needs.")
    sides = zip(scan.voxels.shape, scan.spacing, spacing, strict=True)
    return tuple(max(2, round(length * old / new)) for length, old, new in sides)


def resample(voxels: np.ndarray, shape: tuple[int, ...], labels: bool = False) -> np.ndarray:
    """The same field of view (D, H, W) with another number of voxels, on disk; the same array if the number is equal.

    Voxel o of n lies at (o + 1/2) / n of the field of view. Images and probabilities are interpolated linearly in
    float32, labels take the nearest voxel. One slab at a time is in memory.
    """
    from scipy.ndimage import affine_transform

    if tuple(shape) == voxels.shape:
        return voxels
    dtype, order = (np.uint8, 0) if labels else (np.float32, 1)
    result = scratch(shape, dtype)
    scale = np.array(voxels.shape) / shape
    for region in parts(result):
        first, last = (np.array([region.start, region.stop - 1]) + 0.5) * scale[0] - 0.5
        lines = slice(max(0, math.floor(first)), math.ceil(last) + 1)
        offset = 0.5 * scale - 0.5
        offset[0] = first - lines.start
        part = np.asarray(voxels[lines], dtype)
        affine_transform(part, scale, offset, output=result[region], order=order, mode="nearest")
    return result


def onto_own_grid(slabs: Iterator[np.ndarray], scan: Scan, grid: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Slabs (d, H, W, C) of probabilities on `grid`, from the first to the last, as slabs on the scan's own grid."""
    if tuple(grid) == scan.voxels.shape:
        yield from slabs
        return
    whole = collect(slabs, grid)
    channels = [resample(whole[..., channel], scan.voxels.shape) for channel in range(whole.shape[-1])]
    for region in parts(scan.voxels):
        yield np.stack([channel[region] for channel in channels], axis=-1)


def collect(slabs: Iterator[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Slabs of float32 (d, H, W, C) put together, on disk: (*shape, C)."""
    first = next(slabs)
    whole, line = scratch((*shape, first.shape[-1]), np.float32), 0
    for slab in itertools.chain([first], slabs):
        whole[line : line + len(slab)] = slab
        line += len(slab)
    return whole
