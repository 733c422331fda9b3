"""The circle fit against the circles that were drawn, and the benchmarks' small helpers by arithmetic."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import data_synth
from benchmarks import _common, circle_fit

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def likelihood(images, masks, noise):
    return np.sum(circle_fit.log_likelihood_ratio(images, 0.5, noise) * masks, axis=(1, 2, 3))


def mean_dice(masks, other):
    return np.mean(2 * np.sum(masks * other, axis=(1, 2, 3)) / np.sum(masks + other, axis=(1, 2, 3)))


def test_circle_fit_recovers_noise_free_circles_pixel_by_pixel():
    images, masks = data_synth.make_circles(6, (72, 64), seed=3, radius=(6, 15), noise=0)
    fitted = circle_fit.draw_circles(circle_fit.fit_circles(images, 0.05, radius=(6, 15)), (72, 64))
    np.testing.assert_array_equal(fitted, masks)


def test_draw_circles_repeats_the_generators_rule():
    circles = np.array([[10.0, 12.0, 5.0], [9.25, 20.5, 7.75]])
    masks = circle_fit.draw_circles(circles, (24, 32))
    for mask, (row, column, radius) in zip(masks, circles, strict=True):
        for y, x in np.ndindex(24, 32):
            assert mask[y, x, 0] == ((y - row) ** 2 + (x - column) ** 2 <= radius**2)


@pytest.mark.parametrize("noise", [0.1, 0.25, 1.0])
def test_the_fit_is_at_least_as_likely_as_the_truth(noise):
    images, masks = data_synth.make_circles(6, 64, seed=1, noise=noise)
    circles = circle_fit.fit_circles(images, noise)
    fitted = circle_fit.draw_circles(circles, (64, 64))
    assert (likelihood(images, fitted, noise) >= likelihood(images, masks, noise) - 1e-9).all()
    row, column, radius = circles.T
    assert (radius >= 8).all() and (radius <= 25).all()
    assert (np.minimum(row, column) >= radius - 1e-9).all()  # the whole circle lies inside
    assert (np.maximum(row, column) <= 63 - radius + 1e-9).all()


def test_the_fit_is_nearly_perfect_where_the_noise_is_weak():
    images, masks = data_synth.make_circles(6, 64, seed=2, noise=0.1)
    assert mean_dice(masks, circle_fit.draw_circles(circle_fit.fit_circles(images, 0.1), (64, 64))) > 0.999


def test_log_likelihood_ratio_is_that_of_the_normal_density_and_of_its_tails():
    noise, values = 0.3, np.array([0.0, 0.4, 1.0])
    below = [np.mean(clipped_draws(mean, noise) == 0) for mean in (0.75, 0.25)]
    above = [np.mean(clipped_draws(mean, noise) == 1) for mean in (0.75, 0.25)]
    middle = ((0.4 - 0.25) ** 2 - (0.4 - 0.75) ** 2) / (2 * noise**2)
    expected = [np.log(below[0] / below[1]), middle, np.log(above[0] / above[1])]
    np.testing.assert_allclose(circle_fit.log_likelihood_ratio(values, 0.5, noise), expected, atol=0.03)


def clipped_draws(mean, noise):
    return np.clip(np.random.default_rng(0).normal(mean, noise, 1_000_000), 0, 1)


def test_sides_are_called_in_turns_and_the_first_round_is_not_counted():
    calls = []
    times = _common.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(taken) for taken in times.values()] == [2, 2]


def test_ratio_is_the_median_of_the_rounds_own_ratios():
    assert _common.ratio([2.0, 9.0, 8.0], [1.0, 3.0, 4.0]) == Fraction(2, 1)


def test_work_of_a_training_step_by_hand():
    import keras

    from benchmarks import train_step

    inputs = keras.Input((8, 6, 1))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    x = keras.layers.Conv2DTranspose(2, 2, strides=2)(keras.layers.MaxPooling2D(2)(x))
    model = keras.Model(inputs, x)
    first, second = 8 * 6 * 3 * 3 * 1 * 4, 8 * 6 * 4 * 2  # multiply-adds forward
    # Forward, gradient of the weights and gradient of the input, which nobody asks of the first layer.
    assert train_step.training_flops(model) == 2 * (2 * first + 3 * second)


def test_every_comparison_says_where_and_when_it_was_made():
    for name in ("generator", "memory", "metrics_speed", "noise", "prediction", "time_to_score", "train_step"):
        result = _common.read(name)
        if result:  # those that are recorded
            assert result["date"] and result["machine"]["cores"] and result["versions"]["keras"]
            assert result["command"].startswith((f"python benchmarks/{name}.py", f"python -m benchmarks.{name}"))
