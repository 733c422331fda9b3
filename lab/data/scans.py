"""Scans and masks as files: NIfTI and TIFF stacks, read by parts in one orientation, written in their own.

    from lab.data import scans
    scan = scans.open_scan("head.nii.gz")
    patch = scan.voxels[40:88, 40:88, 40:88]                  # (depth, height, width): no more is read
    scans.write(mask, scan, "head_mask.nii.gz")               # lies on the scan without a shift

In memory the axes are (depth, height, width) = NIfTI's (k, j, i), turned so that depth grows towards the head, height
towards the front and width towards the patient's right (RAS+). Voxels stay on disk: a file that is neither compressed
nor scaled is memory-mapped, any other is unpacked once into a temporary file, which is deleted with the process.
"""

import contextlib
import gzip
import hashlib
import logging
import math
import os
import shutil
import stat
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab.data.classes import MOST, ONE, Classes, listed
from lab.data.folders import count, describe_sides, find_files
from lab.system.errors import first_line

NIFTI, TIFF = (".nii.gz", ".nii"), (".tif", ".tiff")
SUFFIXES = NIFTI + TIFF
SLAB = 2**24  # voxels at a time, where a whole scan is read
MILLIMETRES = {
    **dict.fromkeys(("micron", "microns", "micrometer", "um", "\u00b5m", "\u03bcm", "\\u00B5m"), 1e-3),
    **{"nm": 1e-6, "mm": 1.0, "cm": 10.0, "inch": 25.4, "m": 1e3, "meter": 1e3},
}


class Scan(NamedTuple):
    """A scan or a mask on disk."""

    path: Path
    voxels: np.ndarray  # (D, H, W), a view of the file or of its unpacked copy; scaled grey values
    spacing: tuple[float, ...] | None  # of the voxels' centres along D, H, W, in mm; None: not in the file
    affine: np.ndarray | None  # NIfTI: from (k, j, i) to millimetres right, front, up; None: TIFF
    image: Any  # NIfTI: nibabel's image, for header and orientation; None: TIFF

    @property
    def lacks(self) -> str | None:
        """The entry that the file lacks for a volume in millilitres: "unit", "affine" (in NIfTI), or None."""
        if self.image is None:
            return None if self.spacing else "unit"
        header = self.image.header
        has_affine = header["sform_code"] or header["qform_code"]
        return "affine" if not has_affine else "unit" if header.get_xyzt_units()[0] == "unknown" else None

    @property
    def sheared(self) -> bool:
        """Whether the axes are not at right angles, as after a tilted gantry."""
        return self.affine is not None and self._determinant < 0.9999 * math.prod(self.spacing)

    @property
    def steps(self) -> tuple | np.ndarray | None:
        """The steps along the axes, for distances: the spacing, or for sheared axes (3, 3) in mm, one a column."""
        return self.affine[:3, :3] if self.sheared else self.spacing

    @property
    def voxel(self) -> float | None:
        """The volume of a voxel in mm^3: the product of the spacing, for sheared axes |det|; None without spacing."""
        return self._determinant if self.sheared else math.prod(self.spacing) if self.spacing else None

    @property
    def _determinant(self):
        return abs(float(np.linalg.det(self.affine[:3, :3])))


def suffix_of(path: Path) -> str:
    """.nii.gz, .nii, .tif or .tiff, as it is written; "" for other names."""
    length = next((len(suffix) for suffix in SUFFIXES if path.name.lower().endswith(suffix)), 0)
    return path.name[len(path.name) - length :]


