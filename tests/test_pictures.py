"""Reading, preprocessing, tiles and folders: every picture mode, every size, and mistakes told all at once."""

import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lab import patches, pictures

GREY = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)


def save(path, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_a_lossless_grey_picture_is_read_as_it_is(suffix, tmp_path):
    np.testing.assert_array_equal(pictures.read_picture(save(tmp_path / f"a{suffix}", GREY)), GREY)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_kept(suffix, tmp_path):
    array = GREY.astype(np.uint16) * 257 + 3
    picture = pictures.read_picture(save(tmp_path / f"a{suffix}", array))
    np.testing.assert_array_equal(picture, array)
    assert pictures.grey_range(picture, pictures.ABSOLUTE) == (0, 65535)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK"])
def test_a_grey_picture_is_the_same_in_every_mode(mode, tmp_path):
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), Image.fromarray(GREY).convert(mode))
    np.testing.assert_allclose(pictures.read_picture(path).astype(int), GREY, atol=1)


def test_colours_become_luma(tmp_path):
    pure = np.diag([255, 255, 255]).astype(np.uint8)[None]  # red, green and blue
    weights = pictures.read_picture(save(tmp_path / "a.png", pure)) / 255
    np.testing.assert_allclose(weights, [[0.299, 0.587, 0.114]], atol=0.5 / 255)


def test_transparent_is_black(tmp_path):
    white = np.full((2, 2, 4), 255, np.uint8)
    white[0, :, 3] = 0
    np.testing.assert_array_equal(pictures.read_picture(save(tmp_path / "a.png", white)), [[0, 0], [255, 255]])


