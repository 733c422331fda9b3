"""Scans and masks from disk: NIfTI and TIFF stacks, in one orientation, read by parts, written back as they came.

    from lab import volumes
    scan = volumes.open_scan("head.nii.gz")
    patch = scan.voxels[40:88, 40:88, 40:88]                  # (depth, height, width): costs what is cut out
    volumes.write_mask(patch_of_zeros_and_ones, scan, "head_mask.nii.gz")    # laid over the scan without a shift

In memory the axes are (depth, height, width) = NIfTI's (k, j, i), turned so that depth grows towards the head, height
towards the front and width towards the patient's right (RAS+). Voxels stay on disk: a file that is neither compressed
nor scaled is memory-mapped where it lies, any other is unpacked once into a temporary file that goes with the process.
"""

import contextlib
import gzip
import hashlib
import logging
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

NIFTI, TIFF = (".nii.gz", ".nii"), (".tif", ".tiff")
SUFFIXES = NIFTI + TIFF
SLAB = 2**24  # voxels worked on at a time, where a whole scan is looked through
THICK = 2.0  # largest over smallest spacing from which on a scan counts as one of thick slices
MOST_LISTED = 6  # values of a mask that an error names
MILLIMETRES = {
    **dict.fromkeys(("micron", "microns", "micrometer", "um", "\u00b5m", "\u03bcm", "\\u00B5m"), 1e-3),
    **{"nm": 1e-6, "mm": 1.0, "cm": 10.0, "inch": 25.4, "m": 1e3, "meter": 1e3, "unknown": 1.0},
}


class Scan(NamedTuple):
    """A scan or a mask on disk."""

    path: Path
    voxels: np.ndarray  # (D, H, W), a view of the file or of its unpacked copy; the grey values as the file means them
    spacing: tuple[float, float, float] | None  # of the voxels' centres along D, H, W, in mm; None: the file is silent
    affine: np.ndarray | None  # NIfTI: from (k, j, i) to millimetres right, front, up; None: TIFF
    image: object  # NIfTI: nibabel's image, for header and orientation; None: TIFF


class Sample(NamedTuple):
    """A scan of a folder and its mask, on the grid that is trained on."""

    name: str
    image: np.ndarray  # (D, H, W, 1): the scan's voxels, resampled if so wanted
    mask: np.ndarray  # (D, H, W), bool
    spacing: tuple[float, float, float] | None  # of this grid, in mm
    scan: Scan
    objects: np.ndarray = ()  # for lab/patches.py, and filled in by who reads: voxels of objects,
    prepare: Callable | None = None  # and patch of the image -> float32 in [0, 1]


# Reading


def stem(path: Path) -> str:
    """The name without .nii.gz, .nii, .tif or .tiff."""
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)]


