"""Pictures and masks from disk: reading, preprocessing, tiles and their blending, folders to train on.

    from lab import pictures
    picture = pictures.read_picture("coins.png")                          # (H, W), uint8, uint16 or float32
    image = pictures.preprocess(picture, *pictures.grey_range(picture, pictures.STRETCHED))   # float32 in [0, 1]

Preprocessing is defined here and nowhere else. Its settings travel inside the model file
(`lab/model_file.py`), so that a network cannot be used with another preprocessing than it was trained with.
"""

import hashlib
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.patches import axis_tiles, cut_tile

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_PIXELS = 500_000_000

# Grey values are divided by the maximum of their type, or stretched: two percentiles of the picture become 0 and 1.
ABSOLUTE = {"version": 1, "grey": "ITU-R 601 luma, transparent is black", "stretch": None}
STRETCHED = {**ABSOLUTE, "stretch": [1, 99]}
QUANTILES = (1, 50, 99)  # percentiles of a picture that are compared with those seen in training


class Sample(NamedTuple):
    """A picture of a folder, its mask, and the grey values that become 0 and 1."""

    name: str
    picture: np.ndarray  # (H, W), as read
    mask: np.ndarray  # (H, W), bool
    low: float
    high: float


# Reading


def find_pictures(folder: Path) -> list[Path]:
    """The picture files directly in `folder`, sorted by name; ValueError if it is no folder or holds none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"the folder {folder} holds no picture ({', '.join(SUFFIXES)}).")
    return found


def open_picture(path: Path):
    """Decode a PNG, JPEG, TIFF or BMP file: a Pillow image, upright as a viewer shows it.

    Raises:
        ValueError: if the file is missing, damaged or of another format, has several pages, no pixel, or more than
            `MAX_PIXELS`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow's would refuse 16,000 x 16,000
    try:
        with Image.open(path, formats=FORMATS) as image:
            problem = _size_problem(image)
            if problem is None:
                return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        problem = "does not exist"
    except Exception as error:  # whatever a decoder makes of foreign bytes
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it is no PNG, JPEG, TIFF or BMP" if unknown else (str(error) or repr(error)).splitlines()[0]
        problem = f"cannot be read as a picture: {reason.removesuffix('.')}"
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    raise ValueError(f"{path} {problem}.")


def _size_problem(image) -> str | None:
    pixels = math.prod(image.size)
    if not 0 < pixels <= MAX_PIXELS:
        return f"has {pixels:,} pixels, where 1 to {MAX_PIXELS:,} can be read; cut it into parts"
    if image.format == "TIFF" and image.n_frames > 1:
        return f"holds {image.n_frames} pages; save each as a file of its own"
    return None


def read_picture(path: Path) -> np.ndarray:
    """Read one grey channel: (H, W), uint8, uint16 or float32 in [0, 1], whatever the file holds.

    Colours become luma 0.299 R + 0.587 G + 0.114 B (ITU-R 601), in 8 bits; transparent parts become black.
    Raises ValueError as `open_picture` does, and for 32-bit values out of range.
    """
    image = _on_black(open_picture(path))
    if image.mode == "F":
        return _checked(path, np.asarray(image), 1).astype(np.float32)
    if image.mode.startswith("I"):
        return _checked(path, np.asarray(image), 2**16 - 1).astype(np.uint16)
    return np.asarray(image.convert("L"))


def _on_black(image):
    from PIL import Image

    if image.has_transparency_data and image.mode != "I;16":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return image


def _checked(path, values, maximum):
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= maximum):  # also where one is NaN
        raise ValueError(
            f"{path} holds values from {low:g} to {high:g}, where its type should hold 0 to {maximum}; "
            "save it with 8 or 16 bits per pixel."
        )
    return values


def read_mask(path: Path) -> np.ndarray:
    """Read a mask: (H, W), bool. Black is background; one other value or colour (1, 255, red, ...) is the object.

    Raises ValueError as `open_picture` does, and for more values than two: with those that were found.
    """
    image = _on_black(open_picture(path))
    if image.mode not in ("1", "L", "F") and not image.mode.startswith("I"):
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.uint32), -1, 0)
        values = red << 16 | green << 8 | blue
        shown = "#{:06x}".format
    else:
        values, shown = np.asarray(image), "{:g}".format
    found = np.unique(values)
    if np.count_nonzero(found) > 1:
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        raise ValueError(
            f"{path} is no mask: it holds {', '.join(shown(value) for value in found[:6])}{more}, where 0 and 1, "
            "0 and 255, or one colour on black were expected. Save masks as PNG: JPEG blurs their edges."
        )
    return values != 0


