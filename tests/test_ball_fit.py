"""The maximum-likelihood circle and sphere."""

import numpy as np
import pytest

import data_synth
from lab.evaluate import ball_fit

CIRCLES = (data_synth.make_circles, (72, 64), (6, 15))
SPHERES = (data_synth.make_spheres, (24, 22, 26), (4, 7))


def dice(a, b):
    axes = tuple(range(1, a.ndim))
    return 2 * np.sum(a * b, axis=axes) / np.sum(a + b, axis=axes)


@pytest.mark.parametrize("make, size, radius, least", [(*CIRCLES, 1.0), (*SPHERES, 0.999)])
def test_balls_without_noise_are_found_to_the_voxel(make, size, radius, least):
    images, masks = make(4, size, seed=3, noise=0, radius=radius)
    balls = ball_fit.fit_balls(images, 0.05, radius=radius)
    assert balls.shape == (4, len(size) + 1)
    assert np.min(dice(ball_fit.draw_balls(balls, size), masks)) >= least


@pytest.mark.parametrize(
    "make, size, radius, noise", [(*CIRCLES, 0.1), (*CIRCLES, 0.25), (*CIRCLES, 1.0), (*SPHERES, 0.5)]
)
def test_the_found_ball_is_at_least_as_likely_as_the_true_one_and_lies_inside(make, size, radius, noise):
    images, masks = make(3, size, seed=1, noise=noise, radius=radius)
    balls = ball_fit.fit_balls(images, noise, radius=radius)
    ratio = ball_fit.log_likelihood_ratio(images, 0.5, noise)
    gain = ratio * (ball_fit.draw_balls(balls, size) - masks)
    assert (gain.sum(axis=tuple(range(1, gain.ndim))) >= -1e-6).all()
    centre, found = balls[:, :-1], balls[:, -1:]
    assert (found >= radius[0]).all() and (found <= radius[1]).all()
    assert (centre >= found - 1e-9).all() and (centre <= np.array(size) - 1 - found + 1e-9).all()


def test_the_fit_is_nearly_perfect_where_the_noise_is_weak():
    images, masks = data_synth.make_circles(6, 64, seed=2, noise=0.1)
    assert np.mean(dice(ball_fit.draw_balls(ball_fit.fit_balls(images, 0.1), (64, 64)), masks)) > 0.999


def test_a_ball_is_where_voxel_centres_are_no_further_than_the_radius():
    mask = ball_fit.draw_balls(np.array([[2.0, 3.0, 4.0, 1.5]]), (5, 7, 9))[0, ..., 0]
    places = np.indices((5, 7, 9)) - np.array([2, 3, 4]).reshape(3, 1, 1, 1)
    np.testing.assert_array_equal(mask, np.sum(places**2, axis=0) <= 1.5**2)


def test_log_likelihood_ratio_is_that_of_the_normal_density_and_of_its_tails():
    noise, values = 0.3, np.array([0.0, 0.4, 1.0])
    below = [np.mean(clipped_draws(mean, noise) == 0) for mean in (0.75, 0.25)]
    above = [np.mean(clipped_draws(mean, noise) == 1) for mean in (0.75, 0.25)]
    middle = ((0.4 - 0.25) ** 2 - (0.4 - 0.75) ** 2) / (2 * noise**2)
    expected = [np.log(below[0] / below[1]), middle, np.log(above[0] / above[1])]
    np.testing.assert_allclose(ball_fit.log_likelihood_ratio(values, 0.5, noise), expected, atol=0.03)


def clipped_draws(mean, noise):
    return np.clip(np.random.default_rng(0).normal(mean, noise, 1_000_000), 0, 1)