def find_scans(folder: Path) -> list[Path]:
    """The scan files directly in `folder`, sorted by name; ValueError if it is no folder or holds none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    if found:
        return found
    if any(_is_dicom(path) for path in files):
        raise ValueError(
            f"{folder} holds DICOM slices; make NIfTI files of them, with `dcm2niix -z y -o NEW_FOLDER {folder}`."
        )
    raise ValueError(f"the folder {folder} holds no scan ({', '.join(SUFFIXES)}).")


def _is_dicom(path):
    with open(path, "rb") as file:
        return path.suffix.lower() in (".dcm", ".ima") or file.read(132)[128:] == b"DICM"


def open_scan(path: Path) -> Scan:
    """Open a NIfTI file or TIFF stack of one grey channel; almost nothing is read until `voxels` is sliced.

    Raises:
        ValueError: if the file is missing, damaged, truncated, of another format, not of three axes, of colours or of
            complex numbers, or has a spacing that is 0 or no number.
    """
    path = Path(path)
    try:
        opened = _open_nifti(path) if path.name.lower().endswith(NIFTI) else _open_tiff(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except _Problem as problem:
        raise ValueError(f"{path} {problem}.") from None
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.errno is None:
            raise ValueError(f"{path} cannot be read as a scan: {_first_line(error)}.") from None
        raise
    except Exception as error:  # whatever a decoder makes of foreign bytes
        raise ValueError(f"{path} cannot be read as a scan: {_first_line(error)}.") from None
    if opened.voxels.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds colours or complex numbers ({opened.voxels.dtype}); save one grey channel.")
    if min(opened.voxels.shape) < 2:
        depth, height, width = opened.voxels.shape
        raise ValueError(f"{path} is a single slice ({width} x {height} x {depth}); a volume was expected.")
    if opened.spacing and not all(math.isfinite(step) and step > 0 for step in opened.spacing):
        shown = " x ".join(f"{step:g}" for step in opened.spacing)
        raise ValueError(f"{path} has a spacing of {shown} mm (depth, height, width); each must be above 0.")
    return opened


class _Problem(Exception):
    """What is wrong with a file: the end of a sentence that begins with its name."""


def _first_line(error):
    return (str(error).strip() or repr(error)).splitlines()[0].removesuffix(".")


def _open_nifti(path):
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise _Problem("is no NIfTI file")
    stored, shape = image.dataobj, image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        advice = "split it into volumes of three" if len(shape) > 3 else "a volume was expected"
        raise _Problem(f"has {len(shape)} axes ({' x '.join(map(str, shape))}); {advice}")
    raw = _mapped(_unpacked(path), stored.dtype, stored.offset, shape, "F")
    if (stored.slope, stored.inter) != (1, 0):
        raw = _scaled(raw, stored.slope, stored.inter)
    unit = MILLIMETRES[image.header.get_xyzt_units()[0]]
    affine = np.diag([unit, unit, unit, 1]) @ image.affine
    spacing = tuple(float(step) for step in nibabel.affines.voxel_sizes(affine))
    if not np.isfinite(affine).all() or min(spacing) == 0:
        return Scan(path, raw.T, spacing[::-1], affine, image)  # is refused for its spacing
    turns = nibabel.io_orientation(affine)
    affine = affine @ nibabel.orientations.inv_ornt_aff(turns, shape)
    voxels = nibabel.apply_orientation(raw, turns).T
    spacing = tuple(float(step) for step in nibabel.affines.voxel_sizes(affine)[::-1])
    return Scan(path, voxels, spacing, affine[:, [2, 1, 0, 3]], image)


def _unpacked(path):
    """The open file; of a .gz a temporary one without a name, which the system deletes with the process."""
    if not path.name.lower().endswith(".gz"):
        return open(path, "rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, file, 2**20)
    except (EOFError, zlib.error) as error:
        raise _Problem(f"is truncated or damaged ({_first_line(error)}); copy it again") from None
    return file


def _mapped(file, dtype, offset, shape, order):
    """The array (*shape) in an open file, which is closed: the map stays."""
    with file:
        size, needed = file.seek(0, os.SEEK_END), offset + math.prod(shape) * np.dtype(dtype).itemsize
        if size < needed:
            raise _Problem(f"is truncated: {size:,} bytes where its header promises {needed:,}; copy it again")
        return np.memmap(file, dtype, "r", offset, shape, order)


def _scaled(raw, slope, inter):
    """float32 copy on disk of a file that stores its grey values as (value - inter) / slope."""
    result = scratch(raw.T.shape, np.float32)
    for region in slabs(result):
        result[region] = raw.T[region] * np.float32(slope) + np.float32(inter)
    return result.T


def _open_tiff(path):
    import tifffile

    if not path.name.lower().endswith(TIFF):
        raise _Problem(f"is no scan ({', '.join(SUFFIXES)})")
    with _complaints(), tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise _Problem(f"holds {len(file.series)} pictures of different sizes; save one stack")
        series = file.series[0]
        if len(series.shape) == 2:
            raise _Problem("is a single picture; a stack of slices was expected")
        if len(series.shape) != 3 or series.axes[0] not in "ZQI" or series.axes[1:] != "YX":
            raise _Problem(
                f"has the axes {series.axes} ({' x '.join(map(str, series.shape))}), where ZYX was expected: save "
                "one channel and one time; if slices are called channels or frames, mend that in ImageJ, Image > "
                "Properties"
            )
        spacing = _tiff_spacing(file)
        if series.dataoffset is None:  # compressed, or scattered over the file
            voxels = series.asarray(out=scratch(series.shape, series.dtype))
        else:
            dtype = series.dtype.newbyteorder(file.byteorder)
            voxels = _mapped(open(path, "rb"), dtype, series.dataoffset, series.shape, "C")  # noqa: SIM115
    return Scan(path, voxels, spacing, None, None)


@contextlib.contextmanager
def _complaints():
    """Take for an error what tifffile only logs as one: a file whose last pages are missing."""
    logger, records = logging.getLogger("tifffile"), []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        if records:
            raise _Problem(f"is damaged or cut off ({_first_line(records[0].getMessage())}); copy it again")


def _tiff_spacing(file):
    """(depth, height, width) in mm, from ImageJ's or OME's metadata; None if neither says."""
    import tifffile

    if file.ome_metadata:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (pixels[0] if isinstance(pixels, list) else pixels)["Pixels"]
        steps = [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"]
        units = [pixels.get(f"PhysicalSize{axis}Unit", "um") for axis in "ZYX"]
    else:
        known, tags = file.imagej_metadata or {}, file.pages[0].tags
        resolution = [tags[name].value if name in tags else (0, 1) for name in ("YResolution", "XResolution")]
        steps = [known.get("spacing"), *(below / above if above else None for above, below in resolution)]
        units = [known.get("unit")] * 3
    if None in steps or any(unit not in MILLIMETRES for unit in units):
        return None
    return tuple(float(step) * MILLIMETRES[unit] for step, unit in zip(steps, units, strict=True))


def scratch(shape: tuple, dtype) -> np.ndarray:
    """A new array on a temporary file without a name: costs disk, not memory; the system deletes it with the process.

    Raises OSError where the disk has no room (the environment variable TMPDIR names another place).
    """
    with tempfile.TemporaryFile() as file:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk kills the process at the first page
        else:
            file.truncate(size)
        return np.memmap(file, dtype, "r+", 0, tuple(shape))


def slabs(voxels: np.ndarray) -> Iterator[slice]:
    """Slices along the first axis that together are the whole, about SLAB voxels each."""
    step = max(1, SLAB // math.prod(voxels.shape[1:]))
    for first in range(0, len(voxels), step):
        yield slice(first, min(first + step, len(voxels)))


def read_mask(path: Path) -> Scan:
    """Open a mask: `voxels` (D, H, W), bool. 0 is background; one other value is the object.

    Raises ValueError as `open_scan` does, and for more values than two: with those that were found.
    """
    opened = open_scan(path)
    mask, found = scratch(opened.voxels.shape, bool), set()
    for region in slabs(mask):
        part = opened.voxels[region]
        mask[region] = part != 0
        objects = part[mask[region]]
        if objects.size and not (objects == objects[0]).all():
            found |= set(np.unique(objects)[: MOST_LISTED + 1].tolist())
        else:
            found |= set(objects[:1].tolist())
    if len(found) > 1:
        listed = ", ".join(f"{value:g}" for value in sorted(found)[:MOST_LISTED])
        more = " and more" if len(found) > MOST_LISTED else ""
        raise ValueError(
            f"{opened.path} is no mask of one object: beside 0 it holds {listed}{more}, where one value was expected; "
            "write a mask of its own for the object that is wanted."
        )
    return opened._replace(voxels=mask)


# Folders to train on


def read_folder(images: Path, masks: Path, spacing: tuple | None = None) -> list[Sample]:
    """Open all scans of a folder with their masks of another, by name (NAME or NAME_mask); the voxels stay on disk.

    Args:
        images: folder of scans.
        masks: folder of masks on the same grids.
        spacing: (depth, height, width) in mm: resample all to it (see `resample`); None leaves every grid as it is.

    Raises:
        ValueError: with all that is wrong, a line each: files without a partner, unreadable ones, masks of another
            grid or of several values, NaN, constant scans, one name twice, one scan twice (it would be trained on and
            tested on), no spacing where resampling needs one.
    """
    if images.resolve() == masks.resolve():
        raise ValueError(f"scans and masks must lie in two folders; both are {images}.")
    samples, problems, known = [], [], {}

    def attempt(function, *arguments):
        try:
            return function(*arguments)
        except ValueError as error:
            problems.append(str(error))

    of_scan, of_mask = ({}, {})
    for found, folder in ((of_scan, images), (of_mask, masks)):
        for path in attempt(find_scans, folder) or []:
            name = stem(path).removesuffix("_mask") if found is of_mask else stem(path)
            if name in found:
                problems.append(f"{path} and {found[name].name} have the same name.")
            found[name] = path
    if of_scan and of_mask:
        problems += [f"{path} has no mask in {masks}." for name, path in of_scan.items() if name not in of_mask]
        problems += [f"{path} has no scan in {images}." for name, path in of_mask.items() if name not in of_scan]
    _allow_open_files(2 * len(of_scan))
    for name in sorted(of_scan.keys() & of_mask.keys()):
        scan, mask = attempt(open_scan, of_scan[name]), attempt(read_mask, of_mask[name])
        if scan is None:
            continue
        twin = known.setdefault(attempt(look_through, scan) or scan.path, scan)
        if twin is not scan:
            problems.append(f"{scan.path} shows the same as {twin.path.name}.")
        if mask is not None:
            attempt(check_same_grid, scan, mask)
        if not problems:
            sample = attempt(_to_grid, scan, mask, spacing)
            samples.append(sample)
    if problems:
        raise ValueError(f"{len(problems)} things are wrong with the scans:\n  " + "\n  ".join(problems))
    return samples


def _allow_open_files(num):
    """Each array on disk keeps a file open; a system may allow a process 1,024 of them, until it asks for more."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, num + 256)), hard))


