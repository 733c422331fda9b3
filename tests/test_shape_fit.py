"""The maximum-likelihood labels of one shape of each class."""

import numpy as np

from data_synth import make_bodies, make_shapes
from lab.evaluate.ball_fit import log_likelihood_ratio
from lab.evaluate.shape_fit import fit_shapes


def dice(found, labels):
    """Dice of each class in each image, (K, N)."""
    axes = tuple(range(1, labels.ndim))
    masks = [(found == k, labels == k) for k in (1, 2, 3)]
    return np.array([2 * (a & b).sum(axes) / (a.sum(axes) + b.sum(axes)) for a, b in masks])


def test_no_class_is_confused_at_the_defaults():
    images, labels = make_shapes(8, seed=5)
    found = fit_shapes(images, 0.25)
    assert found.shape == labels.shape and found.dtype == np.uint8
    scores = dice(found, labels)
    assert scores.min() > 0.97 and scores.mean() > 0.996
    ratio = log_likelihood_ratio(images[..., 0], 0.5, 0.25)
    gain = (ratio * ((found > 0) * 1.0 - (labels > 0))).sum(axis=(1, 2))
    assert gain.min() > -1  # at least as likely as the truth, up to the last step


def test_shapes_are_found_in_an_image_that_is_no_square():
    images, labels = make_shapes(2, (90, 130), seed=1, radius=(9, 12), noise=0.1, shapes=("triangle", "disc", "square"))
    found = fit_shapes(images, 0.1, radius=(9, 12), shapes=("triangle", "disc", "square"))
    assert dice(found, labels).min() > 0.99


def test_bodies_are_told_apart():
    volumes, labels = make_bodies(1, (40, 44, 48), seed=2, radius=(5, 6))
    bodies = ("ball", "cube", "octahedron")
    assert dice(fit_shapes(volumes, 0.25, shapes=bodies, radius=(5, 6)), labels).min() > 0.97


def test_the_labels_of_an_image_depend_on_no_other_image():
    images, _ = make_shapes(2, seed=7)
    np.testing.assert_array_equal(fit_shapes(images[1:], 0.25), fit_shapes(images, 0.25)[1:])
