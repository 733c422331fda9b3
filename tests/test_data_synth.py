"""The generator: prefix-stable, in range, and its masks the discs and shapes they claim to be."""

import hashlib

import numpy as np
import pytest
from scipy import ndimage

from data_synth import make_bodies, make_circles, make_shapes, make_spheres

SHAPES = (make_shapes, (56, 72), 6)  # what draws them, a size, the largest radius to try there
BODIES = (make_bodies, (26, 30, 34), 4)


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
        ({"radius": (9, 8)}, "in this order"),
        ({"noise": -1}, "noise"),
        ({"contrast": 0}, "above 0"),
        ({"seed": -1}, "seed"),
        ({"noise": (0.3, 0.1)}, "in this order"),
        ({"margin": -1}, "margin"),
        ({"num_circles": (2, 1)}, r"in this order; got \(2, 1\)"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make_circles(**{"num_images": 1, **settings})


@pytest.mark.parametrize(("make", "size", "radius"), [SHAPES, BODIES])
def test_a_longer_set_of_several_classes_begins_with_the_shorter_one(make, size, radius):
    long, short = make(9, size, radius=(3, radius), seed=3), make(4, size, radius=(3, radius), seed=3)
    assert long[0].shape == (9, *size, 1) and long[0].dtype == np.float32
    assert long[1].shape == (9, *size) and long[1].dtype == np.uint8
    for a, b in zip(long, short, strict=True):
        np.testing.assert_array_equal(a[:4], b)
    other = make(4, size, radius=(3, radius), seed=(3, 1))
    assert not np.array_equal(other[1], short[1])


@pytest.mark.parametrize(("make", "size", "radius"), [SHAPES, BODIES])
def test_one_object_of_each_class_lies_apart_from_the_others(make, size, radius):
    corners_too = np.ones([3] * len(size))
    for labels in make(30, size, radius=(2, radius))[1]:
        assert ndimage.label(labels, corners_too)[1] == 3
        assert [ndimage.label(labels == k, corners_too)[1] for k in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("make", "size", "radius", "area", "rounding"), [(*SHAPES, np.pi * 6**2, 0.1), (*BODIES, 4 / 3 * np.pi * 4**3, 0.2)]
)
def test_a_whole_object_of_each_class_is_as_large_as_the_disc_or_ball(make, size, radius, area, rounding):
    """An object cut by the border or covered by another would be smaller."""
    labels = make(40, size, radius=(radius, radius))[1].reshape(40, -1)
    areas = np.array([(labels == k).sum(axis=1) for k in (1, 2, 3)])
    np.testing.assert_allclose(areas, area, rtol=rounding)
    np.testing.assert_allclose(areas.mean(axis=1), area, rtol=0.01)


@pytest.mark.parametrize(("make", "size", "radius"), [SHAPES, BODIES])
def test_classes_differ_in_their_outline_alone(make, size, radius):
    images, labels = make(4, size, radius=(3, radius), noise=0)
    np.testing.assert_array_equal(images[..., 0], 0.25 + np.float32(0.5) * (labels > 0))
    images, labels = make(40, size, radius=(radius, radius))
    means = [images[..., 0][labels == k].mean() for k in (1, 2, 3)]
    np.testing.assert_allclose(means, np.mean(means), rtol=0.02)
    places = np.array([[ndimage.center_of_mass(one == k) for one in labels] for k in (1, 2, 3)])
    np.testing.assert_allclose(places.mean(axis=1), np.tile((np.array(size) - 1) / 2, (3, 1)), atol=5)


def test_squares_and_triangles_are_turned_by_all_angles():
    """Corners that point the same way in many images would leave a mean direction."""
    labels = make_shapes(200, (56, 72), radius=(6, 6))[1]
    for k, num_corners in ((2, 4), (3, 3)):
        angles = []
        for one in labels:
            pixels = np.argwhere(one == k)
            along = (pixels - pixels.mean(axis=0)) @ [1, 1j]
            angles.append(np.angle(np.sum(along**num_corners)))
        assert abs(np.exp(1j * np.array(angles)).mean()) < 0.2


def test_cubes_and_octahedra_are_turned_in_all_directions():
    """In all directions alike the fourth power of a coordinate is a fifth of that of the distance; upright, 0.16."""
    labels = make_bodies(60, (36, 38, 40), radius=(5, 5))[1]
    for k in (2, 3):
        shares = []
        for one in labels:
            voxels = np.argwhere(one == k)
            offsets = voxels - voxels.mean(axis=0)
            shares.append((offsets**4).sum(axis=0) / (np.sum(offsets**2, axis=1) ** 2).sum())
        np.testing.assert_allclose(np.mean(shares, axis=0), 0.2, rtol=0.04)


def test_no_threshold_finds_one_class():
    """Of K classes of equal areas and grey values, labels by a rule per pixel have a mean Dice of at most 1/K."""
    images, labels = make_shapes(16)
    for k in (1, 2, 3):
        true = labels == k
        found = [images[..., 0] >= threshold for threshold in np.linspace(0, 1, 41)]
        assert max(np.mean(2 * (true & f).sum((1, 2)) / (true.sum((1, 2)) + f.sum((1, 2)))) for f in found) < 1 / 3


def test_classes_are_numbered_in_the_order_given():
    labels = make_shapes(20, 64, shapes=("triangle", "disc"), radius=(8, 8))[1]
    spreads = [np.mean([np.var(np.argwhere(one == k), axis=0).sum() for one in labels]) for k in (1, 2)]
    assert set(np.unique(labels)) == {0, 1, 2}
    np.testing.assert_allclose(spreads, [8**2 * np.pi / 27**0.5, 8**2 / 2], rtol=0.02)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_images": 0}, "at least 1"),
        ({"size": 16}, "no room"),
        ({"size": 64}, "no room"),
        ({"size": (64, 64, 64)}, "2 of them"),
        ({"radius": (1, 9)}, "radius"),
        ({"shapes": ()}, "disc, square, triangle, each once"),
        ({"shapes": ("disc", "disc")}, "each once"),
        ({"shapes": ("disc", "cube")}, "each once"),
        ({"contrast": 0}, "above 0"),
    ],
)
def test_bad_settings_of_shapes_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make_shapes(**{"num_images": 1, **settings})
