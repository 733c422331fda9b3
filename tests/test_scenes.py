"""Drawn scenes: in range, each setting does what its name says, and what is labelled can be seen."""

import hashlib

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, label

from data_synth import make_circles
from lab.data.scenes import FAINTEST, VARIED, draw_scenes


def test_varied_images_are_in_range_and_prefix_stable():
    images, masks = draw_scenes(9, (80, 72), **VARIED)
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
    assert set(np.unique(masks)) == {0, 1}
    for long, short in zip((images, masks), draw_scenes(4, (80, 72), **VARIED), strict=True):
        np.testing.assert_array_equal(long[:4], short)


def test_the_masks_stay_bit_for_bit_what_they_were():
    """Recorded results stay comparable. Images hold sums and powers that differ in the last bits between processors."""
    masks = draw_scenes(9, (80, 72), **VARIED)[1]
    assert hashlib.sha256(masks.tobytes()).hexdigest()[:16] == "275b0cc54525d9ae"


def test_light_lens_and_sensor_leave_the_circles_where_they_are():
    shapes = {"elongation", "roughness", "touching"}
    looks = {name: value for name, value in VARIED.items() if name not in shapes}
    plain = make_circles(9, (80, 72), num_circles=VARIED["num_circles"], margin=VARIED["margin"])
    np.testing.assert_array_equal(draw_scenes(9, (80, 72), **looks)[1], plain[1])


@pytest.mark.parametrize(
    "look",
    ["texture", "blur", "illumination", "inverted", "gamma", "shot", "jpeg", "dust", "highlights"],
)
def test_each_variation_does_what_its_name_says(look):
    values = {"texture": 0.1, "blur": 3, "illumination": 0.5, "inverted": 1, "gamma": 2, "shot": 0.1, "jpeg": 60}
    value = {**values, "dust": 9, "highlights": 9}[look]
    images, masks = draw_scenes(6, 64, noise=0, **{look: value})
    plain, circles = make_circles(6, 64, noise=0)
    np.testing.assert_array_equal(masks, circles)
    for image, mask, before in zip(images, masks, plain, strict=True):
        background, change = image[mask == 0], image - before
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
        if look == "gamma":
            np.testing.assert_allclose(image, before**2, atol=1e-6)
        if look == "shot":  # as wide as the square root of the brightness, 0.25 and 0.75
            assert background.std() == pytest.approx(0.1 * 0.25**0.5, rel=0.1)
            assert image[mask == 1].std() == pytest.approx(0.1 * 0.75**0.5, rel=0.15)
        if look == "jpeg":
            assert 0 < np.abs(change).mean() < 0.05
            np.testing.assert_allclose(255 * image, np.round(255 * image), atol=1e-4)
        if look == "dust":  # small, dark and bright, on objects too
            assert 9 <= np.count_nonzero(change) < 9 * 60
            assert {-1, 1} <= set(np.unique(np.sign(images - plain)))
        if look == "highlights":
            assert 9 <= np.count_nonzero(change) < 9 * 16 and (image[change != 0] == 1).all()


def test_an_ellipse_is_as_long_as_the_circle_is_wide():
    radius, ratio = 12, 2
    for mask in draw_scenes(20, 64, radius=(radius, radius), elongation=ratio)[1][..., 0]:
        assert mask.sum() == pytest.approx(np.pi * radius**2 / ratio, rel=0.06)
        pixels = np.argwhere(mask)
        longest, shortest = 2 * np.sqrt(np.linalg.eigvalsh(np.cov(pixels.T))[::-1])  # of an ellipse: its semi-axes
        assert longest == pytest.approx(radius, rel=0.05) and shortest == pytest.approx(radius / ratio, rel=0.1)


def test_a_rough_outline_stays_inside_the_circle_and_round_its_centre():
    circles = make_circles(20, 64, radius=(12, 12))[1]
    blobs = draw_scenes(20, 64, radius=(12, 12), roughness=0.5)[1]
    assert (blobs <= circles).all()
    for circle, blob in zip(circles[..., 0], blobs[..., 0], strict=True):
        assert 0.25 < blob.sum() / circle.sum() < 0.8 and label(blob)[1] == 1
        centre = np.argwhere(circle).mean(0)
        outline = np.argwhere(blob.astype(bool) & ~binary_erosion(blob))
        distances = np.hypot(*(outline - centre).T)
        assert distances.min() >= 0.5 * 12 - 1 and np.ptp(distances) > 0.2 * 12


def test_each_object_has_its_own_brightness_from_barely_visible_to_saturated():
    settings = {"num_circles": (4, 4), "radius": (5, 6), "contrast": 0.5, "own_contrast": (0.01, 3)}
    images, masks = draw_scenes(30, 128, noise=0, **settings)
    found = []
    for image, mask in zip(images[..., 0], masks[..., 0], strict=True):
        regions, num = label(mask)
        found += [np.ptp(image[regions == i]) for i in range(1, num + 1)]  # 0: one object, which is of one brightness
    contrasts = images[masks == 1] - 0.25
    assert contrasts.min() >= FAINTEST - 1e-6 and contrasts.max() == 0.75
    assert np.median(found) == 0 and len(np.unique(contrasts)) > 40


def test_what_nobody_can_see_is_not_labelled():
    """The faintest object is as bright as the noise is wide, and seen in the darkest corner too."""
    images, masks = draw_scenes(20, 128, own_contrast=0.01, noise=0.1)
    for image, mask in zip(images, masks, strict=True):
        assert image[mask == 1].mean() > image[mask == 0].mean() + 0.09
    for image, mask in zip(
        *(a[..., 0] for a in draw_scenes(60, 128, own_contrast=0.01, noise=0, illumination=0.8)), strict=True
    ):
        ring = binary_dilation(mask, iterations=2) & ~mask.astype(bool)
        assert image[mask == 1].mean() > image[ring].mean() + 0.8 * FAINTEST


def test_touching_objects_make_fewer_regions():
    apart, beside = (
        sum(label(mask[..., 0])[1] for mask in draw_scenes(20, 128, num_circles=(5, 5), radius=(6, 8), touching=p)[1])
        for p in (0, 1)
    )
    assert beside < 0.7 * apart


def test_a_margin_never_hides_an_object():
    """Small objects and a wide margin."""
    for settings in ({}, {"elongation": 4, "roughness": 0.5}):
        masks = draw_scenes(300, 64, radius=(2, 8), margin=16, **settings)[1]
        assert masks.any(axis=(1, 2, 3)).all()


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
        ({"elongation": 0.5}, "elongation"),
        ({"roughness": (0, 0.6)}, "roughness"),
        ({"own_contrast": 0}, "own_contrast"),
        ({"touching": 1.5}, "touching"),
        ({"dust": -1}, "dust"),
        ({"highlights": (3, 2)}, "in this order"),
        ({"gamma": 0}, "gamma"),
        ({"shot": float("nan")}, "shot"),
        ({"jpeg": 100}, "jpeg"),
        ({"jpeg": "good"}, "must be a number"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        draw_scenes(**{"num_images": 1, **settings})