# Preprocessing


def thin_out(picture: np.ndarray, most: int = 2**20) -> np.ndarray:
    """Every k-th pixel along each axis, about `most` of them: enough for percentiles."""
    step = math.ceil((picture.size / most) ** (1 / picture.ndim))
    return picture[(slice(None, None, step),) * picture.ndim]


def grey_range(picture: np.ndarray, settings: dict) -> tuple[float, float]:
    """The grey values of `picture` that become 0 and 1."""
    maximum = float(np.iinfo(picture.dtype).max) if picture.dtype.kind in "ui" else 1.0
    if settings["stretch"] is None:
        return 0.0, maximum
    low, high = np.percentile(thin_out(picture), settings["stretch"])
    return float(low), float(max(high, low + maximum / 255))  # at least one grey step: a flat picture stays flat


def preprocess(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """clip((picture - low) / (high - low), 0, 1) in float32: what every network here is trained on and fed with."""
    image = picture.astype(np.float32)
    image -= np.float32(low)
    image /= np.float32(high - low)
    return np.clip(image, 0, 1, out=image)


def describe_training(images: np.ndarray, settings: dict) -> dict:
    """What goes into the model file: `settings`, the input size, the range of each of QUANTILES over `images`."""
    found = np.percentile(images, QUANTILES, axis=tuple(range(1, images.ndim)))  # (quantiles, N)
    seen = {f"{q}%": [float(row.min()), float(row.max())] for q, row in zip(QUANTILES, found, strict=True)}
    return {**settings, "size": list(images.shape[1:-1]), "seen": seen}


def describe_strangeness(image: np.ndarray, seen: dict, tolerance: float = 0.05) -> str | None:
    """A sentence if the grey values of a preprocessed picture lie outside what training saw, else None."""
    for (name, (low, high)), value in zip(seen.items(), np.percentile(image, QUANTILES), strict=True):
        if not low - tolerance <= value <= high + tolerance:
            what = {"1%": "darkest 1%", "50%": "median", "99%": "brightest 1%"}[name]
            return (
                f"its grey values lie outside what training saw ({what}: {value:.2f}, in training {low:.2f} to "
                f"{high:.2f}): another exposure, inverted contrast or another kind of picture; "
                "train on pictures like it, or with --varied."
            )
    return None


# Folders to train on


def stem_of_mask(path: Path) -> str:
    """The name of the picture that a mask belongs to: `cell` for cell.png and for cell_mask.png."""
    return path.stem.removesuffix("_mask")


def read_folder(pictures: Path, masks: Path, settings: dict) -> list[Sample]:
    """Read all pictures of a folder with their masks of another, by name.

    Everything stays in memory: a byte per pixel, two with 16 bits, and one for the mask.

    Raises:
        ValueError: with all that is wrong, a line each: files without a partner, unreadable ones, different
            sizes, wrong mask values, one name twice, one picture twice (it would be trained on and tested on).
    """
    if pictures.resolve() == masks.resolve():
        raise ValueError(f"pictures and masks must lie in two folders; both are {pictures}.")
    samples, problems, known = [], [], {}
    of_picture, of_mask = ({}, {})
    for found, folder in ((of_picture, pictures), (of_mask, masks)):
        for path in find_pictures(folder):
            stem = stem_of_mask(path) if found is of_mask else path.stem
            if stem in found:
                problems.append(f"{path} and {found[stem].name} have the same name.")
            found[stem] = path
    problems += [f"{path} has no mask in {masks}." for stem, path in of_picture.items() if stem not in of_mask]
    problems += [f"{path} has no picture in {pictures}." for stem, path in of_mask.items() if stem not in of_picture]
    for stem in sorted(of_picture.keys() & of_mask.keys()):
        try:
            picture, mask = read_picture(of_picture[stem]), read_mask(of_mask[stem])
        except ValueError as error:
            problems.append(str(error))
            continue
        if picture.shape != mask.shape:
            problems.append(f"{of_picture[stem]} is {_sides(picture)} pixels, its mask {_sides(mask)}.")
        twin = known.setdefault(hashlib.sha256(picture.tobytes()).digest(), stem)
        if twin != stem:
            problems.append(f"{of_picture[stem]} shows the same as {of_picture[twin].name}.")
        samples.append(Sample(of_picture[stem].name, picture, mask, *grey_range(picture, settings)))
    if problems:
        raise ValueError(f"{len(problems)} things are wrong with the pictures:\n  " + "\n  ".join(problems))
    return samples


def _sides(picture):
    return f"{picture.shape[1]} x {picture.shape[0]}"


def split(samples: list[Sample], seed: int, share: float = 0.15) -> dict[str, list[Sample]]:
    """Training, validation and test pictures, drawn by `seed`: a `share` for each of the last two, at least one."""
    if len(samples) < 3:
        raise ValueError(f"at least 3 pictures are needed, to train, validate and test on; found {len(samples)}.")
    part = max(1, round(share * len(samples)))
    order = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]
    return {"training": order[2 * part :], "validation": order[:part], "test": order[part : 2 * part]}


