"""Pictures and masks from disk: reading, folders to train on, pages to look at.

    from lab.data import pictures
    from lab.evaluate import plots
    image = pictures.read_picture("coins.png")                            # (H, W, 1) or, in colour, (H, W, 3)
    samples = pictures.read_folder(Path("pictures"), Path("masks"))

What a network sees of the grey values is defined in `lab/data/grey_values.py`.
"""

import hashlib
import math
import stat
from pathlib import Path

import numpy as np

from lab.data import folders, grey_values
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


def read_mask(path: Path) -> np.ndarray:
    """Read a mask: (H, W), bool. Black is background; one other value or colour (1, 255, red, ...) is the object.

    Raises ValueError as `open_picture` does, and for more values than two: with those that were found.
    """
    image = open_picture(path)
    shown = "{:g}".format
    if image.mode in ("1", "F") or image.mode.startswith("I"):
        values = np.asarray(image)
    elif image.mode == "L" and not image.has_transparency_data:
        values = np.asarray(image).view(np.int8) if _is_signed(image) else np.asarray(image)
    else:
        red, green, blue = np.moveaxis(_decode(image, "RGB"), -1, 0)
        values = red.astype(np.uint32) << 16 | green.astype(np.uint32) << 8 | blue
        shown = "#{:06x}".format
    found = np.unique(values)
    if np.count_nonzero(found) > 1:
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        raise ValueError(
            f"{path} is no mask: it holds {', '.join(shown(value) for value in found[:6])}{more}, where 0 and 1, "
            "0 and 255, or one colour on black were expected. Save masks as PNG: JPEG blurs their edges."
        )
    return values != 0


def readable(name: str) -> str:
    """A file's name as any terminal, table or plot can show it: what cannot be decoded or printed becomes "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


# Folders to train on


def read_folder(images: Path, masks: Path) -> list[Sample]:
    """Read all pictures of a folder with their masks of another, by name, each with a grey range of its own.

    All in colour give samples of three channels; if one is grey, all are read as grey. Everything stays in memory: a
    byte per pixel and channel, two with 16 bits, and one for the mask.

    Raises:
        ValueError: with all that is wrong, a line each: files without a partner, unreadable ones, different
            sizes, wrong mask values, one name twice, one picture twice (it would be trained on and tested on),
            no object in any mask.
    """
    pairs, problems = folders.pair_by_name(images, masks, find_pictures, "picture")
    found = []
    known: dict = {}
    for path, mask_path in pairs:
        try:
            image, mask = read_picture(path), read_mask(mask_path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if image.shape[:2] != mask.shape:
            sides, mask_sides = map(describe_sides, (image.shape[:2], mask.shape))
            problems.append(f"{path} is {sides} pixels, its mask {mask_sides}.")
        twin = known.setdefault(hashlib.sha256(image.tobytes()).digest(), path)
        if twin is not path:
            problems.append(f"{path} shows the same as {twin.name}.")
        found.append((path, image, mask))
    if found and not any(mask.any() for *_, mask in found):
        problems.append(f"all masks in {masks} are empty (black): there is nothing to learn.")
    folders.refuse(problems, "picture")
    colours = sum(image.shape[-1] == 3 for _, image, _ in found)
    if 0 < colours < len(found):
        print(f"{colours} of {len(found)} pictures in {images} are in colour, the others grey: all are used in grey.")
        found = [(path, image if image.shape[-1] == 1 else read_picture(path, 1), mask) for path, image, mask in found]
    return [
        Sample(path.name, image, mask, grey_values.range_of(image, grey_values.STRETCHED))
        for path, image, mask in found
    ]
