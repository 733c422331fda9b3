"""Folders of pictures: their crops, their channels, and mistakes told all at once."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from lab.data import patches, picture_folders, pictures
from lab.evaluate import plots


def save(path, array):
    Image.fromarray(array).save(path)


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
    samples, _ = picture_folders.read_folder(*folders)
    grid = patches.grid_patches(samples, 32, 99)
    for crop, mask in (grid, patches.random_patches(samples, 40, 32, 0, augment=patches.vary)):
        assert crop.shape == mask.shape == (len(crop), 32, 32, 1) and crop.dtype == mask.dtype == np.float32
        assert np.isfinite(crop).all() and set(np.unique(mask)) == {-1, 0, 1}  # -1: outside a picture of 20 lines
        for one, true in zip(crop, mask, strict=True):  # bright is object, in every flip and turn
            if (true == 1).any() and (true == 0).any():
                assert one[true == 1].min() > one[true == 0].max()


def test_a_grid_of_crops_covers_every_picture(folders):
    samples, _ = picture_folders.read_folder(*folders)
    crops, _ = patches.grid_patches(samples[-1:], 32, most=99)
    picture = np.full(samples[-1].image.shape, np.nan)
    starts = [[start for start, _ in patches.axis_tiles(side, 32, 0)] for side in picture.shape[:2]]
    for crop, (y, x) in zip(crops, itertools.product(*starts), strict=True):
        picture[y : y + 32, x : x + 32] = crop
    np.testing.assert_allclose(picture, samples[-1].prepare(samples[-1].image), atol=1e-6)
    assert len(patches.grid_patches(samples, 32, most=5)[0]) == 5


def test_a_folder_in_colour_gives_three_channels_and_a_mixed_one_grey(folders, tmp_path, capsys):
    folder, masks = folders
    for path in folder.iterdir():
        grey = np.asarray(Image.open(path))
        save(path, np.stack([grey, grey // 2, 255 - grey], axis=-1))
    samples, _ = picture_folders.read_folder(folder, masks)
    assert {sample.image.shape[-1] for sample in samples} == {len(sample.grey_range.low) for sample in samples} == {3}
    images, shown = patches.random_patches(samples, 4, 16, 0, patches.vary)
    assert images.shape == (4, 16, 16, 3) and shown.shape == (4, 16, 16, 1)
    plots.plot_dataset(samples, tmp_path / "dataset.png")
    assert not capsys.readouterr().out

    save(folder / "2.png", np.asarray(Image.open(folder / "2.png").convert("L")))
    samples, _ = picture_folders.read_folder(folder, masks)
    assert {sample.image.shape[-1] for sample in samples} == {len(sample.grey_range.low) for sample in samples} == {1}
    assert "(7 of 8)" in capsys.readouterr().out


def test_a_folder_of_deep_colours_keeps_them_and_says_once_what_others_lose(folders, capsys):
    folder, masks = folders
    for path in [*folder.iterdir()]:
        grey = np.asarray(Image.open(path)).astype(np.uint16)
        fourth = {"extrasamples": ["unspecified"]} if path.stem in ("2", "5") else {}
        colours = [grey * 200, grey * 100, 60_000 - grey, *[grey] * len(fourth)]
        tifffile.imwrite(path.with_suffix(".tif"), np.stack(colours, -1), photometric="rgb", **fourth)
        path.unlink()
    samples, _ = picture_folders.read_folder(folder, masks)
    assert {(sample.image.dtype.name, sample.image.shape[-1]) for sample in samples} == {("uint16", 3)}
    images, _ = patches.random_patches(samples, 4, 16, 0, patches.vary)
    assert images.shape == (4, 16, 16, 3) and np.isfinite(images).all()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"2 of 8 pictures in {folder}: Its fourth channel is left out")


def test_everything_wrong_with_a_folder_is_listed_at_once(folders):
    folder, masks = folders
    (folder / "0.png").unlink()
    (masks / "1_mask.png").unlink()
    (folder / "2.png").write_text("text")
    save(masks / "4_mask.png", np.zeros((3, 3), np.uint8))
    save(masks / "5_mask.png", np.arange(65 * 65, dtype=np.uint8).reshape(65, 65))
    (folder / "7.png").write_bytes((folder / "6.png").read_bytes())
    (masks / "7_mask.png").write_bytes((masks / "6_mask.png").read_bytes())
    save(folder / "6.bmp", np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError) as error:
        picture_folders.read_folder(folder, masks)
    words = ["no picture in", "no mask in", "2.png cannot be read|2.png is no PNG", "its mask 3 x 3",
             "5_mask.png: 0, 1, 2, 3, 4, 5 and", "shows the same as", "have the same name"]  # fmt: skip
    for word in words:
        assert re.search(word, str(error.value)), f"{word} is missing in {error.value}"


def test_masks_that_teach_nothing_are_refused(folders):
    folder, masks = folders
    for path in masks.iterdir():
        save(path, np.zeros_like(np.asarray(Image.open(path))))
    with pytest.raises(ValueError, match="all masks in .* are empty"):
        picture_folders.read_folder(folder, masks)
    save(masks / "4.png", np.zeros((56, 70), np.uint8))
    with pytest.raises(ValueError, match=r"4_mask.png and 4.png have the same name, 4: remove one"):
        picture_folders.read_folder(folder, masks)


def test_files_that_the_system_hides_are_no_pictures(folders):
    folder, _ = folders
    (folder / "._0.png").write_bytes(b"what macOS leaves in archives")
    assert len(pictures.find_pictures(folder)) == 8


@pytest.mark.parametrize("name", ["$a^b{", "$x$", "\\frac", "a\nb", "\udce9t\udce9", "\u5f71\u50cf", "%s"])
def test_the_page_of_the_data_set_is_drawn_whatever_the_names(name, folders, tmp_path, capfd):
    samples, _ = picture_folders.read_folder(*folders)
    samples = [dataclasses.replace(sample, name=name + sample.name) for sample in samples]
    plots.plot_dataset(samples, tmp_path / "dataset.png")
    assert pictures.read_picture(tmp_path / "dataset.png").std() > 10
    assert not capfd.readouterr().err
