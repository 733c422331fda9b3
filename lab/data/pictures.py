"""Pictures and masks as files.

    from lab.data import pictures
    image = pictures.read_picture("coins.png")                            # (H, W, 1) or, in colour, (H, W, 3)
    labels = pictures.read_labels("coins_mask.png")                       # (H, W)

`lab/data/grey_values.py` defines how grey values are prepared for a network.
"""

import contextlib
import math
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lab.data import classes, folders, scans
from lab.system.errors import first_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_PIXELS = 500_000_000
STRIP = 2**22  # pixels that are converted at a time


def find_pictures(folder: Path) -> list[Path]:
    """The picture files directly in `folder`, sorted by name; ValueError if it is no folder or holds none."""
    return folders.find_files(folder, SUFFIXES, "picture")


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
            pixels, frames = math.prod(image.size), getattr(image, "n_frames", 1)
            if not 0 < pixels <= MAX_PIXELS:
                problem = f"has {pixels:,} pixels, where 1 to {MAX_PIXELS:,} can be read; cut it into parts"
            elif frames > 1 and image.format != "MPO":  # telephones put a preview behind the picture
                problem = f"holds {frames} pages or frames; save each as a file of its own"
            else:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return image
    except FileNotFoundError:
        problem = "does not exist"
    except Exception as error:  # foreign bytes may raise any error
        reason = first_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "it is no PNG, JPEG or BMP, and no TIFF of 8 or 16 bits per channel, unsigned; save it as one"
        again = "; it is damaged or cut off: copy the file again" if image else ""
        problem = f"cannot be read as a picture: {reason.removesuffix('.')}{again}"
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    raise ValueError(f"{path} {problem}.")


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
    if channels is None and all(np.array_equal(channel, pixels[..., 0]) for channel in np.moveaxis(pixels, -1, 0)):
        pixels = np.ascontiguousarray(pixels[..., :1])
    return np.repeat(pixels, 3, axis=-1) if channels == 3 and pixels.shape[-1] == 1 else pixels


def _read_deep_tiff(path: Path) -> np.ndarray | None:
    """(H, W, 1 or 3) of a TIFF of several channels that Pillow cuts to 8 bits or cannot read; None for all others.

    Raises:
        ValueError: if it has neither one nor three channels, transparency apart.
    """
    import tifffile

    if not path.is_file():  # reading a pipe would wait
        return None
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            samples, pixels = page.samplesperpixel, page.imagewidth * page.imagelength
            photometric, extra = int(page.photometric), [int(kind) for kind in page.extrasamples]
            if len(file.pages) > 1 or samples == 1 or photometric not in (1, 2) or pixels > MAX_PIXELS:
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


def pixel_sides(path: Path) -> tuple[float, float] | None:
    """The height and width of a pixel in mm, where a microscope's TIFF names them, as ImageJ and OME do; else None."""
    import tifffile

    sides: Any = None
    with contextlib.suppress(Exception), tifffile.TiffFile(path) as file:  # other formats raise an error
        sides = scans.tiff_spacing(file, "YX")
    return sides if sides and all(math.isfinite(side) and side > 0 for side in sides) else None


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
    fits = np.isfinite([low, high]).all() if maximum is None else low >= 0 and high <= maximum
    if not fits:
        expected = "finite numbers" if maximum is None else f"0 to {maximum}"
        raise ValueError(
            f"{path} holds values from {low:g} to {high:g}, where {expected} were expected; save it with 8 or 16 bits "
            "per pixel, unsigned."
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
        return np.asarray(image).view(np.int8 if _is_signed(image) else np.uint8), "grey", None
    return _as_colours(_decode(image, "RGB")), "colour", None


def _as_colours(colours: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in 8 bits as numbers 0xRRGGBB, uint32."""
    red, green, blue = np.moveaxis(colours, -1, 0)
    return red.astype(np.uint32) << 16 | green.astype(np.uint32) << 8 | blue


def in_colours(values: np.ndarray, palette: tuple[int, ...]) -> np.ndarray:
    """Values of a mask with a palette, as colours 0xRRGGBB."""
    return _as_colours(np.array(palette, np.uint8).reshape(256, 3))[values]


def read_labels(path: Path, known: classes.Classes = classes.ONE) -> np.ndarray:
    """Read a mask as labels (H, W), uint8, of known classes; for one class, black and one other value are allowed.

    Raises ValueError as `read_values` does, and for a value that is no class.
    """
    values, kind, palette = read_values(path)
    if kind == "palette" and (known.kind == "colour" or known.two_valued):
        values, kind = in_colours(values, palette), "colour"
    if known.two_valued:
        present = np.unique(values)
        if np.count_nonzero(present) > 1:
            raise ValueError(
                f"{path} is no mask of one object: it holds {classes.listed(present, kind)}, where 0 and one other "
                "value were expected. Save masks as PNG: JPEG blurs their edges."
            )
    elif (kind == "colour") != (known.kind == "colour"):
        what = "colours" if kind == "colour" else "numbers"
        raise ValueError(f"{path} holds {what}, unlike the masks of the training.")
    return known.to_labels(values, path)


def readable(name: str) -> str:
    """A file's name for terminals, tables and plots: letters that cannot be decoded or printed become "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