def grid_crops(samples: list[Sample], size: int, most: int) -> tuple[tuple[np.ndarray, np.ndarray], list[str]]:
    """Crops that cover every picture, never augmented: (images, masks), (N, size, size, 1) each, and their places.

    Where there are more than `most`, that many of them, evenly spread.
    """
    places = []
    for sample in samples:
        axes = (axis_tiles(length, size, 0) for length in sample.picture.shape)
        places += [(sample, [start for start, _ in place]) for place in itertools.product(*axes)]
    chosen = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
    names = [f"{places[i][0].name}, x {places[i][1][1]}, y {places[i][1][0]}" for i in chosen]
    return _stack([_crop(*places[i], size) for i in chosen]), names


def random_crops(samples: list[Sample], num: int, size: int, seed, augment: bool) -> tuple[np.ndarray, np.ndarray]:
    """Crops to train on: images and masks (num, size, size, 1).

    Every second one holds a pixel of an object, if its picture has any: else small objects are hardly ever seen.
    """
    rng = np.random.default_rng(seed)
    crops = []
    for i in range(num):
        sample = samples[rng.integers(len(samples))]
        room = np.maximum(1, np.array(sample.picture.shape) - size + 1)
        start = rng.integers(room)
        if i % 2 and sample.mask.any():
            pixel = np.array(np.unravel_index(rng.choice(np.flatnonzero(sample.mask)), sample.mask.shape))
            start = np.clip(pixel - rng.integers(size, size=2), 0, room - 1)
        crop = _crop(sample, start, size)
        crops.append(vary(*crop, rng) if augment else crop)
    return _stack(crops)


def vary(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Augment a square image and its mask (H, W): flips, quarter turns, and for the image contrast and brightness."""
    turns, flip = rng.integers(4), rng.integers(2)
    image, mask = (np.rot90(a[:, ::-1] if flip else a, turns) for a in (image, mask))
    contrast, brightness = rng.uniform(0.75, 1.25), rng.uniform(-0.15, 0.15)
    return np.clip((image - 0.5) * contrast + 0.5 + brightness, 0, 1), mask


def _crop(sample, start, size):
    picture, mask = (cut_tile(a, start, (size, size)) for a in (sample.picture, sample.mask))
    return preprocess(picture, sample.low, sample.high), mask


def _stack(crops):
    return tuple(np.stack(arrays)[..., None].astype(np.float32) for arrays in zip(*crops, strict=True))


def plot_dataset(samples: list[Sample], path: Path, most: int = 15) -> None:
    """A page to check one's own data on: examples as the network sees them, the mask outlined, with the figures."""
    from matplotlib.figure import Figure

    samples = sorted(samples, key=lambda sample: sample.name)
    shares = np.array([sample.mask.mean() for sample in samples])
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int))
    columns = min(5, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(2.4 * max(3, columns), 2.7 * lines + 0.9), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, chosen, strict=False):
        sample = samples[i]
        axes.imshow(overlay(preprocess(sample.picture, sample.low, sample.high), sample.mask))
        what = f"{shares[i]:.1%} foreground" if shares[i] else "EMPTY MASK"
        axes.set_title(f"{sample.name[-28:]}\n{_sides(sample.picture)} px, {what}", fontsize=8)
    sides = np.array([sample.picture.shape for sample in samples])
    figure.suptitle(
        f"{len(samples)} pictures, width {sides[:, 1].min()} to {sides[:, 1].max()} px, "
        f"height {sides[:, 0].min()} to {sides[:, 0].max()} px\nforeground {shares.min():.1%} to {shares.max():.1%}, "
        f"empty masks: {np.count_nonzero(shares == 0)}, full masks: {np.count_nonzero(shares == 1)}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (H, W) in [0, 1] with the mask tinted and outlined: (H, W, 3), uint8."""
    from scipy.ndimage import binary_erosion

    mask = mask.astype(bool)
    colors = np.repeat(image[..., None] * 255, 3, axis=2)
    orange = np.array([230, 159, 0], np.float32)
    colors[mask] += 0.25 * (orange - colors[mask])
    colors[mask & ~binary_erosion(mask, np.ones((3, 3)), border_value=1)] = orange
    return colors.astype(np.uint8)
