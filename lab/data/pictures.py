"""Pictures and masks from disk: reading, folders to train on, pages to look at.

    from lab.data import pictures
    from lab.evaluate import plots
    image = pictures.read_picture("coins.png")                            # (H, W, 1) or, in colour, (H, W, 3)
    samples, classes = pictures.read_folder(Path("pictures"), Path("masks"))

What a network sees of the grey values is defined in `lab/data/grey_values.py`.
"""

import hashlib
import math
import stat
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
        found = [path for path in names if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
        found = [path for path in found if not path.is_dir()]
    except NotADirectoryError:
        raise ValueError(f"{folder} is not a folder.") from None
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be read: {error.strerror}.") from None
    if not found:
        raise ValueError(f"the folder {folder} holds no picture ({', '.join(SUFFIXES)}).")
    return found


def open_picture(path: Path):
    """Decode a PNG, JPEG, TIFF or BMP file: a Pillow image, upright as a viewer shows it.

    Raises:
        ValueError: if the file is missing, damaged or of another format, is no regular file, has several pages or
            frames, no pixel, or more than `MAX_PIXELS`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow's would refuse 16,000 x 16,000
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
            raise ValueError("it is no file, but a folder, a pipe or a device")
        # Pillow maps a file that it opens itself, and takes a TIFF's rows that a tag turns for columns.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            problem = _frame_problem(image)
            if problem is None:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return image
    except FileNotFoundError:
        problem = "does not exist"
    except Exception as error:  # whatever a decoder makes of foreign bytes
        reason = first_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "it is no PNG, JPEG, TIFF or BMP"
            if Path(path).read_bytes()[:4] in TIFF_STARTS:
                reason = "it is a TIFF of numbers that are not supported; save 8 or 16 bits per channel, unsigned"
        problem = f"cannot be read as a picture: {reason.removesuffix('.')}"
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    raise ValueError(f"{path} {problem}.")


def _frame_problem(image) -> str | None:
    """What forbids to decode an opened picture."""
    pixels = math.prod(image.size)
    if not 0 < pixels <= MAX_PIXELS:
        return f"has {pixels:,} pixels, where 1 to {MAX_PIXELS:,} can be read; cut it into parts"
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # telephones put a preview behind the picture
        what = "pages" if image.format == "TIFF" else "frames"
        return f"holds {frames} {what}; save each as a file of its own"
    return None


def read_picture(path: Path, channels: int | None = None) -> np.ndarray:
    """Read a picture: (H, W, 1) if it is grey, (H, W, 3) if it is in colour, or with as many `channels` as are wanted.

    uint8, uint16 or float32 in [0, 1], whatever the file holds; colours in 8 bits. Transparent parts become black. A
    picture whose three colours are the same everywhere is grey. With `channels=1`, colours become luma,
    0.299 R + 0.587 G + 0.114 B (ITU-R 601); with `channels=3`, grey is repeated.

    Raises:
        ValueError: as `open_picture` does, and for values that a picture cannot have.
    """
    image = open_picture(path)
    if image.mode == "F":
        found = _checked(path, np.asarray(image), 1).astype(np.float32)[..., None]
    elif image.mode.startswith("I"):
        found = _checked(path, np.asarray(image), 2**16 - 1).astype(np.uint16)[..., None]
    elif image.mode == "L" and _is_signed(image):
        found = _checked(path, np.asarray(image).view(np.int8), 127).view(np.uint8)[..., None]
    elif channels == 1 or image.mode in ("1", "L", "LA", "La"):
        found = _decode(image, "L")[..., None]
    else:
        found = _decode(image, "RGB")
        if channels is None and all(np.array_equal(found[..., 0], found[..., i]) for i in (1, 2)):
            found = np.ascontiguousarray(found[..., :1])
    return np.repeat(found, 3, axis=-1) if channels == 3 and found.shape[-1] == 1 else found


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


def _checked(path, values, maximum):
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= maximum):  # also where one is NaN
        raise ValueError(
            f"{path} holds values from {low:g} to {high:g}, where its type should hold 0 to {maximum}; "
            "save it with 8 or 16 bits per pixel, unsigned."
        )
    return values


def read_values(path: Path) -> tuple[np.ndarray, str, tuple[int, ...] | None]:
    """Read what a mask holds: its values (H, W), integers, with their kind and palette as `classes.Classes` has them.

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
    """What `find_classes` has to know of a mask."""
    counts = Counter(dict(zip(*(array.tolist() for array in np.unique(values, return_counts=True)), strict=True)))
    between = classes.values_between(values) if 2 < len(counts) <= classes.MOST + 2 else frozenset()
    return classes.MaskValues(path, counts, kind, palette, between)


def read_labels(path: Path, known: classes.Classes = classes.ONE) -> np.ndarray:
    """Read a mask as labels (H, W), uint8, of known classes: of one, black is background and one other value is it.

    Raises ValueError as `read_values` does, and for a value that is none of theirs.
    """
    values, kind, palette = read_values(path)
    if kind == "palette" and (known.kind == "colour" or known.two_valued):
        values, kind = _as_colours(np.array(palette, np.uint8).reshape(256, 3))[values], "colour"
    if known.two_valued:
        found = np.unique(values)
        if np.count_nonzero(found) > 1:
            raise ValueError(
                f"{path} is no mask of one object: it holds {classes.listed(found, kind)}, where 0 and one other value "
                "were expected. Save masks as PNG: JPEG blurs their edges."
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
    """A file's name as any terminal, table or plot can show it: what cannot be decoded or printed becomes "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


# Folders to train on


def read_folder(
    images: Path, masks: Path, names: Sequence[str] | None = None, ignore: int | None = None
) -> tuple[list[Sample], classes.Classes]:
    """Read all pictures of a folder with their masks of another, by name, each with a grey range of its own.

    All in colour give samples of three channels; if one is grey, all are read as grey. Everything stays in memory: a
    byte per pixel and channel, two with 16 bits, and one for the labels. Where `masks` holds folders instead of
    pictures, each is a class, with masks of its own.

    Args:
        images, masks: the folders.
        names, ignore: see `classes.find_classes`.

    Raises:
        ValueError: with all that is wrong, a line each: files without a partner, unreadable ones, different
            sizes, wrong mask values, one name twice, one picture twice (it would be trained on and tested on),
            no object in any mask.
    """
    of_class = class_folders(masks)
    if of_class:
        pairs, problems = pair_class_folders(images, of_class)
    else:
        pairs, problems = folders.pair_by_name(images, masks, find_pictures, "picture")
    found: list[tuple] = []
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
        found.append((path, image, mask_path, *mask))
    mapping = classes.ONE
    try:
        found = _by_colour_if_needed(found)
        seen = [look_at_mask(mask_path, *mask) for _, _, mask_path, *mask in found]
        if of_class:
            mapping = classes.of_folders([folder.name for folder in of_class], names)
        elif seen:
            mapping = classes.find_classes(seen, names, ignore, masks)
        if seen and not any(set(mask.counts) - {mapping.values[0], mapping.ignore} for mask in seen):
            problems.append(f"all masks in {masks} are empty (black): there is nothing to learn.")
    except ValueError as error:
        problems.append(str(error))
    folders.refuse(problems, "picture")
    colours = sum(image.shape[-1] == 3 for _, image, *_ in found)
    if 0 < colours < len(found):
        print(f"{colours} of {len(found)} pictures in {images} are in colour, the others grey: all are used in grey.")
        found = [
            (path, image if image.shape[-1] == 1 else read_picture(path, 1), *mask) for path, image, *mask in found
        ]
    return [
        Sample(path.name, image, mapping.to_labels(values), grey_values.range_of(image, grey_values.STRETCHED))
        for path, image, _, values, *_ in found
    ], mapping


def _by_colour_if_needed(found: list[tuple]) -> list[tuple]:
    """Masks with palettes by their colours, where palettes differ, or where black and one other colour are a mask.

    Each is (path, image, path of the mask, values, kind, palette). Raises ValueError where palettes differ and a colour
    stands for two numbers.
    """
    palettes = {palette for *_, palette in found if palette}
    numbers = set().union(*(np.unique(values).tolist() for *_, values, kind, _ in found if kind == "palette"))
    if not palettes or (len(palettes) == 1 and len(numbers) > 2 and all(kind == "palette" for *_, kind, _ in found)):
        return found
    result = []
    for path, image, mask_path, values, kind, palette in found:
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
    """The folders in `masks`, sorted by name, if it holds no file to read: each has the masks of one class."""
    try:
        find(masks)
        return []
    except ValueError:
        return sorted(path for path in masks.iterdir() if path.is_dir()) if masks.is_dir() else []


def pair_class_folders(images: Path, of_class: list[Path], find: Callable = find_pictures, what: str = "picture"):
    """As `folders.pair_by_name`: each image with the stem of its masks, which any of the folders may lack."""
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
    """The masks of one picture, one of each class that has one, as values 1 to K (H, W)."""
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
