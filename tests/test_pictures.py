"""Reading pictures and masks: every mode, every kind of type, and what cannot be read."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from lab.data import grey_values, pictures
from lab.evaluate import plots

GREY = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)


def save(path, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_a_lossless_grey_picture_is_read_as_it_is(suffix, tmp_path):
    np.testing.assert_array_equal(pictures.read_picture(save(tmp_path / f"a{suffix}", GREY)), GREY[..., None])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_kept(suffix, tmp_path):
    array = GREY.astype(np.uint16) * 257 + 3
    picture = pictures.read_picture(save(tmp_path / f"a{suffix}", array))
    np.testing.assert_array_equal(picture, array[..., None])
    assert grey_values.range_of(picture, grey_values.ABSOLUTE).high == [65535]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK"])
def test_a_grey_picture_is_the_same_in_every_mode(mode, tmp_path):
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), Image.fromarray(GREY).convert(mode))
    for channels, shape in ((None, (3, 4, 1)), (1, (3, 4, 1)), (3, (3, 4, 3))):
        picture = pictures.read_picture(path, channels)
        assert picture.shape == shape
        np.testing.assert_allclose(picture.astype(int), np.broadcast_to(GREY[..., None], shape), atol=1)


def test_colours_stay_or_become_luma(tmp_path):
    pure = np.diag([255, 255, 255]).astype(np.uint8)[None]  # red, green and blue
    path = save(tmp_path / "a.png", pure)
    np.testing.assert_array_equal(pictures.read_picture(path), pure)
    weights = pictures.read_picture(path, channels=1)[..., 0] / 255
    np.testing.assert_allclose(weights, [[0.299, 0.587, 0.114]], atol=0.5 / 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_black(mode, tmp_path):
    white = np.full((2, 2, 4), 255, np.uint8)
    white[0, :, 3] = 0
    picture = pictures.read_picture(save(tmp_path / "a.png", Image.fromarray(white).convert(mode)))
    np.testing.assert_array_equal(picture[..., 0], [[0, 0], [255, 255]])


def test_a_picture_is_decoded_in_strips_without_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "STRIP", 2000)
    array = np.random.default_rng(0).integers(0, 255, (103, 200, 4), np.uint8)
    on_black = np.round(array[..., :3] * (array[..., 3:] / 255)).astype(int)
    picture = pictures.read_picture(save(tmp_path / "a.png", array))
    np.testing.assert_allclose(picture, on_black, atol=1)


def test_a_photo_stands_upright(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    assert pictures.read_picture(save(tmp_path / "a.jpg", GREY, exif=turned)).shape == (4, 3, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_that_is_turned_by_a_tag_is_read_as_a_viewer_shows_it(dtype, tmp_path):
    array = np.arange(72, dtype=dtype).reshape(8, 9)
    turned = Image.Exif()
    turned[0x0112] = 6
    for path in (save(tmp_path / f"{c}.tif", array, exif=turned, compression=c) for c in ("raw", "tiff_lzw")):
        np.testing.assert_array_equal(pictures.read_picture(path)[..., 0], np.rot90(array, -1))


DEEP = np.random.default_rng(0).integers(20_000, 23_000, (7, 9, 3)).astype(np.uint16)


@pytest.mark.parametrize("array", [DEEP, (DEEP / 7 - 3000).astype(np.float32)], ids=["16 bits", "float"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"planarconfig": "separate"}, {"photometric": 1}])
def test_a_tiff_in_colour_of_16_bits_or_float_keeps_every_level(array, options, tmp_path):
    stored = np.moveaxis(array, -1, 0) if options.get("planarconfig") else array
    tifffile.imwrite(tmp_path / "a.tif", stored, **{"photometric": "rgb", "planarconfig": "contig", **options})
    picture = pictures.read_picture(tmp_path / "a.tif")
    assert picture.dtype == array.dtype and pictures.describe_loss(tmp_path / "a.tif", picture) is None
    np.testing.assert_array_equal(picture, array)
    luma = pictures.read_picture(tmp_path / "a.tif", channels=1)
    assert luma.dtype == array.dtype
    np.testing.assert_allclose(luma[..., 0], array @ [0.299, 0.587, 0.114], atol=0.5 if array.dtype == "u2" else 1e-3)


@pytest.mark.parametrize("values", [GREY, GREY - 100.0, GREY * 300.0, GREY / 240], ids=str)
def test_a_float_tiff_is_read_as_it_is(values, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values.astype(np.float32))
    picture = pictures.read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture[..., 0], values.astype(np.float32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_tiff_is_turned_as_one_of_8_bits(orientation, tmp_path):
    turned = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "8.tif", (DEEP >> 8).astype(np.uint8), photometric="rgb", extratags=turned)
    tifffile.imwrite(tmp_path / "16.tif", DEEP >> 8, photometric="rgb", extratags=turned)
    shallow, deep = (pictures.read_picture(tmp_path / f"{bits}.tif", 3) for bits in (8, 16))
    assert (shallow.dtype, deep.dtype) == (np.uint8, np.uint16)
    np.testing.assert_array_equal(deep, shallow)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_transparent_is_black_in_a_deep_tiff_too(dtype, tmp_path):
    full = 65535 if dtype == np.uint16 else 1
    opacity = np.broadcast_to(np.array([0, full], dtype)[:, None, None], (2, 9, 1))
    tifffile.imwrite(tmp_path / "a.tif", np.concatenate([DEEP[:2].astype(dtype), opacity], -1), photometric="rgb")
    picture = pictures.read_picture(tmp_path / "a.tif")
    assert not picture[0].any()
    np.testing.assert_array_equal(picture[1], DEEP[1])


@pytest.mark.parametrize("num", [2, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_other_numbers_of_channels_are_told_with_what_to_do(num, dtype, tmp_path):
    array = np.resize(DEEP, (7, 9, num)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=f"a.tif has {num} channels, where 1 .* can be read; save the one that shows"):
        pictures.read_picture(tmp_path / "a.tif")


def test_what_is_left_out_of_a_file_is_said(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.resize(DEEP, (7, 9, 4)), photometric="rgb", extrasamples=["unspecified"])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 9, 7, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    png = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png))
    for path, words in ((tmp_path / "x.tif", "fourth channel"), (tmp_path / "a.png", "Of 16 bits per channel 8 are")):
        assert words in pictures.describe_loss(path, pictures.read_picture(path))
    assert pictures.describe_loss(save(tmp_path / "b.png", GREY), GREY[..., None]) is None


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64, np.float16])
def test_a_tiff_of_numbers_that_are_not_supported_is_called_one(dtype, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(dtype))
    with pytest.raises(
        ValueError, match="a.tif cannot be read.*no TIFF of 8 or 16 bits per channel, unsigned; save it"
    ):
        pictures.read_picture(tmp_path / "a.tif")


def bad_pictures(folder):
    """Files that cannot be read, and words of the sentence that says so."""
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    whole = save(folder / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    header = bytearray(whole)
    header[16:24] = (40_000).to_bytes(4, "big") + (25_000).to_bytes(4, "big")
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(header)
    header[16:24] = bytes(8)
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (folder / "nothing.png").write_bytes(header)
    other = Image.fromarray(GREY[::-1])
    Image.fromarray(GREY).save(folder / "pages.tif", save_all=True, append_images=[other])
    Image.fromarray(GREY).save(folder / "moving.png", save_all=True, append_images=[other])
    Image.fromarray(GREY).save(folder / "gif.png", "GIF", save_all=True, append_images=[other])
    save(folder / "float.tif", np.where(GREY, GREY, np.inf).astype(np.float32))
    save(folder / "nan.tif", np.full((2, 2), np.nan, np.float32))
    for kind in (np.int8, np.int16, np.int32):
        tifffile.imwrite(folder / f"{kind.__name__}.tif", np.arange(-99, 100, dtype=kind).reshape(1, -1))
    return {
        "text": "no PNG", "empty": "no PNG", "half": "copy the file again", "huge": "1,000,000,000 pixels",
        "nothing": "cannot be read", "pages": "2 pages or frames", "moving": "2 pages or frames", "gif": "no PNG",
        "float": "from 20 to inf", "nan": "from nan to nan", "int8": "from -99 to 99", "int16": "from -99 to 99",
        "int32": "from -99 to 99", "missing": "does not exist", "nowhere": "does not exist",
        "folder": "a folder, a pipe or a device", "pipe": "a folder, a pipe or a device", "loop": "cannot be read",
    }  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with a name")
def test_what_cannot_be_read_is_one_sentence(tmp_path):
    for name, words in bad_pictures(tmp_path).items():
        path = next((p for p in tmp_path.iterdir() if p.stem == name), tmp_path / f"{name}.png")
        for read in (pictures.read_picture, pictures.read_labels):
            if read is pictures.read_labels and words.startswith("from"):
                continue  # such values a mask may have
            with pytest.raises(ValueError, match=words) as error:
                read(path)
            assert "\n" not in str(error.value) and path.name in str(error.value)
    assert Image.MAX_IMAGE_PIXELS is not None, "Pillow's own limit was not put back"


def test_signed_values_that_are_not_negative_are_read_as_they_are(tmp_path):
    for kind in (np.int8, np.int16):
        tifffile.imwrite(tmp_path / "a.tif", np.arange(100, dtype=kind).reshape(1, -1))
        np.testing.assert_array_equal(pictures.read_picture(tmp_path / "a.tif")[0, :, 0], np.arange(100))


def test_a_small_file_of_a_large_transparent_picture_takes_little_memory(tmp_path):
    """4,000 x 4,000 pixels are 64 MB when they are decoded; the result, in grey, is 16 MB."""
    Image.new("RGBA", (4000, 4000), (9, 9, 9, 0)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 200_000
    code = (
        "import resource, sys; from PIL import Image; from lab.data import pictures; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10; before = peak(); "
        "assert not pictures.read_picture(sys.argv[1], 1).any(); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 + 16 + 50


@pytest.mark.parametrize("value", [1, 255, (255, 0, 0), (0, 0, 1)])
def test_a_mask_is_black_and_one_other_value(value, tmp_path):
    true = GREY > 100
    array = true[..., None] * np.array(value, np.uint8)
    array = array[..., 0] if array.shape[-1] == 1 else array
    np.testing.assert_array_equal(pictures.read_labels(save(tmp_path / "a.png", array)), true)


def test_other_masks_are_refused_with_their_values(tmp_path):
    with pytest.raises(ValueError, match="0, 20, 40, 60, 80, 100 and 6 more"):
        pictures.read_labels(save(tmp_path / "a.png", GREY))
    two = np.zeros((2, 2, 3), np.uint8)
    two[0, 0], two[1, 1] = (255, 0, 0), (0, 0, 255)
    with pytest.raises(ValueError, match="#000000, #0000ff, #ff0000"):
        pictures.read_labels(save(tmp_path / "a.png", two))


def test_an_overlay_outlines_the_mask():
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    for channels, line in ((1, [230, 159, 0]), (3, [50, 255, 50])):
        shown = plots.overlay(np.full((20, 20, channels), 0.5, np.float32), mask)
        assert (shown[~mask] == 127).all() and (shown[5, 5:15] == line).all() and (shown[8, 8] != line).all()
