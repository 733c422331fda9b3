"""The metrics against fractions, identities and scikit-learn."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

import metrics

TABLE = [  # A, B, Dice, IoU
    ([1, 1, 0, 0], [1, 0, 0, 0], Fraction(2, 3), Fraction(1, 2)),
    ([1, 1, 0, 0], [1, 1, 0, 0], Fraction(1), Fraction(1)),
    ([1, 1, 0, 0], [0, 0, 1, 1], Fraction(0), Fraction(0)),
    ([1, 1, 1, 1], [1, 1, 0, 0], Fraction(2, 3), Fraction(1, 2)),
    ([0, 0, 0, 0], [0, 0, 0, 0], Fraction(1), Fraction(1)),
    ([0, 0, 0, 0], [1, 0, 0, 0], Fraction(0), Fraction(0)),
    ([1, 1, 0, 0], [0.5, 0.5, 0, 0], Fraction(2, 3), Fraction(1, 2)),
]


def random_masks(num=5, side=8, seed=0):
    rng = np.random.default_rng(seed)
    return tuple((rng.random((num, side, side, 1)) < 0.4).astype("float32") for _ in range(2))


@pytest.mark.parametrize(("true", "pred", "dice", "iou"), TABLE)
def test_scores_are_the_fractions_of_their_definition(true, pred, dice, iou):
    true, pred = (np.array(y, "float32").reshape(1, 2, 2, 1) for y in (true, pred))
    assert float(metrics.dice_coeff(true, pred)) == pytest.approx(float(dice), abs=2e-6)
    assert float(metrics.iou_metric(true, pred)) == pytest.approx(float(iou), abs=2e-6)
    assert float(metrics.dice_loss(true, pred)) == pytest.approx(1 - float(dice), abs=2e-6)


def test_scores_of_masks_are_those_of_scikit_learn():
    true, pred = random_masks()
    assert float(metrics.dice_coeff(true, pred)) == pytest.approx(f1_score(true.ravel(), pred.ravel()), abs=1e-6)
    assert float(metrics.iou_metric(true, pred)) == pytest.approx(jaccard_score(true.ravel(), pred.ravel()), abs=1e-6)


def test_dice_is_2j_over_1_plus_j():
    true, pred = random_masks(seed=1)
    dice, iou = (np.array(f(true, pred, axis=(1, 2, 3))) for f in (metrics.dice_coeff, metrics.iou_metric))
    np.testing.assert_allclose(dice, 2 * iou / (1 + iou), rtol=1e-5)
    np.testing.assert_allclose(dice, 1 - np.array(keras.losses.dice(true, pred, axis=(1, 2, 3))), atol=1e-5)


@pytest.mark.parametrize("name", ["DiceCoefficient", "IoU"])
@pytest.mark.parametrize("average", ["global", "image"])
def test_a_metric_does_not_depend_on_the_batches(name, average):
    true, pred = random_masks()
    function = {"DiceCoefficient": metrics.dice_coeff, "IoU": metrics.iou_metric}[name]
    expected = np.mean(function(true, pred, axis=None if average == "global" else (1, 2, 3)))
    for batch in (1, 2, 5):  # 2 leaves a short last batch
        metric = getattr(metrics, name)(threshold=0.5, average=average)
        for start in range(0, len(true), batch):
            metric.update_state(true[start : start + batch], pred[start : start + batch])
        assert float(metric.result()) == pytest.approx(float(expected), abs=1e-6)


def count_beyond_float32(metric):
    """Add a batch of ones of 4099 x 4099 pixels, then 51 times one pixel where only y_true is 1; return the totals."""
    large, one = np.ones((1, 4099, 4099, 1), "uint8"), np.ones((1, 1, 1, 1), "uint8")
    metric.update_state(large, large)
    for _ in range(51):
        metric.update_state(one, 0 * one)
    wholes, rest = (keras.ops.convert_to_numpy(variable).astype(np.int64) for variable in metric.variables)
    return (int(metrics.WHOLE) * wholes + rest)[:3, 0].tolist()


def test_totals_beyond_2_to_the_24_count_every_pixel():
    """float32 has no odd number there: it would neither hold 4099^2 nor notice a single pixel more."""
    metric, pixels = metrics.DiceCoefficient(threshold=0.5), 4099**2
    assert count_beyond_float32(metric) == [pixels, pixels + 51, pixels]
    assert 1 - float(metric.result()) == pytest.approx(51 / (2 * pixels + 51), abs=6e-8)


def test_sums_over_any_axes_are_those_of_numpy():
    true, pred = random_masks(side=8)
    for axis in (None, (1, 2, 3), (0, 1, 2, 3), (1, 2), (0, 2), 1, -2, (-1,)):
        inter, a, b = (np.sum(y, axis=axis, dtype=float) for y in (true * pred, true, pred))
        np.testing.assert_allclose(metrics.dice_coeff(true, pred, 1.0, axis), (2 * inter + 1) / (a + b + 1), rtol=1e-6)


@pytest.mark.parametrize("scale", [255, float("nan")])
def test_masks_other_than_0_and_1_are_refused(scale):
    true, pred = random_masks()
    with pytest.raises(ValueError, match="y_true must be exactly 0 or 1"):
        metrics.dice_coeff(true * scale, pred)


def test_unequal_shapes_are_refused_not_broadcast():
    true, pred = random_masks()
    for call in (metrics.dice_coeff, metrics.iou_metric, metrics.DiceLoss(), metrics.IoU().update_state):
        with pytest.raises(ValueError, match="same shape"):
            call(true[..., 0], pred)


def test_the_loss_is_one_value_per_image():
    true, pred = random_masks()
    loss = np.array(metrics.DiceLoss(smooth=1e-6, reduction="none")(true, pred))
    np.testing.assert_allclose(loss, 1 - np.array(metrics.dice_coeff(true, pred, axis=(1, 2, 3))), atol=1e-6)


def test_a_compiled_model_loads_again(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 1, activation="sigmoid")])
    model.compile(loss=metrics.DiceLoss(), metrics=[metrics.DiceCoefficient(), metrics.IoU(threshold=0.5)])
    true, pred = random_masks()
    scores = model.evaluate(pred, true, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.evaluate(pred, true, verbose=0), scores, rtol=1e-6)


def test_the_loss_has_a_gradient_on_an_empty_mask():
    import tensorflow as tf

    true, pred = tf.zeros((1, 8, 8, 1)), tf.Variable(tf.fill((1, 8, 8, 1), 0.25))
    with tf.GradientTape() as tape:
        loss = metrics.DiceLoss()(true, pred)
    area = 64 * 0.25  # d/dB of 1 - smooth / (|B| + smooth), with smooth = 1
    np.testing.assert_allclose(tape.gradient(loss, pred), np.full((1, 8, 8, 1), 1 / (area + 1) ** 2), rtol=1e-5)


def test_evaluate_is_exact_with_a_short_last_batch():
    true, _ = random_masks(num=5)
    probs = np.random.default_rng(2).random(true.shape, "float32")
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Activation("linear")])
    model.compile(loss=metrics.DiceLoss(), metrics=[metrics.DiceCoefficient(), metrics.IoU(average="image")])
    scores = model.evaluate(probs, true, batch_size=2, verbose=0, return_dict=True)
    assert scores["dice_coeff"] == pytest.approx(float(metrics.dice_coeff(true, probs)), abs=1e-6)
    per_image = metrics.iou_metric(true, probs, axis=(1, 2, 3))
    assert scores["iou_metric"] == pytest.approx(float(np.mean(per_image)), abs=1e-6)


ON_A_BACKEND = """
import numpy as np, metrics
rng = np.random.default_rng(0)
true, pred = (rng.random((5, 8, 8, 1)) < 0.4).astype("float32"), rng.random((5, 8, 8, 1), "float32")
metric = metrics.DiceCoefficient(threshold=0.5, average="image")
metric.update_state(true, pred)
values = [metrics.dice_coeff(true, pred), metrics.iou_metric(true, pred), metrics.DiceLoss()(true, pred)]
from tests.test_metrics import count_beyond_float32
totals = count_beyond_float32(metrics.IoU(threshold=0.5))
from tests.test_metrics import random_classes
classes, probs = random_classes()
classes[:, :2] = 0  # not labelled
for kind in (metrics.DiceCoefficient, metrics.IoU):
    of_classes = kind(threshold=0.5, average="image")
    of_classes.update_state(classes, probs)
    values.append(of_classes.result())
