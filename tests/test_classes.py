"""What the values of masks mean: one mapping for a folder, values that come back, and sentences for what is no mask."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.data import classes, picture_folders, pictures, sample
from lab.data.classes import Classes, MaskValues, find_classes

LABELS = np.kron(np.array([[0, 1, 1], [2, 2, 0], [0, 0, 2]], np.uint8), np.ones((8, 8), np.uint8))
PALETTE = [0, 0, 0, 0, 128, 0, 128, 0, 0] + [9, 9, 9] * 253


def held(*values, name="a.png", kind="grey", palette=None):
    return MaskValues(Path(name), Counter(dict.fromkeys(values, 10)), kind, palette)


def write(path: Path, labels=LABELS, kind="0 1 2") -> None:
    """A mask file of labels 0 to 2, as annotation programs write them."""
    if kind == "palette":
        image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
        image.putpalette(PALETTE)
    elif kind == "colours":
        image = Image.fromarray(np.array(PALETTE[:9], np.uint8).reshape(3, 3)[labels])
    else:
        image = Image.fromarray(np.array([int(value) for value in kind.split()], np.uint8)[labels])
    image.save(path)


@pytest.fixture
def folders(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir(), masks.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 255, LABELS.shape, np.uint8)).save(images / f"{name}.png")
    return images, masks


@pytest.mark.parametrize("kind", ["0 1 2", "0 85 170", "0 7 9", "palette", "colours"])
def test_masks_of_one_content_give_the_same_labels_and_their_own_values_back(kind, folders):
    for name in "abcd":
        write(folders[1] / f"{name}.png", kind=kind)
    samples, found = picture_folders.read_folder(*folders)
    assert found.num == 2 and all((one.labels == LABELS).all() for one in samples)
    values, _, _ = pictures.read_values(folders[1] / "a.png")
    np.testing.assert_array_equal(found.to_values(LABELS), values)
    np.testing.assert_array_equal(pictures.read_labels(folders[1] / "a.png", found), LABELS)
    assert samples[0].classes == [1, 2] and samples[0].counts[:3].tolist() == [256, 128, 192]


def test_palettes_that_differ_are_read_by_their_colours(folders):
    swapped = PALETTE[:3] + PALETTE[6:9] + PALETTE[3:6] + PALETTE[9:]
    for name in "abc":
        write(folders[1] / f"{name}.png", kind="palette")
    image = Image.frombytes("P", (24, 24), np.array([0, 2, 1], np.uint8)[LABELS].tobytes())
    image.putpalette(swapped)
    image.save(folders[1] / "d.png")
    samples, found = picture_folders.read_folder(*folders)
    assert found.kind == "colour" and all((one.labels == LABELS).all() for one in samples)
    image.putpalette(PALETTE[:3] + PALETTE[3:6] * 2 + PALETTE[9:])
    image.save(folders[1] / "d.png")
    with pytest.raises(ValueError, match=r"d.png has another palette .* 0, 1, 2, have one colour"):
        picture_folders.read_folder(*folders)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ([held(0, 1, 255)], r"0, 1, 255 \(a.png\): 255 may mean .* --ignore 255 .* --classes with 2 names"),
        ([held(*range(40))], r"hold 40 values \(a.png: 0, 1, 2, 3, 4, 5 and 34 more\), where at most 32 classes"),
        ([held(-1, 0, 3)], "a.png holds -1: the values of classes are 0 or more"),
        ([held(0, 3, 250, 255, name="a.jpg")], "a.jpg is a JPEG, which changes values near edges"),
        (
            [held(*range(n + 1), name=f"{n}.png") for n in (3, 7, 5, 9, 12)],
            "grow from file to file .*number the objects",
        ),
        ([held(0, 1, 2), held(0, 0xFF0000, name="b.png", kind="colour")], "a.png holds grey values, b.png colour ones"),
    ],
)
def test_what_is_no_mask_of_classes_is_refused_with_file_and_values(masks, words):
    with pytest.raises(ValueError, match=words):
        find_classes(masks)


def test_soft_edges_are_told_from_classes():
    edge = np.repeat(np.array([[0, 0, 0, 90, 200, 200, 200]], np.uint8), 7, axis=0)
    assert picture_folders._mask_values(Path(), edge, "grey", None).between == {90}
    wide = np.repeat(np.array([[0, 0, 90, 90, 90, 200, 200]], np.uint8), 7, axis=0)
    assert not picture_folders._mask_values(Path(), wide, "grey", None).between
    with pytest.raises(ValueError, match="a.png has soft edges: 90 stand"):
        find_classes([MaskValues(Path("a.png"), Counter({0: 9, 90: 3, 200: 9}), between=frozenset({90}))])


def test_names_go_with_the_values_in_their_order_or_are_refused():
    assert find_classes([held(0, 10, 20)], ["liver", "spleen"]).names == ("liver", "spleen")
    assert find_classes([held(0, 10), held(0, 20)]).names == ("class 10", "class 20")
    with pytest.raises(ValueError, match=r"here 2 \(10, 20, the last one in a.png\); got 1: liver"):
        find_classes([held(0, 10, 20)], ["liver"])
    for names, words in ((["a/b", "c"], "letters, digits"), (["a", "a"], "given to two classes")):
        with pytest.raises(ValueError, match=words):
            find_classes([held(0, 10, 20)], names)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dataset.json", json.dumps({"labels": {"background": 0, "liver": 10, "spleen": 20}})),
        ("labels.txt", '0 0 0 0 0 0 0 "Clear"\n10 255 0 0 1 1 1 "liver"\n20 0 255 0 1 1 1 "spleen"\n'),
    ],
)
def test_a_file_beside_the_masks_names_the_classes(file, text, tmp_path):
    (tmp_path / file).write_text(text)
    assert find_classes([held(0, 10, 20)], folder=tmp_path).names == ("liver", "spleen")


def test_colours_are_named_by_a_label_map_and_written_for_a_viewer(tmp_path):
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:0,128,0::\n")
    found = find_classes([held(0, 0x008000, 0x800000, kind="colour")], folder=tmp_path)
    assert found.names == ("cat", "class 800000") and found.colours == [(0, 128, 0), (128, 0, 0)]
    text = classes.itksnap_labels(Classes(("liver",), (0, 10)))
    assert classes._names_of_itksnap(text) == {10: "liver"}


def test_what_is_not_labelled_is_255_and_zeros_in_the_masks():
    found = find_classes([held(0, 1, 2, 255)], ignore=255)
    labels = found.to_labels(np.array([0, 1, 2, 255]), Path("a.png"))
    assert labels.tolist() == [0, 1, 2, 255]
    assert sample.to_masks(labels[None], 2)[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert sample.to_masks(labels[None], 1)[0, :, 0].tolist() == [0, 1, 0, -1]
    voc = PALETTE[:3] + [128, 0, 0] + PALETTE[6:765] + [224, 224, 192]
    assert find_classes([held(0, 1, 2, 255, kind="palette", palette=tuple(voc))]).ignore == 255
    with pytest.raises(ValueError, match="^a.png: it holds 3, where 0, 1, 2 are the classes"):
        found.to_labels(np.array([0, 3]), Path("a.png"))


def test_numbers_of_objects_are_told_from_classes_by_their_regions(folders):
    for number, name in enumerate("abcd"):
        numbered = np.zeros((24, 24), np.uint8)
        for value in range(1, 3 + number % 2):
            numbered[2:6, 7 * value : 7 * value + 4] = value
        Image.fromarray(numbered).save(folders[1] / f"{name}.png")
    with pytest.raises(ValueError, match="grow from file to file .1 to 2 in one, 1 to 3 in .*number the objects"):
        picture_folders.read_folder(*folders)
    assert picture_folders.read_folder(*folders, names=["one", "two", "three"])[1].num == 3
