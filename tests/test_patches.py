"""Patches in any dimension: cut, aimed, varied, laid out as grids and tiles, read no further than needed."""

import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.data import patches, sample
from lab.data.grey_values import GreyRange


class Lazy:
    """An array that is only read by slices, and remembers the largest piece that was asked for."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __getitem__(self, place):
        assert isinstance(place, tuple) and all(isinstance(part, slice) for part in place)
        piece = self.array[place]
        self.largest = max(self.largest, piece.size)
        return piece


def make_sample(mask, channels=1):
    """Values 0 to 200 that are bright where the mask is."""
    noise = np.random.default_rng(0).integers(0, 50, (*mask.shape, channels))
    image = (np.where(mask[..., None], 150, 0) + noise).astype(np.uint8)
    return sample.Sample("a", image, mask, GreyRange(np.array([0]), np.array([200])))


def mask_with(sides, *voxels):
    mask = np.zeros(sides, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


@st.composite
def tilings(draw):
    ndim = draw(st.integers(1, 3))
    sides = st.integers(1, {1: 300, 2: 60, 3: 16}[ndim])
    tile = draw(st.tuples(*[st.integers(1, {1: 64, 2: 24, 3: 9}[ndim])] * ndim))
    overlap = draw(st.tuples(*[st.integers(0, side - 1) for side in tile]))
    return draw(st.tuples(*[sides] * ndim)), tile, overlap, draw(st.integers(1, 5)), draw(st.integers(1, 3))


@given(tilings())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_for_a_network_that_returns_its_input_the_result_is_the_input(case):
    sides, tile, overlap, batch, channels = case
    image, nums = Lazy(np.random.default_rng(0).random((*sides, channels), np.float32)), []

    def identity(tiles):
        assert tiles.shape[1:] == (*tile, channels)
        nums.append(len(tiles))
        return tiles

    slabs = list(patches.predict_tiles(image, identity, tile, overlap, batch))
    np.testing.assert_allclose(np.concatenate(slabs), image.array, atol=1e-6)
    assert max(len(slab) for slab in slabs) <= tile[0]
    assert set(nums[:-1]) <= {batch} and nums[-1] <= batch
    assert image.largest <= np.prod(tile) * channels, "more than a tile was read at once"


def test_tiles_are_reflected_as_numpy_does():
    line = np.arange(5)
    np.testing.assert_array_equal(patches.cut_patch(line, [0], [17]), np.pad(line, (0, 12), mode="reflect"))
    image = np.arange(30).reshape(3, 5, 2)  # the channels stay
    np.testing.assert_array_equal(
        patches.cut_patch(image, [1, 2], [4, 3]), np.pad(image, ((0, 2), (0, 0), (0, 0)), mode="reflect")[1:, 2:]
    )


def test_a_step_between_tiles_is_blended_smoothly():
    calls = []

    def constant(tiles):  # every tile another value: the worst seam there can be
        calls.append(len(tiles))
        return np.full(tiles.shape, len(calls) % 2)

    result = np.concatenate(list(patches.predict_tiles(np.zeros((200, 1)), constant, (64,), 32)))
    assert len(calls) == 6 and np.abs(np.diff(result, axis=0)).max() < 0.1


@pytest.mark.parametrize(("length", "least", "divisor"), [(1, 128, 8), (303, 128, 8), (1100, 128, 8), (16000, 128, 8)])
def test_tiles_cover_an_axis_with_little_waste(length, least, divisor):
    side = patches.fit_tile(length, least, divisor, most=1024, overlap=32)
    assert side % divisor == 0 and side <= 1024 + divisor
    read = side * len(patches.axis_tiles(length, side, 32))
    assert least <= read <= max(least, 1.05 * length + divisor)


@pytest.mark.parametrize("sides", [(40, 60), (24, 30, 40)])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_every_second_patch_holds_an_object_in_batches_of_any_size(sides, batch):
    """A single voxel: by chance, a patch holds it in 4% of the cases."""
    one = make_sample(mask_with(sides, tuple(side // 2 for side in sides)))
    held = [
        mask.any() for seed in range(400 // batch) for mask in patches.random_patches([one], batch, 8, (7, seed))[1]
    ]
    assert 0.4 < np.mean(held) < 0.62


def test_aimed_patches_reach_every_object_and_every_corner():
    corners = list(itertools.product((0, 29), (0, 39)))
    _, masks = patches.random_patches([make_sample(mask_with((30, 40), *corners))], 200, 16, 0)
    found = {tuple(place) for mask in masks for place in np.argwhere(mask[..., 0])}
    assert found >= set(itertools.product((0, 15), (0, 15))), "a corner of the picture never came"


def test_patches_are_as_the_seed_says():
    one = make_sample(np.random.default_rng(1).random((50, 50)) < 0.1)
    first, again, other = (patches.random_patches([one], 4, 16, seed, patches.vary)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_objects_of_a_sample_are_those_of_its_mask_thinned_evenly(monkeypatch):
    mask = np.random.default_rng(0).random((70, 60, 60)) < 0.05
    np.testing.assert_array_equal(make_sample(mask).places[1], np.flatnonzero(mask))
    monkeypatch.setattr(sample, "MOST_PLACES", 1000)
    few = make_sample(mask).places[1]
    assert 500 <= len(few) <= 1000 and mask.ravel()[few].all()
    thirds = np.histogram(few, 3, (0, mask.size))[0]
    assert thirds.min() > 0.8 * thirds.mean()
    assert make_sample(np.zeros((3, 3), bool)).places == {}


def test_no_more_than_the_patch_is_read_from_a_sample_on_disk():
    whole = make_sample(mask_with((30, 40, 50), (20, 20, 20)), channels=2)
    known = {"name": "a", "classes": [1], "places": whole.places, "prepare": whole.prepare}  # places are taken once
    lazy = SimpleNamespace(image=Lazy(whole.image), labels=Lazy(whole.labels), **known)
    images, masks = patches.random_patches([lazy], 20, (8, 10, 12), 0, functools.partial(patches.vary, planes=()))
    assert images.shape == (20, 8, 10, 12, 2) and masks.shape == (20, 8, 10, 12, 1)
    images, masks = patches.grid_patches([lazy], (8, 10, 12), 1000)
    assert len(images) == len(masks) == 4 * 4 * 5
    np.testing.assert_array_equal(images[-1], whole.prepare(whole.image[22:, 30:, 38:]))
    assert lazy.image.largest == 8 * 10 * 12 * 2 and lazy.labels.largest == 8 * 10 * 12


@pytest.mark.parametrize(("sides", "channels", "options"), [
    ((16, 16), 1, {}),
    ((16, 24), 3, {}),
    ((8, 8, 8), 1, {"noise": 0.05}),
    ((6, 8, 8), 1, {"planes": [(1, 2)], "flips": (1, 2)}),
])  # fmt: skip
def test_a_varied_image_keeps_its_mask(sides, channels, options):
    """Bright is object, in every flip and turn; the sides stay."""
    one = make_sample(np.random.default_rng(2).random(sides) < 0.3, channels)
    image, seen = one.prepare(one.image), set()
    for seed in range(60):
        varied, mask = patches.vary(image, one.labels, np.random.default_rng(seed), **options)
        assert varied.shape == image.shape and varied.dtype == np.float32
        assert varied[mask].mean() > varied[~mask].mean() + 0.2 and mask.sum() == one.labels.sum()
        assert (varied[mask].min() > varied[~mask].max()) or "noise" in options or channels > 1
        seen.add(mask.tobytes())
    turns = {(16, 16): 8, (16, 24): 4, (8, 8, 8): 48, (6, 8, 8): 8}[sides]
    assert turns * 0.6 < len(seen) <= turns


def test_a_tint_changes_the_colours_and_leaves_grey_alone():
    image, mask = np.full((4, 4, 3), 0.5, np.float32), np.zeros((4, 4), bool)
    still = {"contrast": 0, "brightness": 0}
    varied = patches.vary(image, mask, np.random.default_rng(0), **still)[0]
    assert np.ptp(varied, axis=-1).max() > 0.02 and np.abs(varied - 0.5).max() < 0.5 - 0.5**1.11
    grey = patches.vary(image[..., :1], mask, np.random.default_rng(0), **still)[0]
    np.testing.assert_array_equal(grey, 0.5)