def look_through(scan: Scan) -> bytes:
    """Read a scan once from end to end; return a digest of its voxels.

    Raises:
        ValueError: if it holds NaN or infinite voxels, or one value only.
    """
    digest, low, high, strange = hashlib.sha256(str(scan.voxels.shape).encode()), math.inf, -math.inf, 0
    for region in slabs(scan.voxels):
        part = np.ascontiguousarray(scan.voxels[region])
        digest.update(part)
        if part.dtype.kind == "f":
            strange += part.size - np.count_nonzero(np.isfinite(part))
        low, high = min(low, part.min()), max(high, part.max())
    if strange:
        raise ValueError(f"{scan.path} holds {strange:,} voxels that are NaN or infinite; replace them, by 0 say.")
    if low == high:
        raise ValueError(f"{scan.path} is constant: every voxel is {low:g}.")
    return digest.digest()


def check_same_grid(scan: Scan, mask: Scan) -> None:
    """Raise ValueError unless each voxel of the mask lies on the scan's, within a tenth of a voxel at the corners."""
    if (scan.affine is None) != (mask.affine is None):
        raise ValueError(f"{mask.path} and {scan.path} must be of one kind, both NIfTI or both TIFF.")
    if scan.voxels.shape != mask.voxels.shape:
        raise ValueError(f"{mask.path} has {_sides(mask.voxels)} voxels, its scan {_sides(scan.voxels)}.")
    if scan.affine is None:
        return
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(scan.voxels.shape) - 1)
    both = [corners @ one.affine[:3, :3].T + one.affine[:3, 3] for one in (scan, mask)]
    shift = np.abs(both[0] - both[1]).max()
    if not shift <= 0.1 * min(scan.spacing):
        raise ValueError(f"{mask.path} lies up to {shift:.3g} mm beside its scan: their affines differ.")


