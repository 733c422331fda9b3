"""The generator: prefix-stable, in range, and its masks the discs they claim to be."""

import hashlib

import numpy as np
import pytest

from data_synth import VARIED, make_circles, make_spheres


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


def test_varied_images_are_in_range_prefix_stable_and_keep_their_circles():
    images, masks = make_circles(9, (80, 72), **VARIED)
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
    assert set(np.unique(masks)) == {0, 1}
    for long, short in zip((images, masks), make_circles(4, (80, 72), **VARIED), strict=True):
        np.testing.assert_array_equal(long[:4], short)
    plain = make_circles(9, (80, 72), num_circles=VARIED["num_circles"], margin=VARIED["margin"])
    np.testing.assert_array_equal(masks, plain[1])


@pytest.mark.parametrize("look", ["texture", "blur", "illumination", "inverted"])
def test_each_variation_does_what_its_name_says(look):
    value = {"texture": 0.1, "blur": 3, "illumination": 0.5, "inverted": 1}[look]
    images, masks = make_circles(6, 64, noise=0, **{look: value})
    plain = make_circles(6, 64, noise=0)[0]
    for image, mask, before in zip(images, masks, plain, strict=True):
        background = image[mask == 0]
        if look == "texture":
            assert background.std() == pytest.approx(0.1, rel=0.4)
        if look == "blur":
            edge = [np.abs(np.diff(picture[..., 0])).max() for picture in (image, before)]
            assert edge[0] < edge[1] / 4
        if look == "illumination":  # 0.25 times a ramp from 1 - 0.5 to 1 + 0.5, between opposite corners
            corners = sorted(image[::63, ::63].ravel())
            np.testing.assert_allclose([corners[0], corners[-1]], [0.125, 0.375], atol=1e-6)
        if look == "inverted":
            np.testing.assert_allclose(image, 1 - before, atol=1e-6)


def test_ranges_are_drawn_from_for_each_image():
    images, masks = make_circles(50, 64, noise=0, contrast=(0.1, 0.6))
    contrasts = images.max(axis=(1, 2, 3)) - 0.25
    assert contrasts.min() >= 0.1 and contrasts.max() <= 0.6 and contrasts.std() > 0.1
    assert masks.any(axis=(1, 2, 3)).all()


def test_a_margin_cuts_circles():
    areas = make_circles(200, 64, radius=(10, 10), margin=10)[1].sum(axis=(1, 2, 3))
    assert areas.min() < np.pi * 50 and areas.max() > np.pi * 95


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_images": 0}, "at least 1"),
        ({"size": 32}, "does not fit"),
        ({"radius": (9, 8)}, "in this order"),
        ({"noise": -1}, "noise"),
        ({"contrast": 0}, "above 0"),
        ({"seed": -1}, "seed"),
        ({"illumination": (0, 2)}, "illumination"),
        ({"noise": (0.3, 0.1)}, "in this order"),
        ({"inverted": 2}, "inverted"),
        ({"margin": -1}, "margin"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make_circles(**{"num_images": 1, **settings})