def find_scans(folder: Path) -> list[Path]:
    """The scan files directly in `folder`, sorted by name; ValueError if it is no folder or holds none."""
    try:
        return find_files(folder, SUFFIXES, "scan")
    except ValueError:
        if folder.is_dir() and any(_is_dicom(path) for path in folder.iterdir() if path.is_file()):
            command = f"dcm2niix -z y -o NEW_FOLDER {folder}"
            raise ValueError(f"{folder} holds DICOM slices; make NIfTI files of them, with `{command}`.") from None
        raise


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
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait
            raise _Problem("is no file, but a folder, a pipe or a device")
        opened = _open_nifti(path) if path.name.lower().endswith(NIFTI) else _open_tiff(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except _Problem as problem:
        raise ValueError(f"{path} {problem}.") from None
    except Exception as error:  # foreign bytes may raise any error
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is full, or its owner forbids to read
        raise ValueError(f"{path} cannot be read as a scan: {_reason(error)}.") from None
    if opened.voxels.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds colours or complex numbers ({opened.voxels.dtype}); save one grey channel.")
    if min(opened.voxels.shape) < 2:
        raise ValueError(f"{path} is a single slice ({describe_sides(opened.voxels.shape)}); a volume was expected.")
    if opened.spacing and not all(math.isfinite(step) and step > 0 for step in opened.spacing):
        shown = " x ".join(f"{step:g}" for step in opened.spacing)
        raise ValueError(f"{path} has a spacing of {shown} mm (depth, height, width); each must be above 0.")
    return opened


class _Problem(Exception):
    """A fault of a file: the end of a sentence that begins with the file's name."""


def _reason(error):
    return first_line(error).removesuffix(".")  # it becomes part of a sentence


def _open_nifti(path):
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise _Problem("is no NIfTI file")
    stored: Any = image.dataobj
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        sides = " x ".join(map(str, shape))
        raise _Problem(f"has {len(shape)} axes ({sides}), where a volume of three was expected; split it, or stack it")
    raw = _mapped(_unpacked(path), stored.dtype, stored.offset, shape, "F")
    if (stored.slope, stored.inter) != (1, 0):  # the file stores grey values as (value - inter) / slope
        scaled = scratch(raw.T.shape, np.float32)
        for region in parts(scaled):
            scaled[region] = raw.T[region] * np.float32(stored.slope) + np.float32(stored.inter)
        raw = scaled.T
    unit = MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    affine = np.diag([unit, unit, unit, 1]) @ image.affine
    spacing = tuple(float(step) for step in nibabel.affines.voxel_sizes(affine))
    if not np.isfinite(affine).all() or min(spacing) == 0:
        return Scan(path, raw.T, spacing[::-1], affine, image)  # `open_scan` refuses its spacing
    turns = nibabel.io_orientation(affine)
    affine = affine @ nibabel.orientations.inv_ornt_aff(turns, shape)
    voxels = nibabel.apply_orientation(raw, turns).T
    spacing = tuple(float(step) for step in nibabel.affines.voxel_sizes(affine)[::-1])
    return Scan(path, voxels, spacing, affine[:, [2, 1, 0, 3]], image)


def _unpacked(path):
    """The open file; for a .gz a temporary file without a name, which the system deletes with the process."""
    if not path.name.lower().endswith(".gz"):
        return open(path, "rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, file, 2**20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _Problem(f"is truncated or damaged ({_reason(error)}); copy it again") from None
    return file


def _mapped(file, dtype, offset, shape, order):
    """Map the array (*shape) of an open file, and close the file: the map stays."""
    with file:
        size, needed = file.seek(0, os.SEEK_END), offset + math.prod(shape) * np.dtype(dtype).itemsize
        if size < needed:
            raise _Problem(f"is truncated: {size:,} bytes where its header promises {needed:,}; copy it again")
        return np.memmap(file, dtype, "r", offset, shape, order)


def _open_tiff(path):
    import tifffile

    if not path.name.lower().endswith(TIFF):
        raise _Problem(f"is no scan ({', '.join(SUFFIXES)})")
    with _complaints(), tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise _Problem(f"holds {len(file.series)} pictures of different sizes; save one stack")
        series = file.series[0]
        if len(series.shape) != 3 or series.axes[0] not in "ZQI" or series.axes[1:] != "YX":
            raise _Problem(
                f"has the axes {series.axes} ({' x '.join(map(str, series.shape))}), where ZYX was expected: save one "
                "channel and one time; ImageJ's Image > Properties mends slices that are called channels or frames"
            )
        spacing = tiff_spacing(file)
        if series.dataoffset is None:  # compressed, or scattered over the file
            voxels = series.asarray(out=scratch(series.shape, series.dtype))
        else:
            dtype = series.dtype.newbyteorder(file.byteorder)
            voxels = _mapped(open(path, "rb"), dtype, series.dataoffset, series.shape, "C")  # noqa: SIM115
    return Scan(path, voxels, spacing, None, None)


@contextlib.contextmanager
def _complaints():
    """Raise an error that tifffile only logs: the last pages of a file are missing."""
    logger = logging.getLogger("tifffile")
    records: list = []
    handler: Any = logging.Handler(logging.ERROR)
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        if records:
            raise _Problem(f"is damaged or cut off ({_reason(records[0].getMessage())}); copy it again")


def tiff_spacing(file, axes: str = "ZYX") -> tuple[float, ...] | None:
    """The steps along the axes of an open `tifffile.TiffFile` in mm, from ImageJ's or OME's metadata; None without."""
    import tifffile

    if file.ome_metadata:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (pixels[0] if isinstance(pixels, list) else pixels)["Pixels"]
        steps = [pixels.get(f"PhysicalSize{axis}") for axis in axes]
        units = [pixels.get(f"PhysicalSize{axis}Unit", "um") for axis in axes]
    else:
        known, tags = file.imagej_metadata or {}, file.pages[0].tags
        resolution = {axis: tags.valueof(f"{axis}Resolution", default=(0, 1)) for axis in "YX"}
        of_axis = {axis: below / above if above else None for axis, (above, below) in resolution.items()}
        steps = [known.get("spacing") if axis == "Z" else of_axis[axis] for axis in axes]
        units = [known.get("unit")] * len(axes)
    if None in steps or any(unit not in MILLIMETRES for unit in units):
        return None
    return tuple(float(step) * MILLIMETRES[unit] for step, unit in zip(steps, units, strict=True))


def scratch(shape: tuple, dtype) -> np.ndarray:
    """A new array in a temporary file without a name, on disk and not in memory; it is deleted with the process.

    Raises OSError if the disk is full (the environment variable TMPDIR names another place).
    """
    with tempfile.TemporaryFile() as file:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk kills the process at the first page
        else:
            file.truncate(size)
        return np.memmap(file, dtype, "r+", 0, tuple(shape))


def parts(voxels: np.ndarray) -> Iterator[slice]:
    """Slices along the first axis, about SLAB voxels each, that cover the whole array."""
    step = max(1, SLAB // math.prod(voxels.shape[1:]))
    for first in range(0, len(voxels), step):
        yield slice(first, min(first + step, len(voxels)))


def count_values(mask: Scan) -> Counter:
    """How many voxels of a mask have each value, counted slab by slab.

    Raises ValueError for numbers that are no integers. The count stops at ten times more values than classes can have.
    """
    counts: Counter = Counter()
    for region in parts(mask.voxels):
        values, numbers = np.unique(mask.voxels[region], return_counts=True)
        if not (np.isfinite(values).all() and (values == np.round(values)).all()):
            raise ValueError(f"{mask.path} is no mask: it holds numbers that are no integers, as after smoothing.")
        counts.update({int(value): int(num) for value, num in zip(values, numbers, strict=True)})
        if len(counts) > 10 * MOST:
            break
    return counts


def to_labels(mask: Scan, known: Classes) -> Scan:
    """The mask with labels (D, H, W), uint8, as its voxels, on disk; ValueError for a value that is no class."""
    labels = scratch(mask.voxels.shape, np.uint8)
    for region in parts(labels):
        labels[region] = known.to_labels(np.asarray(mask.voxels[region]), mask.path)
    return mask._replace(voxels=labels)


def read_mask(path: Path, known: Classes = ONE) -> Scan:
    """Open a mask of known classes: `voxels` are labels. For one class, 0 and one other value are allowed.

    Raises ValueError as `open_scan` and `to_labels` do, and for more than two values if there is one class.
    """
    opened = open_scan(path)
    values = sorted(count_values(opened).keys() - {0})
    if known.two_valued and len(values) > 1:
        raise ValueError(
            f"{opened.path} is no mask of one object: beside 0 it holds {listed(values)}, where one value was "
            "expected; write a mask that holds only the wanted object."
        )
    return to_labels(opened, known)


def look_through(scan: Scan) -> bytes:
    """Read a scan once from end to end; return a digest of its voxels.

    Raises:
        ValueError: if it holds NaN or infinite voxels, or one value only.
    """
    digest, low, high, strange = hashlib.sha256(str(scan.voxels.shape).encode()), math.inf, -math.inf, 0
    for region in parts(scan.voxels):
        part = np.ascontiguousarray(scan.voxels[region])
        digest.update(part.data)
        if part.dtype.kind == "f":
            strange += part.size - np.count_nonzero(np.isfinite(part))
        low, high = min(low, part.min()), max(high, part.max())
    if strange:
        raise ValueError(f"{scan.path} holds {count(int(strange), 'voxel')} of NaN or infinity; replace them by 0.")
    if low == high:
        raise ValueError(f"{scan.path} is constant: every voxel is {low:g}.")
    return digest.digest()


def write(array: np.ndarray, scan: Scan, path: Path) -> None:
    """Write a mask or probabilities (D, H, W) with the axes, orientation, affine and header of the scan's file.

    bool becomes 0 and 1, in a TIFF file 0 and 255; other types stay.
    """
    if scan.image is None:
        import tifffile

        options: dict = {"metadata": {"axes": "ZYX"}}
        if scan.spacing:
            depth, height, width = (step * 1e3 for step in scan.spacing)
            options["metadata"] |= {"spacing": depth, "unit": "micron"}
            options["resolution"] = (1 / width, 1 / height)
        array = array.astype(np.uint8) * np.uint8(255) if array.dtype == bool else array
        tifffile.imwrite(path, array, imagej=True, **options)
        return
    import nibabel

    array = array.view(np.uint8) if array.dtype == bool else array
    turns = nibabel.io_orientation(scan.image.affine)
    back = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], turns)
    stored = nibabel.apply_orientation(array.T, back).reshape(scan.image.shape)
    header = scan.image.header.copy()
    header.set_data_dtype(array.dtype)
    header["cal_min"], header["cal_max"] = 0, 0  # not the scan's contrast; with 0 and 0 a viewer chooses it
    type(scan.image)(stored, scan.image.affine, header).to_filename(path)
