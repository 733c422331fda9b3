"""A picture at another size: brought back exactly enough, and chosen where a network that knows one size is surest."""

import numpy as np
import pytest
from scipy.ndimage import label

from lab.model import scale


def disk(radius, side=200):
    rows, columns = np.indices((side, side)) - side // 2
    return (np.hypot(rows, columns) <= radius).astype(np.float32)[..., None]


def sizes(low, high):
    """A "network" that is sure of objects whose diameter lies between two numbers of pixels, and of no other."""

    def slabs_of(picture):
        labels, num = label(picture[..., 0] > 0.5)
        diameters = 2 * np.sqrt(np.bincount(labels.ravel(), minlength=num + 1) / np.pi)
        known = (low <= diameters) & (diameters <= high) & (np.arange(num + 1) > 0)
        probs = np.where(labels == 0, 0.0, np.where(known[labels], 1.0, 0.55)).astype(np.float32)
        yield from np.array_split(probs[..., None], 3)

    return slabs_of


def test_an_image_that_is_made_smaller_keeps_its_mean_and_its_channels():
    image = np.random.default_rng(0).random((64, 48, 3)) * [1, 2, 3]
    small = scale.resize(image, (16, 12))
    assert small.shape == (16, 12, 3) and small.dtype == np.float32
    np.testing.assert_allclose(small.mean((0, 1)), image.mean((0, 1)), rtol=0.03)
    assert small[..., 0].std() < 0.5 * image[..., 0].std()  # all pixels count, not every fourth
    np.testing.assert_allclose(scale.resize(np.full((5, 7, 1), 300, np.uint16), (9, 4)), 300)


@pytest.mark.parametrize("factor", [0.5, 1, 2, 3])
def test_probabilities_come_back_to_the_pictures_own_pixels(factor):
    image = disk(20, 101)
    found = scale.at_scale(sizes(1, 1000), image, factor)
    assert found.shape == (101, 101, 1)
    assert np.mean((found >= 0.5) != image) < 0.01


def test_sureness_is_the_soft_dice_with_the_own_mask():
    assert scale.sureness(np.array([[1.0, 0.0], [1.0, 0.0]])) == 1
    assert scale.sureness(np.array([[0.9, 0.2]])) == pytest.approx(2 * 0.9 / (1.1 + 1))
    assert scale.sureness(np.full((2, 2), 0.4)) == 0 == scale.sureness(np.zeros((2, 2)))


@pytest.mark.parametrize(("radius", "expected"), [(4, 2), (12, 1), (20, 1), (35, 0.5), (70, 0.25)])
def test_the_scale_at_which_objects_have_the_size_of_training_is_found(radius, expected):
    assert scale.find_scale(disk(radius), sizes(14, 50)) == expected


def test_an_image_with_nothing_in_it_stays_as_it_is():
    assert scale.find_scale(disk(-1), sizes(14, 50)) == 1


def test_of_a_large_picture_the_middle_is_looked_at(monkeypatch):
    looked_at = []

    def slabs_of(picture):
        looked_at.append(picture.shape[:2])
        yield np.zeros(picture.shape[:2], np.float32)

    scale.find_scale(np.zeros((3000, 90, 1), np.uint8), slabs_of)
    assert max(looked_at) == (2 * scale.LOOK, 180)
