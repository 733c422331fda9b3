"""The generator: prefix-stable, in range, and its masks the discs they claim to be."""

import hashlib

import numpy as np
import pytest

from data_synth import make_circles, make_spheres


@pytest.mark.parametrize("make", [make_circles, make_spheres])
def test_a_longer_set_begins_with_the_shorter_one(make):
    size = {make_circles: (40, 56), make_spheres: (20, 24, 28)}[make]
    long, short = make(9, size, radius=(2, 6), seed=3), make(4, size, radius=(2, 6), seed=3)
    for a, b in zip(long, short, strict=True):
        assert a.shape == (9, *size, 1) and a.dtype == np.float32
        np.testing.assert_array_equal(a[:4], b)


def test_images_are_in_range_and_masks_are_0_or_1():
    images, masks = make_circles(8, 64)
    assert images.min() >= 0 and images.max() <= 1
    assert set(np.unique(masks)) == {0, 1}


def test_without_noise_an_image_is_background_plus_contrast():
    images, masks = make_circles(4, 64, noise=0, contrast=0.5)
    np.testing.assert_array_equal(images, 0.25 + 0.5 * masks)


def test_a_mask_is_a_whole_disc():
    masks = make_circles(32, (64, 80), radius=(10, 10))[1]
    np.testing.assert_allclose(masks.sum((1, 2, 3)), np.pi * 100, rtol=0.05)


def test_streams_of_one_seed_differ():
    assert not np.array_equal(make_circles(2, 64, seed=(0, 1))[1], make_circles(2, 64, seed=(0, 2))[1])


def test_counts_from_0_give_empty_masks_too():
    filled = make_circles(64, 64, num_circles=(0, 1))[1].any((1, 2, 3))
    assert 0 < filled.sum() < 64


@pytest.mark.parametrize(
    ("make", "arguments", "checksums"),
    [
        (make_circles, (37, 128), ["f36903931c6510d6", "43ac47c3ad4c38b0"]),
        (make_spheres, (5, 32), ["e4d3ed1a5a90fe28", "f93d181f60cbabb9"]),
    ],
)
def test_the_default_data_stays_bit_for_bit_what_it_was(make, arguments, checksums):
    """Of the generator before it had variation: recorded results stay comparable."""
    assert [hashlib.sha256(array.tobytes()).hexdigest()[:16] for array in make(*arguments)] == checksums


def test_ranges_are_drawn_from_for_each_image():
    images, masks = make_circles(50, 64, noise=0, contrast=(0.1, 0.6))
    contrasts = images.max(axis=(1, 2, 3)) - 0.25
    assert contrasts.min() >= 0.1 and contrasts.max() <= 0.6 and contrasts.std() > 0.1
    assert masks.any(axis=(1, 2, 3)).all()


def test_a_margin_cuts_circles():
    areas = make_circles(200, 64, radius=(10, 10), margin=10)[1].sum(axis=(1, 2, 3))
    assert areas.min() < np.pi * 50 and areas.max() > np.pi * 95


def test_a_margin_never_hides_a_circle():
    """Small circles and a wide margin."""
    assert make_circles(300, 64, radius=(2, 8), margin=16)[1].any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_images": 0}, "at least 1"),
        ({"size": 32}, "does not fit"),
        ({"num_circles": 3}, r"two numbers \(smallest, largest\), in this order; got \(3\)"),
        ({"radius": (9, 8)}, "in this order"),
        ({"noise": -1}, "noise"),
        ({"contrast": 0}, "above 0"),
        ({"seed": -1}, "seed"),
        ({"noise": (0.3, 0.1)}, "in this order"),
        ({"margin": -1}, "margin"),
        ({"num_circles": (2, 1)}, r"in this order; got \(2, 1\)"),
        ({"num_circles": 3, "radius": 40}, r"num_circles must be two numbers \(smallest, largest\).*; got \(3\)"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make_circles(**{"num_images": 1, **settings})