values.append(metrics.DiceLoss()(classes, probs))
print([*totals, *(float(value) for value in [*values, metric.result()])])
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_every_backend_gives_the_same_numbers(backend):
    pytest.importorskip(backend)
    ours, theirs = (
        subprocess.run(
            [sys.executable, "-c", ON_A_BACKEND],
            cwd=Path(metrics.__file__).parent,
            env={**os.environ, "KERAS_BACKEND": name},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()[-1]
        for name in ("tensorflow", backend)
    )
    np.testing.assert_allclose(json.loads(ours), json.loads(theirs), rtol=1e-6)


# Several classes


def random_classes(num=7, side=9, classes=3, seed=0):
    """One-hot masks of three classes and background, and softmax-like predictions, (N, H, W, 4) each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes + 1, (num, side, side))
    probs = rng.random((num, side, side, classes + 1), np.float32)
    return (labels[..., None] == np.arange(classes + 1)).astype("float32"), probs / probs.sum(axis=-1, keepdims=True)


def test_scores_of_a_class_on_a_million_pixels_are_those_of_scikit_learn():
    true, probs = random_classes(1, 1000)
    labels, found = (array.argmax(axis=-1).ravel() for array in (true, probs))
    for metric, oracle in ((metrics.DiceCoefficient, f1_score), (metrics.IoU, jaccard_score)):
        one = metric(threshold=0.5)
        one.update_state(true, probs)
        expected = oracle(labels, found, labels=[1, 2, 3], average=None)
        np.testing.assert_allclose(one.of_classes(3)[0], expected, atol=1e-7)
        assert float(one.result()) == pytest.approx(expected.mean(), abs=1e-6)


@pytest.mark.parametrize("average", ["global", "image"])
def test_batches_of_one_and_of_seven_give_the_same_hard_scores(average):
    true, probs = random_classes()
    found = []
    for batch in (1, 7):
        metric = metrics.DiceCoefficient(threshold=0.5, average=average)
        for start in range(0, 7, batch):
            metric.update_state(true[start : start + batch], probs[start : start + batch])
        found.append(float(metric.result()))
    assert found[0] == pytest.approx(found[1], abs=1e-7)


def test_a_rare_class_that_is_missed_scores_zero_over_the_one_image_that_has_it():
    true = np.zeros((1000, 2, 2, 3), "float32")
    true[..., 0] = 1
    probs = true.copy()
    true[0, 0, 0] = [0, 0, 1]
    metric = metrics.DiceCoefficient(threshold=0.5, average="image", class_names=["frequent", "rare"])
    metric.update_state(true, probs)
    scores, counts = (np.array(values) for values in metric.of_classes(2))
    assert counts.tolist() == [0, 1] and scores[1] < 1e-5
    named = {name: float(value) for name, value in metric.result().items()}
    assert named["dice_coeff"] < 1e-5 and named["dice_coeff/rare"] < 1e-5


def test_a_class_counts_if_it_is_there_or_predicted():
    true, found = np.zeros((3, 4, 4, 3), "float32"), np.zeros((3, 4, 4, 3), "float32")
    true[..., 0] = found[..., 0] = 1
    true[0, 0, 0] = [0, 1, 0]  # missed
    found[1, 0, 0] = [0, 1, 0]  # a false alarm
    metric = metrics.DiceCoefficient(threshold=0.5, average="image")
    metric.update_state(true, found)
    assert np.array(metric.of_classes(2)[1]).tolist() == [2, 0]


def test_what_is_not_labelled_changes_no_score_no_loss_and_no_gradient():
    import tensorflow as tf

    from lab.model import training

    for true, probs, nothing in ((*random_classes(), 0), (*random_masks(7), -1)):
        probs = np.clip(probs, 0.1, 0.9).astype("float32")
        true[:, :3] = nothing
        other = probs.copy()
        other[:, :3] = probs[:, :3][..., ::-1] if nothing == 0 else 1 - probs[:, :3]
        results = []
        for values in (probs, other):
            soft, hard = metrics.DiceCoefficient(), metrics.IoU(threshold=0.5, average="image")
            soft.update_state(true, values), hard.update_state(true, values)
            losses, variable = [], tf.Variable(values)
            for name in ("dice", "ce", "dice+ce", "pooled-dice"):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(training.choose_loss(name)(tf.constant(true), tf.identity(variable)))
                losses.append(float(loss))
                gradient = tape.gradient(loss, variable).numpy()
                assert not gradient[:, :3].any() and gradient[:, 3:].any()
            results.append([*losses, float(soft.result()), float(hard.result())])
        assert results[0] == results[1]


def test_the_loss_is_one_minus_the_mean_dice_of_the_foreground():
    true, probs = random_classes()
    loss = np.array(metrics.DiceLoss(smooth=1.0, reduction="none")(true, probs))
    dice = np.array(metrics.dice_coeff(true, probs, smooth=1.0, axis=(1, 2)))[:, 1:].mean(axis=1)
    np.testing.assert_allclose(loss, 1 - dice, atol=1e-6)


def test_without_absent_classes_the_loss_is_the_mean_over_those_that_are_there():
    import tensorflow as tf

    true, probs = random_classes(num=3)
    true[0][true[0][..., 1] == 1] = [1, 0, 0, 0]  # the first class is not in the first image
    true[1] = [1, 0, 0, 0]  # none is in the second
    dice = np.array(metrics.dice_coeff(true, probs, smooth=1.0, axis=(1, 2)))[:, 1:]
    loss = metrics.DiceLoss(reduction="none", absent=False)
    expected = [1 - dice[0, 1:].mean(), 0, 1 - dice[2].mean()]
    np.testing.assert_allclose(np.array(loss(true, probs)), expected, atol=1e-6)
    assert metrics.DiceLoss.from_config(loss.get_config()).absent is False
    variable = tf.Variable(probs)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss(tf.constant(true), tf.identity(variable)))
    gradient = tape.gradient(total, variable).numpy()
    assert not gradient[0, ..., 1].any() and gradient[0, ..., 2:].all() and not gradient[1].any()


def test_absent_or_not_is_the_same_for_one_class():
    true, pred = random_masks()
    true[0] = 0
    one, other = (np.array(metrics.DiceLoss(reduction="none", absent=absent)(true, pred)) for absent in (True, False))
    np.testing.assert_array_equal(one, other)