def _sides(voxels):
    return " x ".join(str(side) for side in reversed(voxels.shape))  # width first, as a viewer says it


def _to_grid(scan, mask, spacing):
    shape = grid_shape(scan, spacing)
    picture, truth = resample(scan.voxels, shape), resample(mask.voxels, shape)
    of_grid = scan.spacing and tuple(
        step * old / new for step, old, new in zip(scan.spacing, scan.voxels.shape, shape, strict=True)
    )
    return Sample(scan.path.name, picture[..., None], truth, of_grid, scan)


def describe_grids(samples: list[Sample]) -> list[str]:
    """Sentences on what the scans' grids may do to a training: thick slices, different spacings."""
    said = []
    known = [sample for sample in samples if sample.spacing]
    thick = [sample for sample in known if max(sample.spacing) > THICK * min(sample.spacing)]
    if thick:
        worst = max(thick, key=lambda sample: max(sample.spacing) / min(sample.spacing))
        said.append(
            f"{len(thick)} of {len(samples)} scans have thick slices ({worst.name}: {_millimetres(worst.spacing)}): "
            "patches are not turned out of the slices; between slices the network sees little."
        )
    steps = np.array([sample.spacing for sample in known])
    if len(steps) > 1 and (steps.max(axis=0) > 1.25 * steps.min(axis=0)).any():
        middle = " ".join(f"{step:g}" for step in np.median(steps, axis=0).round(3))
        said.append(f"The scans' spacings differ; --spacing {middle} would bring all to one grid.")
    return said


def _millimetres(spacing):
    return " x ".join(f"{step:.3g}" for step in reversed(spacing)) + " mm"


def common_window(samples: list[Sample]) -> list[float] | None:
    """The grey values that become 0 and 1 in every scan, where grey values mean the same in all; else None.

    They do if zero lies inside the range of grey values, as in CT's Hounsfield units: the percentiles 1 of all scans
    lie below it by more than a twentieth of the range up to the percentile 99. The percentiles of such a scan are air
    and bone; what tells soft tissues apart would be lost between them. The window is three times as wide as the
    objects' grey values (percentiles 1 to 99 over all scans) and has them in its middle: Hounsfield units of 20 to 50,
    the brain's, give -10 to 80.
    """
    values = []
    for sample in samples:
        step = math.ceil((sample.mask.size / 2**20) ** (1 / 3))
        thinned, inside = (array[::step, ::step, ::step] for array in (sample.image[..., 0], sample.mask))
        low, high = np.percentile(thinned, [1, 99])
        if low >= -0.05 * (high - low):
            return None
        values.append(thinned[inside])
    values = np.concatenate(values)
    low, high = np.percentile(values, [1, 99]) if values.size else (0, 0)
    return [float(2 * low - high), float(2 * high - low)] if high > low else None