def test_a_photo_stands_upright(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    assert pictures.read_picture(save(tmp_path / "a.jpg", GREY, exif=turned)).shape == (4, 3)


def bad_pictures(folder):
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").touch()
    whole = save(folder / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    header = bytearray(whole)
    header[16:24] = (40_000).to_bytes(4, "big") + (25_000).to_bytes(4, "big")
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(header)
    header[16:24] = bytes(8)
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (folder / "nothing.png").write_bytes(header)
    Image.fromarray(GREY).save(folder / "pages.tif", save_all=True, append_images=[Image.fromarray(GREY)])
    save(folder / "float.tif", GREY.astype(np.float32))
    return {
        "text": "no PNG", "empty": "no PNG", "half": "cannot be read", "huge": "1,000,000,000 pixels",
        "nothing": "cannot be read", "pages": "2 pages", "float": "from 0 to 220", "missing": "does not exist",
    }  # fmt: skip


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    for name, words in bad_pictures(tmp_path).items():
        path = next(tmp_path.glob(f"{name}.*"), tmp_path / f"{name}.png")
        with pytest.raises(ValueError, match=words) as error:
            pictures.read_picture(path)
        assert "\n" not in str(error.value) and path.name in str(error.value)
    assert Image.MAX_IMAGE_PIXELS is not None, "Pillow's own limit was not put back"


@pytest.mark.parametrize("value", [1, 255, (255, 0, 0), (0, 0, 1)])
def test_a_mask_is_black_and_one_other_value(value, tmp_path):
    true = GREY > 100
    array = true[..., None] * np.array(value, np.uint8)
    array = array[..., 0] if array.shape[-1] == 1 else array
    np.testing.assert_array_equal(pictures.read_mask(save(tmp_path / "a.png", array)), true)


def test_other_masks_are_refused_with_their_values(tmp_path):
    with pytest.raises(ValueError, match="0, 20, 40, 60, 80, 100 and 6 more"):
        pictures.read_mask(save(tmp_path / "a.png", GREY))
    two = np.zeros((2, 2, 3), np.uint8)
    two[0, 0], two[1, 1] = (255, 0, 0), (0, 0, 255)
    with pytest.raises(ValueError, match="#000000, #0000ff, #ff0000"):
        pictures.read_mask(save(tmp_path / "a.png", two))


def test_stretching_undoes_exposure_and_type():
    picture = np.random.default_rng(0).integers(0, 100, (50, 60), np.uint8)
    darker = picture.astype(np.uint16) * 7 + 1000
    first, second = (pictures.preprocess(p, *pictures.grey_range(p, pictures.STRETCHED)) for p in (picture, darker))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert first.min() == 0 and first.max() == 1
    flat = np.full((5, 5), 90, np.uint8)
    assert not pictures.preprocess(flat, *pictures.grey_range(flat, pictures.STRETCHED)).any()


def test_strange_grey_values_are_said():
    rng = np.random.default_rng(0)
    training = rng.uniform(0.2, 0.4, (5, 16, 16, 1))
    seen = pictures.describe_training(training, pictures.ABSOLUTE)["seen"]
    assert pictures.describe_strangeness(training[0], seen) is None
    assert "outside what training saw (darkest 1%: 0.70, in training 0.20 to" in pictures.describe_strangeness(
        training[0] + 0.5, seen
    )


@st.composite
def tilings(draw):
    ndim = draw(st.integers(1, 3))
    sides = st.integers(1, {1: 300, 2: 60, 3: 16}[ndim])
    tile = draw(st.tuples(*[st.integers(1, {1: 64, 2: 24, 3: 9}[ndim])] * ndim))
    return draw(st.tuples(*[sides] * ndim)), tile, draw(st.integers(0, min(tile) - 1)), draw(st.integers(1, 5))


@given(tilings())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_for_a_network_that_returns_its_input_the_result_is_the_input(case):
    shape, tile, overlap, batch = case
    picture = np.random.default_rng(0).random(shape, np.float32)

    def identity(tiles):
        assert tiles.shape[1:] == (*tile, 1) and len(tiles) <= batch
        return tiles

    bands = list(patches.predict_tiles(picture, identity, tile, overlap, batch))
    np.testing.assert_allclose(np.concatenate(bands), picture, atol=1e-6)
    assert max(len(band) for band in bands) <= tile[0]


def test_tiles_are_reflected_as_numpy_does():
    line = np.arange(5)
    np.testing.assert_array_equal(patches.cut_tile(line, [0], [17]), np.pad(line, (0, 12), mode="reflect"))


def test_a_step_between_tiles_is_blended_smoothly():
    calls = []

    def constant(tiles):  # every tile another value: the worst seam there can be
        calls.append(len(tiles))
        return np.full(tiles.shape, len(calls) % 2)

    result = np.concatenate(list(patches.predict_tiles(np.zeros(200), constant, (64,), 32)))
    assert len(calls) == 6 and np.abs(np.diff(result)).max() < 0.1


@pytest.fixture
def folders(tmp_path):
    """Eight pictures, bright where their masks are 255."""
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    pictures.mkdir(), masks.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        height, width = 20 + 9 * i, 90 - 5 * i
        mask = np.zeros((height, width), bool)
        mask[5:15, 5 : 10 + i] = i != 3
        save(pictures / f"{i}.png", np.where(mask, 200, 50).astype(np.uint8) + rng.integers(0, 9, mask.shape, np.uint8))
        save(masks / f"{i}_mask.png", mask.astype(np.uint8) * 255)
    return pictures, masks


def test_crops_hold_the_mask_of_their_image(folders):
    samples = pictures.read_folder(*folders, pictures.ABSOLUTE)
    grid, _ = pictures.grid_crops(samples, 32, 99)
    for crop, mask in (grid, pictures.random_crops(samples, 40, 32, 0, augment=True)):
        assert crop.shape == mask.shape == (len(crop), 32, 32, 1) and crop.dtype == mask.dtype == np.float32
        assert crop.min() >= 0 and crop.max() <= 1 and set(np.unique(mask)) == {0, 1}
        for one, true in zip(crop, mask, strict=True):  # bright is object, in every flip and turn
            if 0 < true.mean() < 1:
                assert one[true == 1].min() > one[true == 0].max()


def test_a_grid_of_crops_covers_every_picture(folders):
    samples = pictures.read_folder(*folders, pictures.ABSOLUTE)
    (crops, _), places = pictures.grid_crops(samples[-1:], 32, most=99)
    picture = np.full(samples[-1].picture.shape, np.nan)
    for crop, place in zip(crops, places, strict=True):
        x, y = (int(number) for number in re.findall(r" (\d+)", place))
        picture[y : y + 32, x : x + 32] = crop[..., 0]
    np.testing.assert_allclose(picture, samples[-1].picture / 255, atol=1e-6)
    assert len(pictures.grid_crops(samples, 32, most=5)[1]) == 5


def test_a_split_leaves_none_out_and_shares_none(folders):
    samples = pictures.read_folder(*folders, pictures.ABSOLUTE)
    parts = pictures.split(samples, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"training": 6, "validation": 1, "test": 1}
    names = [sample.name for part in parts.values() for sample in part]
    assert sorted(names) == [f"{i}.png" for i in range(8)]
    assert names == [sample.name for part in pictures.split(samples, seed=1).values() for sample in part]
    assert names != [sample.name for part in pictures.split(samples, seed=2).values() for sample in part]
    with pytest.raises(ValueError, match="at least 3"):
        pictures.split(samples[:2], 0)


def test_everything_wrong_with_a_folder_is_listed_at_once(folders):
    folder, masks = folders
    (folder / "0.png").unlink()
    (masks / "1_mask.png").unlink()
    (folder / "2.png").write_text("text")
    save(masks / "4_mask.png", np.zeros((3, 3), np.uint8))
    save(masks / "5_mask.png", np.arange(65 * 65, dtype=np.uint8).reshape(65, 65))
    (folder / "7.png").write_bytes((folder / "6.png").read_bytes())
    (masks / "7_mask.png").write_bytes((masks / "6_mask.png").read_bytes())
    save(folder / "6.bmp", GREY)
    with pytest.raises(ValueError) as error:
        pictures.read_folder(folder, masks, pictures.ABSOLUTE)
    words = ["no picture in", "no mask in", "2.png cannot be read|2.png is no PNG", "its mask 3 x 3", "is no mask",
             "shows the same as", "have the same name"]  # fmt: skip
    for word in words:
        assert re.search(word, str(error.value)), f"{word} is missing in {error.value}"


def test_the_page_of_the_data_set_is_drawn(folders, tmp_path):
    pictures.plot_dataset(pictures.read_folder(*folders, pictures.ABSOLUTE), tmp_path / "dataset.png")
    assert pictures.read_picture(tmp_path / "dataset.png").std() > 10
