"""The maximum-likelihood circle and sphere."""

import numpy as np
import pytest

import data_synth
from lab import ball_fit


def dice(a, b):
    return 2 * np.sum(a * b) / np.sum(a + b)


@pytest.mark.parametrize("make, size, least", [("make_circles", (48, 40), 1.0), ("make_spheres", (24, 22, 26), 0.999)])
def test_balls_without_noise_are_found_to_the_voxel(make, size, least):
    images, masks = getattr(data_synth, make)(2, size, seed=3, noise=0.0, radius=(4, 7))
    balls = ball_fit.fit_balls(images, 0.05, radius=(4, 7))
    assert balls.shape == (2, len(size) + 1)
    assert dice(ball_fit.draw_balls(balls, size), masks) >= least


def test_the_found_sphere_is_at_least_as_likely_as_the_true_one():
    images, masks = data_synth.make_spheres(2, 24, seed=1, noise=0.5, radius=(5, 7))
    found = ball_fit.draw_balls(ball_fit.fit_balls(images, 0.5, radius=(5, 7)), (24, 24, 24))
    ratio = ball_fit.log_likelihood_ratio(images, 0.5, 0.5)
    assert (np.sum(ratio * (found - masks), axis=(1, 2, 3, 4)) >= -1e-6).all()
    assert dice(found, masks) > 0.9


def test_a_ball_is_where_voxel_centres_are_no_further_than_the_radius():
    mask = ball_fit.draw_balls(np.array([[2.0, 3.0, 4.0, 1.5]]), (5, 7, 9))[0, ..., 0]
    places = np.indices((5, 7, 9)) - np.array([2, 3, 4]).reshape(3, 1, 1, 1)
    np.testing.assert_array_equal(mask, np.sum(places**2, axis=0) <= 1.5**2)