# Resampling


def grid_shape(scan: Scan, spacing: tuple | None) -> tuple[int, int, int]:
    """The voxels along (depth, height, width) of the scan's field of view at `spacing`; None: those it has.

    Raises ValueError if the scan does not say its own spacing.
    """
    if spacing is None:
        return scan.voxels.shape
    if scan.spacing is None:
        raise ValueError(f"{scan.path} does not say its spacing, from which --spacing would resample it.")
    sides = zip(scan.voxels.shape, scan.spacing, spacing, strict=True)
    return tuple(max(2, round(length * old / new)) for length, old, new in sides)


def resample(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same field of view (D, H, W) at another number of voxels, on disk; the same array where the number is equal.

    Voxel o of n lies at (o + 1/2) / n of the field of view. Images and probabilities are interpolated linearly in
    float32, masks (bool) take the nearest voxel. In memory is a slab at a time.
    """
    from scipy.ndimage import affine_transform

    if tuple(shape) == voxels.shape:
        return voxels
    dtype, order = (np.uint8, 0) if voxels.dtype == bool else (np.float32, 1)
    result = scratch(shape, dtype)
    scale = np.array(voxels.shape) / shape
    for region in slabs(result):
        first, last = (np.array([region.start, region.stop - 1]) + 0.5) * scale[0] - 0.5
        lines = slice(max(0, math.floor(first)), math.ceil(last) + 1)
        offset = 0.5 * scale - 0.5
        offset[0] = first - lines.start
        part = np.asarray(voxels[lines], dtype)
        affine_transform(part, scale, offset, output=result[region], order=order, mode="nearest")
    return result.view(bool) if order == 0 else result


# Predictions


def mask_of(probs: Iterator[np.ndarray], scan: Scan, grid: tuple, threshold: float) -> np.ndarray:
    """The mask (D, H, W), bool, on the scan's own grid, of probabilities on `grid` that come in slabs (d, H, W, 1)."""
    kept, line = scratch(grid, np.float32), 0
    for slab in probs:
        kept[line : line + len(slab)] = slab[..., 0]
        line += len(slab)
    kept = resample(kept, scan.voxels.shape)
    mask = scratch(kept.shape, bool)
    for region in slabs(mask):
        mask[region] = kept[region] >= threshold
    return mask


def write_mask(mask: np.ndarray, scan: Scan, path: Path) -> None:
    """Write a mask (D, H, W) as the scan's file is: its axes, orientation, affine and header; 0 and 1 (TIFF: 255)."""
    if scan.image is None:
        import tifffile

        options = {"metadata": {"axes": "ZYX"}}
        if scan.spacing:
            depth, height, width = (step * 1e3 for step in scan.spacing)
            options["metadata"] |= {"spacing": depth, "unit": "micron"}
            options["resolution"] = (1 / width, 1 / height)
        tifffile.imwrite(path, mask.astype(np.uint8) * np.uint8(255), imagej=True, **options)
        return
    import nibabel

    turns = nibabel.io_orientation(scan.image.affine)
    back = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], turns)
    stored = nibabel.apply_orientation(mask.view(np.uint8).T, back).reshape(scan.image.shape)
    header = scan.image.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"], header["cal_max"] = 0, 1  # else a viewer shows it with the scan's contrast
    type(scan.image)(stored, scan.image.affine, header).to_filename(path)


def three_views(mask: np.ndarray, spacing: tuple | None = None) -> dict[str, tuple]:
    """Three orthogonal slices through the middle of what `mask` (D, H, W) marks, or of the volume if it marks nothing.

    Returns:
        For "axial", "coronal" and "sagittal" what a volume is indexed with to give the slice, head or front upwards,
        and the height of its pixels over their width.
    """
    centre = []
    for axis, side in enumerate(mask.shape):
        counts = np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
        centre.append(int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) if counts.any() else side // 2)
    depth, height, width = spacing or (1, 1, 1)
    whole, turned = slice(None), slice(None, None, -1)
    return {
        "axial": ((centre[0], turned, whole), height / width),
        "coronal": ((turned, centre[1], whole), depth / width),
        "sagittal": ((turned, whole, centre[2]), depth / height),
    }
