"""Splits by whole samples and by regions: nothing is left out, nothing is seen twice."""

import dataclasses
import itertools

import numpy as np
import pytest

from lab.data import splits


@dataclasses.dataclass
class Sample:
    """Names and labels suffice."""

    name: str
    labels: np.ndarray
    origin: tuple = (0, 0)

    @property
    def classes(self):
        return [1] if self.labels.any() else []

    def region(self, place):
        origin = tuple(part.start for part in place)
        return Sample(f"{self.name} {place}", self.labels[place], origin)


def crowded(*sides):
    """Masks full of objects, one for each of the `sides`."""
    return [Sample(f"{i}.png", np.ones(side, bool)) for i, side in enumerate(sides)]


def test_a_split_leaves_none_out_and_shares_none():
    samples = crowded(*[(8, 8)] * 8)
    parts = splits.split(samples, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"training": 6, "validation": 1, "test": 1}
    names = [sample.name for part in parts.values() for sample in part]
    assert sorted(names) == [f"{i}.png" for i in range(8)]
    assert names == [sample.name for part in splits.split(samples, seed=1).values() for sample in part]
    assert names != [sample.name for part in splits.split(samples, seed=2).values() for sample in part]


@pytest.mark.parametrize("num", [4, 5, 7, 10])
@pytest.mark.parametrize("folds", [2, 3, 4])
def test_every_picture_is_tested_in_one_fold(num, folds):
    found = splits.folds(crowded(*[(8, 8)] * num), 0, folds)
    assert len(found) == folds
    for parts in found:
        names = sorted(sample.name for part in parts.values() for sample in part)
        assert names == sorted(f"{i}.png" for i in range(num)) and all(parts.values())
    assert sorted(sample.name for parts in found for sample in parts["test"]) == sorted(f"{i}.png" for i in range(num))
    assert len({parts["validation"][0].name for parts in found}) > 1


@pytest.mark.parametrize("sides", [(512, 512), (384, 384), (500, 900), (700, 130), (640, 20)])
@pytest.mark.parametrize("corner", range(4))
def test_regions_lie_apart_by_a_crop_and_each_has_room_for_one(sides, corner):
    crop = 128
    places = splits.cut_regions(sides, corner, crop, "a.png")
    for one, other in itertools.combinations(places.values(), 2):
        gaps = [max(b.start - a.stop, a.start - b.stop) for a, b in zip(one, other, strict=True)]
        assert max(gaps) >= crop
    for place in places.values():
        for part, side in zip(place, sides, strict=True):
            assert 0 <= part.start < part.stop <= side and part.stop - part.start >= min(crop, side)
    areas = {name: np.prod([part.stop - part.start for part in place]) for name, place in places.items()}
    assert areas["training"] >= max(areas["validation"], areas["test"])


def test_one_or_two_pictures_are_split_by_regions():
    for num in (1, 2):
        parts = splits.split(crowded(*[(200, 300)] * num), seed=0, crop=64)
        assert {name: len(part) for name, part in parts.items()} == dict.fromkeys(parts, num)
        assert all("slice" in sample.name for part in parts.values() for sample in part)


def test_folds_of_one_picture_are_tested_in_different_corners():
    found = splits.folds(crowded((200, 300)), 0, 4, crop=64)
    corners = {parts["test"][0].origin for parts in found}
    assert len(corners) == 4
    for one, other in itertools.combinations([parts["test"][0] for parts in found], 2):
        ends = [np.add(sample.origin, sample.labels.shape) for sample in (one, other)]
        assert any(ends[0] <= other.origin) or any(ends[1] <= one.origin), "a pixel is tested twice"


def test_a_part_without_an_object_is_avoided_or_refused():
    mask = np.zeros((200, 300), bool)
    mask[:, :60] = mask[10, 290] = mask[190, 290] = True  # only with the test at the right does each part hold some
    for seed in range(8):
        parts = splits.split([Sample("a.png", mask)], seed, crop=60)
        assert all(part[0].labels.any() for part in parts.values())
    half = np.zeros((200, 300), bool)
    half[100, 10] = True
    with pytest.raises(ValueError, match="one part holds no object"):
        splits.split([Sample("a.png", half)], 0, crop=60)
    with pytest.raises(ValueError, match="the mask of b.png is empty"):
        splits.split([Sample("a.png", half), Sample("b.png", np.zeros_like(half))], 0, crop=60)
    empty = [Sample(f"{i}.png", np.zeros((8, 8), bool)) for i in range(5)]
    with pytest.raises(ValueError, match="masks of all training pictures are empty"):
        splits.split(empty, 0)


def test_what_is_too_small_says_the_least_size():
    with pytest.raises(
        ValueError, match=r"0.png is too small .* at least 384 and 384, or one of them 640; got 300 x 90"
    ):
        splits.split(crowded((90, 300)), 0, crop=128)


@pytest.mark.parametrize(("sides", "num", "most"), [([(9, 9)] * 5, 1, 5), ([(9, 9)] * 5, 6, 5), ([(90, 90)], 5, 4),
                                                    ([(20, 90)], 3, 2)])  # fmt: skip
def test_folds_are_as_many_as_there_can_be(sides, num, most):
    with pytest.raises(ValueError, match=f"--folds must be 2 to {most}"):
        splits.folds(crowded(*sides), 0, num, crop=16)
    with pytest.raises(ValueError, match="too few for 2 folds"):
        splits.folds(crowded(*[(8, 8)] * 3), 0, 2)


def test_a_description_tells_samples_of_other_contents_apart():
    @dataclasses.dataclass
    class Pair:
        name: str
        image: np.ndarray
        labels: np.ndarray

    def pairs(pixel=0, object_at=0, name="b.png"):
        images, masks = np.zeros((2, 4, 6, 1), np.uint16), np.zeros((2, 4, 6), bool)
        images[1, 3, 5], masks[1, 2, object_at] = pixel, True
        return [Pair(*sample) for sample in zip(("a.png", name), images, masks, strict=True)]

    found = splits.describe({"training": pairs()[:1], "test": pairs()[1:]})
    assert found.startswith("2 samples, ") and found == splits.describe({"training": pairs()[::-1], "test": []})
    others = [splits.describe({"training": pairs(**change)}) for change in (
        {"pixel": 1}, {"object_at": 1}, {"name": "c.png"})]  # fmt: skip
    assert len({found, *others}) == 4
