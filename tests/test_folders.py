"""Images and masks of two folders are paired by their names, and all that is wrong is told at once."""

from pathlib import Path

import pytest

from lab.data import folders


def make_folders(root: Path, images: str, masks: str) -> tuple[Path, Path]:
    for name, files in (("images", images), ("masks", masks)):
        (root / name).mkdir()
        for file in files.split():
            (root / name / file).touch()
    return root / "images", root / "masks"


def find(folder: Path) -> list[Path]:
    if not any(folder.iterdir()):
        raise ValueError(f"{folder} is empty.")
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("file", "stem", "of_mask"),
    [
        ("cell.png", "cell", "cell"),
        ("cell_mask.png", "cell_mask", "cell"),
        ("head.nii.gz", "head", "head"),
        ("head_mask.NII.GZ", "head_mask", "head"),
        ("a.b.tif", "a.b", "a.b"),
    ],
)
def test_a_stem_is_the_name_without_suffix_and_a_masks_without_its_ending(file, stem, of_mask):
    assert folders.stem(Path("x.y") / file) == stem and folders.stem_of_mask(Path("x.y") / file) == of_mask


def test_files_of_one_stem_are_paired_whatever_their_suffixes(tmp_path):
    images, masks = make_folders(tmp_path, "b.png a.jpg c.tif", "c.png a.png b_mask.bmp")
    of_class, pairs, problems = folders.pair_by_name(images, masks, find, "picture")
    assert [(image.name, mask.name) for image, mask in pairs] == [
        ("a.jpg", "a.png"),
        ("b.png", "b_mask.bmp"),
        ("c.tif", "c.png"),
    ]
    assert problems == of_class == []


def test_each_problem_of_the_folders_is_a_sentence(tmp_path):
    images, masks = make_folders(tmp_path, "a.png a.bmp alone.png", "a.png a_mask.png unused.png")
    _, pairs, problems = folders.pair_by_name(images, masks, find, "scan")
    assert len(pairs) == 1 and problems == [
        f"{images / 'a.png'} and a.bmp have the same name, a: remove one.",
        f"{masks / 'a_mask.png'} and a.png have the same name, a: remove one.",
        f"{images / 'alone.png'} has no mask in {masks}.",
        f"{masks / 'unused.png'} has no scan in {images}.",
    ]


def test_an_empty_folder_is_one_problem_and_the_same_folder_is_refused(tmp_path):
    images, masks = make_folders(tmp_path, "a.png b.png", "")
    assert folders.pair_by_name(images, masks, find, "picture") == ([], [], [f"{masks} is empty."])
    with pytest.raises(ValueError, match="pictures and masks must lie in two folders"):
        folders.pair_by_name(images, images, find, "picture")


def test_problems_are_counted_and_each_has_a_line():
    folders.refuse([], "scan")
    with pytest.raises(ValueError, match="^1 thing is wrong with the scans:\n  a$"):
        folders.refuse(["a"], "scan")
    with pytest.raises(ValueError, match="^2 things are wrong with the scans:\n  a\n  b$"):
        folders.refuse(["a", "b"], "scan")


@pytest.mark.parametrize(("number", "said"), [(0, "0 things"), (1, "1 thing"), (2, "2 things"), (1234, "1,234 things")])
def test_one_thing_is_singular(number, said):
    assert folders.count(number, "thing") == said


def test_sides_are_told_width_first():
    assert folders.describe_sides((4, 6)) == "6 x 4" and folders.describe_sides((2, 4, 6)) == "6 x 4 x 2"
