"""Losses, schedules, and a training that is stopped and goes on to the same bits."""

import json
import math
import random
import re
import shutil

import keras
import numpy as np
import pytest

import data_synth
import unet_segmentation as unet
from lab.data import grey_values, patches
from lab.data.sample import Sample
from lab.evaluate import scoring
from lab.model import checkpoints, timing, training

SETTINGS = {"seed": 0, "filters": 2}


def batches(epoch):
    for batch in range(3):
        yield data_synth.make_circles(4 - (batch == 2), 16, seed=(0, epoch, batch), radius=(2, 5))


def compiled(optimizer="muon"):
    """A small network as every process would build it: with a dropout layer, whose state must go on too."""
    keras.utils.set_random_seed(1)
    network = unet.build_unet((16, 16, 1), filters=2, depth=1)
    model = keras.Model(network.input, network(keras.layers.Dropout(0.2)(network.input)))
    model.compile(
        training.choose_optimizer(optimizer, 4e-3, "cosine", 4 * 3),
        training.choose_loss("dice+ce"),
        metrics=training.make_metrics(),
    )
    return model


def fit(model, checkpoint=None, batches=batches, **options):
    validation = data_synth.make_circles(5, 16, seed=(0, 9), radius=(2, 5))
    return training.fit(
        model, batches, epochs=4, steps=3, validation=validation, checkpoint=checkpoint, **options
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed():
    model = compiled()
    history = fit(model)
    return history, model.get_weights()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a training as it is after each epoch: {1: ..., 2: ..., 3: ..., 4: ...}."""
    folder, found = tmp_path_factory.mktemp("training"), {}

    class Copied(checkpoints.Checkpoint):
        def save(self, model, history, timestamps):
            super().save(model, history, timestamps)
            epoch = history["epoch"][-1]
            found[epoch] = shutil.copytree(folder, folder.with_name(f"after-{epoch}"))

    fit(compiled(), Copied(folder, SETTINGS))
    return found


@pytest.fixture
def stopped(folders, tmp_path):
    """Fill the test's folder with what a training leaves that is killed right after `num_epochs`."""
    return lambda num_epochs: shutil.copytree(folders[num_epochs], tmp_path, dirs_exist_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("num_epochs", [1, 3])
def test_a_stopped_training_goes_on_to_the_same_bits(undisturbed, stopped, tmp_path, num_epochs):
    stopped(num_epochs)
    checkpoint = checkpoints.Checkpoint(tmp_path, SETTINGS)
    assert checkpoint.begin(resume=True, overwrite=False, scores=tmp_path / "scores.json") is None
    keras.utils.set_random_seed(99)  # nothing may depend on where the process's random numbers stand
    model, reported = compiled(), []
    history = fit(model, checkpoint, on_epoch_end=lambda logs, epoch, timestamp: reported.append((epoch, timestamp)))
    assert history == undisturbed[0]
    for value, expected in zip(model.get_weights(), undisturbed[1], strict=True):
        np.testing.assert_array_equal(value, expected)
    assert [epoch for epoch, _ in reported] == [1, 2, 3, 4]
    assert [stamp for _, stamp in reported] == sorted(stamp for _, stamp in reported)


def test_a_finished_training_is_not_trained_again(undisturbed, stopped, tmp_path):
    stopped(4)
    checkpoint = checkpoints.Checkpoint(tmp_path, SETTINGS)
    assert checkpoint.find() == 4
    model = compiled()

    def none(epoch):
        raise AssertionError("no batch is needed")

    assert fit(model, checkpoint, none) == undisturbed[0]
    np.testing.assert_array_equal(model.get_weights()[0], undisturbed[1][0])


def test_the_newest_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(stopped, tmp_path, capsys):
    stopped(3)
    newest, before = checkpoints.Checkpoint(tmp_path, SETTINGS).files()
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # a single bit
    newest.write_bytes(content)
    checkpoint = checkpoints.Checkpoint(tmp_path, SETTINGS)
    assert checkpoint.find() == 2 and f"{newest} is damaged" in capsys.readouterr().err
    before.write_bytes(before.read_bytes()[:1000])
    assert checkpoint.find() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [before.name, newest.name]


def test_other_settings_are_named_and_refused(stopped, tmp_path):
    stopped(1)
    with pytest.raises(ValueError, match="filters was 2, is 4.*--overwrite"):
        checkpoints.Checkpoint(tmp_path, {**SETTINGS, "filters": 4}).find()


def test_a_run_never_goes_on_or_deletes_by_itself(stopped, tmp_path):
    stopped(1)
    checkpoint, scores = checkpoints.Checkpoint(tmp_path, SETTINGS), tmp_path / "scores.json"
    with pytest.raises(ValueError, match="--resume.*--overwrite"):
        checkpoint.begin(False, False, scores)
    checkpoint.begin(False, True, scores)
    assert checkpoint.files() == []


def test_a_finished_run_is_told_from_an_unfinished_one(tmp_path, capsys):
    checkpoint, scores = checkpoints.Checkpoint(tmp_path, SETTINGS), tmp_path / "scores.json"
    assert checkpoint.begin(True, False, scores) is None and "a new run begins" in capsys.readouterr().out
    scores.write_text(json.dumps({"settings": checkpoint.settings, "test": 1}))
    assert checkpoint.begin(True, False, scores)["test"] == 1
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        checkpoints.Checkpoint(tmp_path, {**SETTINGS, "seed": 1}).begin(True, False, scores)


@pytest.mark.parametrize("results, words", [
    ({}, "has ended: its test scores are missing. Run it again, without --resume"),
    ({"test": 1, "last_epoch": {"loss": None}, "failure": "The loss became NaN."}, "has ended: The loss became NaN. R"),
])  # fmt: skip
def test_a_run_that_failed_is_not_called_finished(results, words, tmp_path):
    checkpoint, scores = checkpoints.Checkpoint(tmp_path, SETTINGS), tmp_path / "scores.json"
    scores.write_text(json.dumps({"settings": checkpoint.settings, **results}))
    with pytest.raises(ValueError, match=words):
        checkpoint.begin(True, False, scores)


def test_the_settings_of_then_are_those_of_the_newest_checkpoint_or_of_the_scores(stopped, tmp_path):
    assert checkpoints.settings_of_then(tmp_path) == {}
    (tmp_path / "scores.json").write_text(json.dumps({"settings": {"seed": 7}}))
    assert checkpoints.settings_of_then(tmp_path) == {"seed": 7}
    stopped(1)
    assert checkpoints.settings_of_then(tmp_path) == {name: str(value) for name, value in SETTINGS.items()}


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_costs_nothing_else(undisturbed, tmp_path, capsys):
    checkpoint = checkpoints.Checkpoint(tmp_path / "gone", SETTINGS)
    assert fit(compiled(), checkpoint) == undisturbed[0]
    assert capsys.readouterr().err.count("no checkpoint could be written") == 1


def test_a_training_that_diverges_ends_and_says_so_in_its_history():
    model = compiled()
    model.compile(keras.optimizers.Adam(1e37), training.choose_loss("dice+ce"), metrics=training.make_metrics())
    history = fit(model)
    assert len(history["epoch"]) < 4 and not math.isfinite(history["loss"][-1])


def test_a_training_with_an_estimate_and_one_without_have_the_same_bits(undisturbed, monkeypatch, capsys):
    """The network has a dropout layer, so that a seed of Keras is among what must not move."""
    monkeypatch.setattr(training, "measure", lambda *arguments: timing.Pace(1, 1, 1))
    model = compiled()
    assert fit(model) == undisturbed[0]
    for value, expected in zip(model.get_weights(), undisturbed[1], strict=True):
        np.testing.assert_array_equal(value, expected)
    assert " left" not in capsys.readouterr().out  # of a training of seconds


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_an_estimate_leaves_no_trace(optimizer):
    model = compiled(optimizer)
    model.optimizer.build(model.trainable_variables)
    validation = data_synth.make_circles(5, 16, seed=(0, 9), radius=(2, 5))

    def state():
        return [np.asarray(variable).tobytes() for variable in (*model.variables, *model.optimizer.variables)]

    before, chances = state(), (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    pace = training.measure(model, batches, validation)
    assert state() == before and (random.getstate(), str(np.random.get_state())) == chances  # noqa: NPY002
    assert not any(np.any(variable) for variable in model.metrics_variables)
    assert 0 < pace.step < pace.start and 0 < pace.validation < pace.start


def test_the_estimate_compiles_what_the_training_then_runs(monkeypatch):
    traced = []

    def num_traced():
        model = compiled()
        loss = training.choose_loss("dice+ce")
        model.compile("adam", lambda masks, probs: traced.append(1) or loss(masks, probs))
        traced.clear()
        fit(model)
        return len(traced)

    with_estimate = num_traced()
    monkeypatch.setattr(training, "measure", lambda *arguments: timing.Pace(1, 1, 1))
    assert with_estimate == num_traced()


def test_a_training_says_what_it_takes_and_a_long_one_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(timing, "LONG", 0)
    fit(compiled())
    printed, clock = capsys.readouterr().out, r"until (\d+ \w+ )?\d\d:\d\d\n"
    assert re.match(rf"4 epochs of 3 steps: about \d+ s, {clock}Epoch 1/4\n", printed)
    for epoch in (1, 2, 3):
        assert re.search(rf"\nepoch {epoch} of 4: about \d+ s left, {clock}Epoch {epoch + 1}/4\n", printed), printed
    assert "epoch 4 of 4" not in printed


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("num", [1, 2, 16, 17, 33, 64, 273])  # 273 leaves a rest of 1 from 16, and from 17 too
def test_no_validation_batch_holds_a_single_picture_and_every_image_comes_once(num, ndim):
    images = np.arange(num, dtype=np.float32).reshape(num, *[1] * (ndim + 1))
    _, validation = training.feed(lambda: iter(()), (images, images))
    batches = [images.numpy().ravel() for images, _ in validation]
    assert min(map(len, batches)) >= (2 if ndim == 2 else 1)
    assert [*np.concatenate(batches)] == ([0, 0] if (num, ndim) == (1, 2) else [*range(num)])


@pytest.mark.parametrize("num", [1, 17])
def test_validation_scores_are_those_of_the_images_in_one_batch(num):
    model = compiled()
    images, masks = data_synth.make_circles(num, 16, seed=(0, 9), radius=(2, 5))
    history = training.fit(model, batches, epochs=1, steps=3, validation=(images, masks))
    probs = model.predict_on_batch(images)
    for metric in training.make_metrics():
        metric.update_state(masks, probs)
        np.testing.assert_allclose(history[f"val_{metric.name}"], [metric.result()], rtol=1e-5)
    loss = np.mean(training.choose_loss("dice+ce")(masks, probs))
    np.testing.assert_allclose(history["val_loss"], [loss], rtol=1e-5)


@pytest.mark.parametrize("num", [1, 16, 17])
def test_images_are_predicted_in_any_number(num):
    images, _ = data_synth.make_circles(num, 16, seed=1, radius=(2, 5))
    model = compiled()
    probs = training.predict(model, images)
    expected = np.concatenate([model.predict_on_batch(image[None]) for image in images])
    assert probs.shape == (num, 16, 16, 1)
    np.testing.assert_allclose(probs, expected, atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_the_sum_of_dice_and_cross_entropy_per_image(ndim):
    from metrics import dice_loss

    rng = np.random.default_rng(0)
    masks = (rng.random((3, *[8] * ndim, 1)) < 0.3).astype("float32")
    probs = rng.uniform(0.1, 0.9, masks.shape).astype("float32")
    axes = tuple(range(1, ndim + 2))
    entropy = -np.mean(masks * np.log(probs) + (1 - masks) * np.log(1 - probs), axis=axes)
    expected = np.array(dice_loss(masks, probs, 1.0, axes)) + entropy
    np.testing.assert_allclose(training.choose_loss("dice+ce")(masks, probs), expected, rtol=1e-5)


def test_the_constant_of_a_dice_loss_is_the_one_that_is_given():
    masks, probs = np.zeros((2, 4, 4, 1), "float32"), np.zeros((2, 4, 4, 1), "float32")
    masks[:, 0] = 1  # 4 pixels, nothing found: Dice is s / (4 + s), pooled s / (8 + s)
    for smooth, given in ((1, None), (1, 1.0), (1e-6, 1e-6)):
        loss = training.choose_loss("dice", given)
        np.testing.assert_allclose(loss(masks, probs), 1 - smooth / (4 + smooth), rtol=1e-6)
    for smooth, given in ((1e-6, None), (1e-6, 1e-6), (1, 1.0)):
        loss = training.choose_loss("pooled-dice", given)
        np.testing.assert_allclose(loss(masks, probs), 1 - smooth / (8 + smooth), rtol=1e-6)
    entropy = -np.log(1e-7) / 4  # of the four pixels in sixteen, as Keras clips
    loss = training.choose_loss("dice+ce", 1e-6)
    np.testing.assert_allclose(loss(masks, probs), [1 + entropy] * 2, rtol=1e-5)


def test_the_cosine_schedule_rises_over_a_tenth_and_ends_at_zero():
    rate = training.choose_optimizer("adam", 4e-3, "cosine", 100)._learning_rate
    values = [float(rate(step)) for step in (0, 10, 55, 100)]
    assert values[0] < values[1] and values[1] == pytest.approx(4e-3)
    assert values[2] == pytest.approx(2e-3) and values[3] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("name", ["dice", "ce", "dice+ce", "pooled-dice"])
def test_what_lies_outside_a_small_picture_changes_no_weight_no_loss_and_no_score(name, num_classes):
    """Whatever is there: the mirror image, anything else, or nothing, for a network that sees one pixel at a time."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes + 1, (20, 24)).astype(np.uint8)
    small = Sample("a", rng.random((20, 24, 1), np.float32), labels, grey_values.GreyRange(np.zeros(1), np.ones(1)))
    images, masks = patches.grid_patches([small], 32, 1, num_classes)
    assert (images[0, 20:31] == images[0, 18:7:-1]).all()  # mirrored
    other = images.copy()
    other[:, 20:], other[:, :, 24:] = rng.random((12, 32, 1)), rng.random((32, 8, 1))
    found = []
    for image, mask in ((images, masks), (other, masks), (images[:, :20, :24], masks[:, :20, :24])):
        keras.utils.set_random_seed(0)
        output = keras.layers.Conv2D(masks.shape[-1], 1, activation="sigmoid" if num_classes == 1 else "softmax")
        model = keras.Sequential([keras.Input((None, None, 1)), output])
        model.compile(
            keras.optimizers.SGD(1.0), training.choose_loss(name), metrics=training.make_metrics(), run_eagerly=True
        )
        start = np.concatenate([weight.ravel() for weight in model.get_weights()])
        said = model.test_on_batch(image, mask, return_dict=True)
        rows = scoring.rows_of_images(mask, training.predict(model, image), ("a", "b")[:num_classes])
        model.train_on_batch(image, mask)
        weights = np.concatenate([weight.ravel() for weight in model.get_weights()])
        assert np.abs(weights - start).max() > 1e-3
        found.append([*weights, *said.values(), *(value for value in rows[0].values() if value is not None)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5, atol=1e-6)


def test_a_line_of_an_epoch_has_the_means_and_the_history_each_class_too(capsys):
    rng, classes = np.random.default_rng(0), ("cell", "wall")
    masks = np.eye(3, dtype=np.float32)[rng.integers(0, 3, (4, 8, 8))]
    images = masks.argmax(axis=-1)[..., None].astype(np.float32)
    output = keras.layers.Conv2D(3, 1, activation="softmax")
    model = keras.Sequential([keras.Input((8, 8, 1)), output])
    model.compile(keras.optimizers.SGD(0.1), training.choose_loss("ce"), metrics=training.make_metrics(classes))
    history = training.fit(model, lambda epoch: [(images, masks)], epochs=2, steps=1, validation=(images, masks))
    shown = capsys.readouterr().out
    assert "val_image_dice: " in shown and "Epoch 2/2" in shown
    assert "image_dice/" not in shown and len(history["val_image_dice/wall"]) == 2


def test_the_share_at_which_a_network_begins_is_that_of_the_labelled_pixels():
    masks = np.full((1, 4, 4, 1), -1, np.float32)
    masks[:, :2], masks[:, 0, 0] = 0, 1
    assert training.class_shares([masks]).tolist() == [7 / 8, 1 / 8]
