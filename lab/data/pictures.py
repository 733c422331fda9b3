"""Pictures and masks from disk: single files, and folders to train on.

    from lab.data import pictures
    from lab.evaluate import plots
    image = pictures.read_picture("coins.png")                            # (H, W, 1) or, in colour, (H, W, 3)
    samples, classes = pictures.read_folder(Path("pictures"), Path("masks"))

`lab/data/grey_values.py` defines how grey values are prepared for a network.
"""

import contextlib
import hashlib
import io
import math
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.data import classes, folders, grey_values
from lab.data.folders import describe_sides
from lab.data.sample import Sample
from lab.system.errors import first_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PIXELS = 500_000_000
STRIP = 2**22  # pixels that are converted at a time


# Reading


def find_pictures(folder: Path) -> list[Path]:
    """The picture files directly in `folder`, sorted by name; ValueError if it is no folder or holds none."""
    try:
        names = sorted(folder.iterdir())
        paths = [path for path in names if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
        paths = [path for path in paths if not path.is_dir()]
    except NotADirectoryError:
        raise ValueError(f"{folder} is not a folder.") from None
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be read: {error.strerror}.") from None
    if not paths:
        raise ValueError(f"the folder {folder} holds no picture ({', '.join(SUFFIXES)}).")
    return paths


def open_picture(path: Path):
    """Decode a PNG, JPEG, TIFF or BMP file: a Pillow image, upright as a viewer shows it.

    Raises:
        ValueError: if the file is missing, damaged or of another format, is no regular file, has several pages or
            frames, no pixel, or more than `MAX_PIXELS`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow's limit refuses 16,000 x 16,000
    image = None
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # reading a pipe would wait
            raise ValueError("it is no file, but a folder, a pipe or a device")
        # Pillow maps a file that it opens itself, and then confuses rows and columns of a TIFF that a tag turns.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            problem = _frame_problem(image)
            if problem is None:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return image
    except FileNotFoundError:
        problem = "does not exist"
    except Exception as error:  # foreign bytes may raise any error
        reason = first_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "it is no PNG, JPEG, TIFF or BMP"
            if Path(path).read_bytes()[:4] in TIFF_STARTS:
                reason = "it is a TIFF of numbers that are not supported; save 8 or 16 bits per channel, unsigned"
        again = "; it is damaged or cut off: copy the file again" if image else ""
        problem = f"cannot be read as a picture: {reason.removesuffix('.')}{again}"
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    raise ValueError(f"{path} {problem}.")


def _frame_problem(image) -> str | None:
    """The reason not to decode an opened picture, None if there is none."""
    pixels = math.prod(image.size)
    if not 0 < pixels <= MAX_PIXELS:
        return f"has {pixels:,} pixels, where 1 to {MAX_PIXELS:,} can be read; cut it into parts"
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # telephones put a preview behind the picture
        what = "pages" if image.format == "TIFF" else "frames"
        return f"holds {frames} {what}; save each as a file of its own"
    return None


def read_picture(path: Path, channels: int | None = None) -> np.ndarray:
    """Read a picture: (H, W, 1) if it is grey, (H, W, 3) if it is in colour, or with `channels` channels.

    uint8, uint16 or float32, as in the file; `describe_loss` says what is lost. Transparent parts become black. A
    picture whose three colours are the same everywhere is grey. With `channels=1`, colours become luma,
    0.299 R + 0.587 G + 0.114 B (ITU-R 601); with `channels=3`, grey is repeated.

    Raises:
        ValueError: as `open_picture` does, and for values, or a number of channels, that a picture cannot have.
    """
    deep = _read_deep_tiff(Path(path))
    image = open_picture(path) if deep is None else None
    if deep is not None:
        pixels = _checked(path, deep)
        if channels == 1 and pixels.shape[-1] == 3:
            luma = pixels @ np.array([0.299, 0.587, 0.114])
            pixels = (luma if pixels.dtype.kind == "f" else luma.round()).astype(pixels.dtype)[..., None]
        pixels = _grey_if_equal(pixels) if channels is None else pixels
    elif image.mode == "F":
        pixels = _checked(path, np.asarray(image)).astype(np.float32)[..., None]
    elif image.mode.startswith("I"):
        pixels = _checked(path, np.asarray(image), 2**16 - 1).astype(np.uint16)[..., None]
    elif image.mode == "L" and _is_signed(image):
        pixels = _checked(path, np.asarray(image).view(np.int8), 127).view(np.uint8)[..., None]
    elif channels == 1 or image.mode in ("1", "L", "LA", "La"):
        pixels = _decode(image, "L")[..., None]
    else:
        pixels = _decode(image, "RGB")
        pixels = _grey_if_equal(pixels) if channels is None else pixels
    return np.repeat(pixels, 3, axis=-1) if channels == 3 and pixels.shape[-1] == 1 else pixels


def _grey_if_equal(image):
    equal = all(np.array_equal(image[..., 0], image[..., i]) for i in range(image.shape[-1]))
    return np.ascontiguousarray(image[..., :1]) if equal else image


def _read_deep_tiff(path: Path) -> np.ndarray | None:
    """(H, W, 1 or 3) of a TIFF of several channels that Pillow cuts to 8 bits or cannot read; None for all others.

    Raises:
        ValueError: if it has neither one nor three channels, transparency apart.
    """
    try:
        with open(path, "rb") if path.is_file() else io.BytesIO() as file:  # reading a pipe would wait
            if file.read(4) not in TIFF_STARTS:
                return None
        import tifffile

        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            samples = page.samplesperpixel
            photometric, extra = int(page.photometric), [int(kind) for kind in page.extrasamples]
            if (
                len(file.pages) > 1
                or samples == 1
                or photometric not in (1, 2)
                or page.imagewidth * page.imagelength > MAX_PIXELS
            ):
                return None
            alpha = bool(extra and extra[-1])
            colours = samples - alpha - (photometric == 2 and extra == [0])  # RGBX: Pillow ignores X too
            image = None
            if colours in (1, 3):
                read_by_pillow = page.dtype == np.uint8 and (photometric == 2 or colours == 1)
                if read_by_pillow or page.dtype not in (np.uint8, np.uint16, np.float32):
                    return None
                image = page.asarray() if page.planarconfig == 1 else np.moveaxis(page.asarray(), 0, -1)
                orientation = page.tags.valueof(274, default=1)
    except Exception:  # Pillow reports the fault, or reads a file that tifffile cannot
        return None
    if image is None:
        raise ValueError(
            f"{path} has {samples} channels, where 1 (grey), 3 (colour) or 4 (with transparency) can be read; save the "
            "one that shows the objects as a grey picture, or three as RGB (ImageJ: Image > Color > Split Channels)."
        )
    if extra and extra[-1] == 2:  # colours are not multiplied by it yet
        part = image[..., -1:] / (1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max)
        image = (image * part if image.dtype.kind == "f" else (image * part).round()).astype(image.dtype)
    image = image[..., :colours] if orientation <= 4 else image[..., :colours].swapaxes(0, 1)
    return image[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


def describe_loss(path: Path, image: np.ndarray) -> str | None:
    """A sentence if `read_picture` left out a part of the file when it read `image`, else None."""
    from PIL import Image

    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
        with Image.open(path, formats=FORMATS) as opened:
            stored = str(opened.tile)
        if ";16" in stored and image.dtype == np.uint8:
            return "Of 16 bits per channel 8 are read; a grey or RGB TIFF, not compressed or by deflate, keeps all."
        if "RGBX" in stored:
            return "Its fourth channel is left out, because the file does not say what it is."
    return None


def _decode(image, mode: str) -> np.ndarray:
    """The pixels on black: (H, W) of mode "L", (H, W, 3) of "RGB". In strips, so that few copies are in memory."""
    from PIL import Image

    width, height = image.size
    pixels = np.empty((height, width) if mode == "L" else (height, width, 3), np.uint8)
    lines = max(1, STRIP // width)
    for top in range(0, height, lines):
        strip = image.crop((0, top, width, min(top + lines, height)))
        if image.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "black"), strip).convert("RGB")
        pixels[top : top + lines] = np.asarray(strip.convert(mode))
    return pixels


def _is_signed(image) -> bool:
    """Whether a TIFF says that its values are signed: Pillow reads 8 bits as unsigned all the same."""
    return 2 in getattr(image, "tag_v2", {}).get(339, ())  # the tag SampleFormat


def _checked(path, values, maximum=None):
    low, high = values.min(), values.max()
    if maximum is None:
        if not np.isfinite([low, high]).all():
            raise ValueError(f"{path} holds values from {low:g} to {high:g}, where finite numbers were expected.")
        return values
    if not (low >= 0 and high <= maximum):  # also where one is NaN
        raise ValueError(
            f"{path} holds values from {low:g} to {high:g}, where its type should hold 0 to {maximum}; "
            "save it with 8 or 16 bits per pixel, unsigned."
        )
    return values


def read_values(path: Path) -> tuple[np.ndarray, str, tuple[int, ...] | None]:
    """Read a mask: its values (H, W), integers, with their kind and palette as in `classes.Classes`.

    Colours are 0xRRGGBB. Raises ValueError as `open_picture` does, and for values that are no integers.
    """
    image = open_picture(path)
    if image.mode == "P" and not image.has_transparency_data:
        palette = (image.getpalette("RGB") + [0] * 768)[:768]
        return np.asarray(image), "palette", tuple(palette)
    if image.mode in ("1", "F") or image.mode.startswith("I"):
        values = np.asarray(image)
        if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
            raise ValueError(f"{path} is no mask: it holds numbers that are no integers.")
        return values.astype(np.int64 if values.dtype.kind == "f" else values.dtype), "grey", None
    if image.mode == "L" and not image.has_transparency_data:
        return (np.asarray(image).view(np.int8) if _is_signed(image) else np.asarray(image)), "grey", None
    return _as_colours(_decode(image, "RGB")), "colour", None


def _as_colours(colours: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in 8 bits as numbers 0xRRGGBB, uint32."""
    red, green, blue = np.moveaxis(colours, -1, 0)
    return red.astype(np.uint32) << 16 | green.astype(np.uint32) << 8 | blue


def look_at_mask(path: Path, values: np.ndarray, kind: str, palette) -> classes.MaskValues:
    """The values of a mask, as `find_classes` needs them."""
    counts = Counter(dict(zip(*(array.tolist() for array in np.unique(values, return_counts=True)), strict=True)))
    few = kind == "grey" and 2 < len(counts) <= classes.MOST + 2
    if not few:
        return classes.MaskValues(path, counts, kind, palette)
    single = classes.is_one_region_each(values)
    return classes.MaskValues(path, counts, kind, palette, single, classes.values_between(values))


def read_labels(path: Path, known: classes.Classes = classes.ONE) -> np.ndarray:
    """Read a mask as labels (H, W), uint8, of known classes; for one class, black and one other value are allowed.

    Raises ValueError as `read_values` does, and for a value that is no class.
    """
    values, kind, palette = read_values(path)
    if kind == "palette" and (known.kind == "colour" or known.two_valued):
        values, kind = _as_colours(np.array(palette, np.uint8).reshape(256, 3))[values], "colour"
    if known.two_valued:
        present = np.unique(values)
        if np.count_nonzero(present) > 1:
            raise ValueError(
                f"{path} is no mask of one object: it holds {classes.listed(present, kind)}, where 0 and one other "
                "value were expected. Save masks as PNG: JPEG blurs their edges."
            )
    elif (kind == "colour") != (known.kind == "colour"):
        raise ValueError(
            f"{path} holds {'colours' if kind == 'colour' else 'numbers'}, unlike the masks of the training."
        )
    try:
        return known.to_labels(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None


def readable(name: str) -> str:
    """A file's name for terminals, tables and plots: letters that cannot be decoded or printed become "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


# Folders to train on


def read_folder(
    images: Path, masks: Path, names: Sequence[str] | None = None, ignore: int | None = None
) -> tuple[list[Sample], classes.Classes]:
    """Read all pictures of a folder with their masks in another, by name, each with its own grey range.

    If all are in colour, samples have three channels; if one is grey, all are read as grey. Everything stays in memory:
    a byte per pixel and channel, two with 16 bits, and one for the labels. If `masks` holds folders instead of
    pictures, each of them has the masks of one class.

    Args:
        images, masks: the folders.
        names, ignore: see `classes.find_classes`.

    Raises:
        ValueError: with all problems, a line each: files without a partner, unreadable files, different sizes,
            wrong mask values, one name twice, one picture twice (it could be in training and test), no object in any
            mask.
    """
    of_class = class_folders(masks)
    if of_class:
        pairs, problems = pair_class_folders(images, of_class)
    else:
        pairs, problems = folders.pair_by_name(images, masks, find_pictures, "picture")
    items: list[tuple] = []
    known: dict = {}
    for path, mask_path in pairs:
        try:
            image = read_picture(path)
            mask = merge_classes(mask_path, of_class) if of_class else read_values(mask_path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if image.shape[:2] != mask[0].shape:
            sides, mask_sides = map(describe_sides, (image.shape[:2], mask[0].shape))
            problems.append(f"{path} is {sides} pixels, its mask {mask_sides}.")
        twin = known.setdefault(hashlib.sha256(image.tobytes()).digest(), path)
        if twin is not path:
            problems.append(f"{path} shows the same as {twin.name}.")
        items.append((path, image, mask_path, *mask))
    mapping = classes.ONE
    try:
        items = _by_colour_if_needed(items)
        seen = [look_at_mask(mask_path, *mask) for _, _, mask_path, *mask in items]
        if of_class:
            mapping = classes.of_folders([folder.name for folder in of_class], names)
        elif seen:
            mapping = classes.find_classes(seen, names, ignore, masks)
        if seen and not any(set(mask.counts) - {mapping.values[0], mapping.ignore} for mask in seen):
            problems.append(f"all masks in {masks} are empty (black): there is nothing to learn.")
    except ValueError as error:
        problems.append(str(error))
    folders.refuse(problems, "picture")
    colours = sum(image.shape[-1] == 3 for _, image, *_ in items)
    if 0 < colours < len(items):
        print(f"Not all pictures in {images} are in colour ({colours} of {len(items)}): all are used in grey.")
        items = [
            (path, image if image.shape[-1] == 1 else read_picture(path, 1), *mask) for path, image, *mask in items
        ]
    for sentence, num in Counter(describe_loss(path, image) for path, image, *_ in items).items():
        if sentence:
            print(f"{num} of {len(items)} pictures in {images}: {sentence}")
    return [
        Sample(path.name, image, mapping.to_labels(values), grey_values.range_of(image, grey_values.STRETCHED))
        for path, image, _, values, *_ in items
    ], mapping


def _by_colour_if_needed(items: list[tuple]) -> list[tuple]:
    """Turn masks with palettes into colours, if palettes differ, or if a mask is black and one other colour.

    Each item is (path, image, path of the mask, values, kind, palette). Raises ValueError if palettes differ and two
    numbers of a mask have one colour.
    """
    palettes = {palette for *_, palette in items if palette}
    numbers = set().union(*(np.unique(values).tolist() for *_, values, kind, _ in items if kind == "palette"))
    if not palettes or (len(palettes) == 1 and len(numbers) > 2 and all(kind == "palette" for *_, kind, _ in items)):
        return items
    result = []
    for path, image, mask_path, values, kind, palette in items:
        if kind == "palette":
            lookup = _as_colours(np.array(palette, np.uint8).reshape(256, 3))
            used = np.unique(values)
            if len(palettes) > 1 and len(np.unique(lookup[used])) < len(used):
                raise ValueError(
                    f"{mask_path} has another palette than other masks, and two of its numbers, of "
                    f"{', '.join(map(str, used))}, have one colour: save all masks with one palette."
                )
            values, kind, palette = lookup[values], "colour", None
        result.append((path, image, mask_path, values, kind, palette))
    return result


# A folder for each class


def class_folders(masks: Path, find: Callable = find_pictures) -> list[Path]:
    """The folders in `masks`, sorted by name, if it holds no file to read; each has the masks of one class."""
    try:
        find(masks)
        return []
    except ValueError:
        return sorted(path for path in masks.iterdir() if path.is_dir()) if masks.is_dir() else []


def pair_class_folders(images: Path, of_class: list[Path], find: Callable = find_pictures, what: str = "picture"):
    """As `folders.pair_by_name`: each image with the stem of its masks; a folder need not have a mask for each."""
    stems: set[str] = set()
    problems = []
    for folder in of_class:
        files, doubles = folders.by_stem(find(folder), folders.stem_of_mask)
        problems += doubles
        stems |= files.keys()
    of_image, doubles = folders.by_stem(find(images), folders.stem)
    masks = of_class[0].parent
    problems += doubles + [f"{path} has no mask in {masks}." for stem, path in of_image.items() if stem not in stems]
    return [(path, masks / stem) for stem, path in sorted(of_image.items()) if stem in stems], problems


def merge_classes(mask: Path, of_class: list[Path]) -> tuple[np.ndarray, str, None]:
    """The masks of one picture, at most one for each class, merged to values 1 to K (H, W)."""
    merged: Any = None
    owner: dict = {}
    for label, folder in enumerate(of_class, 1):
        files, _ = folders.by_stem(find_pictures(folder), folders.stem_of_mask)
        if mask.name not in files:
            continue
        path = files[mask.name]
        here = read_labels(path) == 1
        merged = np.zeros(here.shape, np.uint8) if merged is None else merged
        if here.shape != merged.shape:
            raise ValueError(
                f"{path} is {describe_sides(here.shape)} pixels, another class {describe_sides(merged.shape)}."
            )
        both = np.argwhere(here & (merged > 0))
        if len(both):
            y, x = both[0]
            raise ValueError(
                f"{path} and {owner[merged[y, x]]} both claim {len(both)} pixels, such as x {x}, y {y}; a pixel has "
                "one class."
            )
        merged[here], owner[label] = label, path
    return merged, "grey", None
