"""predict.py on a network whose answer is known: a 1x1 convolution that finds all that is brighter than 0.5."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

import predict
import unet_segmentation
from lab.data import grey_values, pictures
from lab.data.classes import Classes
from lab.model import model_file, prediction, timing
from lab.system import table as csv_table

WIDE = {"1%": [0.0, 1.0], "50%": [0.0, 1.0], "99%": [0.0, 1.0]}
SEEN = {"1%": [0.0, 0.3], "50%": [0.2, 0.8], "99%": [0.7, 1.0]}


def threshold_network(side=None, level=0.5, channels=1):
    """probability = sigmoid(200 (grey - level)): of colours, the mean of the channels."""
    inputs = keras.Input((side, side, channels))
    layer = layers.Conv2D(1, 1, activation="sigmoid")
    network = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.full((1, 1, channels, 1), 200 / channels), np.array([-200 * level])])
    return network


def save_model(network, path, settings=grey_values.ABSOLUTE, seen=SEEN):
    size = [side or 16 for side in network.input_shape[1:3]]
    model_file.save_model(network, path, {**settings, "size": size, "seen": seen})
    return path


def load_model(network, path, **options):
    return model_file.load_model(save_model(network, path, **options))


def probabilities(model, picture, **options):
    """(H, W) of one class."""
    slabs = prediction.probabilities([model], picture, prediction.prepare_pictures([model], picture))
    return np.concatenate(list(slabs))[..., 0]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_model(threshold_network(), tmp_path_factory.mktemp("model") / "model.keras")


@pytest.fixture
def picture_folder(tmp_path):
    """Pictures of 7 x 5 to 90 x 70 pixels, dark with bright squares; the squares."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    truths = {}
    for i, (height, width) in enumerate([(5, 7), (16, 16), (33, 50), (70, 90)]):
        truth = np.zeros((height, width), bool)
        truth[1:3, 1:3] = truth[-3:, -3:] = True
        truths[f"p{i}"] = truth
        Image.fromarray(np.where(truth, 250, 30).astype(np.uint8)).save(folder / f"p{i}.png")
    return folder, truths


def table(folder):
    return list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))


def test_masks_are_exact_and_of_the_pictures_size(model_path, picture_folder, tmp_path, capsys):
    folder, truths = picture_folder
    masks, out = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    for name, truth in truths.items():
        Image.fromarray(truth).save(masks / f"{name}_mask.png")
    flags = ["--out-dir", str(out), "--masks", str(masks), "--probabilities"]
    assert predict.main([str(model_path), str(folder), *flags]) == 0
    assert "[4/4] p3.png" in capsys.readouterr().out
    for row, (name, truth) in zip(table(out), truths.items(), strict=True):
        mask = np.asarray(Image.open(out / f"{name}_mask.png"))
        np.testing.assert_array_equal(mask, truth * 255)
        assert Image.open(out / f"{name}_overlay.png").size == mask.shape[::-1]
        probability = pictures.read_picture(out / f"{name}_probability.png")[..., 0]
        assert probability.dtype == np.uint16
        np.testing.assert_array_equal(probability >= 2**15, truth)
        assert float(row["foreground"]) == pytest.approx(truth.mean()) and row["objects"] == "2"
        assert float(row["dice"]) == float(row["iou"]) == 1 and float(row["confidence"]) > 0.99


def test_rows_of_tiles_and_the_other_pictures_are_timed(model_path, picture_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "SLOW", 0)
    monkeypatch.setitem(prediction.LIMITS, 2, (32, 8))
    assert predict.main([str(model_path), str(picture_folder[0]), "--out-dir", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = [line.split(", ")[0].split(":")[0] for line in lines if line.startswith(("row", "["))]
    # Of 33 pixels, tiles of 32 make two rows; of 70, at least (70 - 8) / (32 - 8), rounded up.
    expected = ["[1/4] p0.png", "[2/4] p1.png", "row 1 of 2", "[3/4] p2.png", "row 1 of 3", "row 2 of 3"]
    assert starts == [*expected, "[4/4] p3.png"]
    assert lines[1].startswith("3 more: about ") and sum("more" in line for line in lines) == 1


def test_the_table_holds_dice_and_iou_against_other_masks(model_path, picture_folder, tmp_path):
    folder, truths = picture_folder
    (tmp_path / "masks").mkdir()
    other = truths["p1"].copy()
    other[-3:] = False  # 4 of 13 true pixels are left, with the 9 that are not there: Dice 8 / 17
    Image.fromarray(other).save(tmp_path / "masks" / "p1.png")
    flags = ["--out-dir", str(tmp_path / "out"), "--masks", str(tmp_path / "masks")]
    assert predict.main([str(model_path), str(folder / "p1.png"), *flags]) == 0
    row = table(tmp_path / "out")[0]
    assert float(row["dice"]) == pytest.approx(8 / 17) and float(row["iou"]) == pytest.approx(4 / 13)


def test_a_picture_without_a_true_mask_is_predicted_and_gets_no_score(model_path, picture_folder, tmp_path, capsys):
    folder, truths = picture_folder
    (tmp_path / "masks").mkdir()
    Image.fromarray(truths["p1"]).save(tmp_path / "masks" / "p1.png")
    flags = ["--out-dir", str(tmp_path / "out"), "--masks", str(tmp_path / "masks")]
    for more, said in (([], 1), (["--continue"], 1)):
        assert predict.main([str(model_path), str(folder), *flags, *more]) == 0
        assert capsys.readouterr().err.count("3 of 4 get no score: no mask in") == said
    scores = {row["picture"]: (row["dice"], row["iou"]) for row in table(tmp_path / "out")}
    assert scores == {"p1.png": ("1.0", "1.0"), **{f"p{i}.png": ("", "") for i in (0, 2, 3)}}
    assert len([*(tmp_path / "out").glob("*_mask.png")]) == 4


def test_one_unreadable_picture_does_not_stop_the_others(model_path, picture_folder, tmp_path, capsys):
    folder, _ = picture_folder
    (folder / "p11.png").write_text("text")
    assert predict.main([str(model_path), str(folder), "--out-dir", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "p11.png cannot be read" in captured.err and "1 of 5 failed" in captured.out
    assert [row["picture"] for row in table(tmp_path / "out")] == ["p0.png", "p1.png", "p2.png", "p3.png"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 11 and not any("p11" in name or "partial" in name for name in names)


def test_the_settings_come_from_the_model(picture_folder, tmp_path):
    """A stretched model finds in a dark picture what an absolute one does not."""
    picture = np.full((16, 16), 10, np.uint8)
    picture[4:8, 4:8] = 30
    Image.fromarray(picture).save(tmp_path / "dark.png")
    for settings, found in ((grey_values.ABSOLUTE, 0), (grey_values.STRETCHED, 16)):
        model = load_model(threshold_network(), tmp_path / "model.keras", settings=settings)
        assert np.count_nonzero(probabilities(model, picture[..., None]) >= 0.5) == found


@pytest.mark.parametrize(
    ("grey", "threshold", "words"),
    [
        (20, 0.5, "All background"),
        (240, 0.5, "All foreground"),
        (250, 0.5, "outside those of the training"),
        (40, 0, "All"),
    ],
)
def test_useless_predictions_say_their_likely_cause(grey, threshold, words, model_path, tmp_path, capsys):
    Image.fromarray(np.full((20, 20), grey, np.uint8)).save(tmp_path / "a.png")
    flags = ["--out-dir", str(tmp_path / "out"), "--threshold", str(threshold)]
    assert predict.main([str(model_path), str(tmp_path / "a.png"), *flags]) == 0
    assert words in capsys.readouterr().err and words in table(tmp_path / "out")[0]["remark"]


def test_a_picture_of_the_training_size_gets_what_the_model_says(tmp_path):
    keras.utils.set_random_seed(0)
    network = unet_segmentation.build_unet((None, None, 1), filters=2)
    model = load_model(network, tmp_path / "model.keras")
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 1), np.uint8)
    expected = network.predict_on_batch(picture[None] / np.float32(255))[0, ..., 0]
    np.testing.assert_allclose(probabilities(model, picture), expected, atol=1e-6)


def test_an_array_gets_the_labels_and_probabilities_that_its_file_gets(tmp_path):
    path = save_model(threshold_network(), tmp_path / "model.keras")
    models = prediction.load_models([str(path)])
    grey = np.random.default_rng(0).integers(0, 256, (33, 50), np.uint8)
    labels, probs = prediction.predict(models, grey[..., None])
    assert labels.dtype == np.uint8 and probs.dtype == np.float32
    np.testing.assert_array_equal(labels, grey > 127)
    np.testing.assert_array_equal(probs[..., 0], probabilities(models[0], grey[..., None]))
    np.testing.assert_array_equal(prediction.predict(models, grey)[0], labels)
    np.testing.assert_array_equal(prediction.predict(models, grey, 0)[0], 1)
    for shape in ((33,), (33, 50, 3), (2, 33, 50, 1), (0, 50, 1)):
        with pytest.raises(ValueError, match=r"takes an array \(H, W, 1\); got one of shape"):
            prediction.predict(models, np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="its file's type, such as uint8 or float32, was expected; got int64"):
        prediction.predict(models, grey.astype(np.int64))


def test_an_array_of_three_axes_is_a_volume_for_a_model_of_volumes(tmp_path):
    network = unet_segmentation.build_unet((None, None, None, 1), filters=2, depth=1, num_classes=2)
    settings = {**grey_values.ABSOLUTE, **Classes(("a", "b"), (0, 1, 2)).stored(), "size": [8, 8, 8], "seen": SEEN}
    model_file.save_model(network, tmp_path / "model.keras", settings)
    volume = np.random.default_rng(0).random((9, 10, 11), np.float32)
    labels, probs = prediction.predict(prediction.load_models([tmp_path / "model.keras"]), volume)
    assert labels.shape == volume.shape and probs.shape == (*volume.shape, 3)
    np.testing.assert_array_equal(labels, probs.argmax(axis=-1))


def test_tiles_of_a_network_leave_no_seam(tmp_path, monkeypatch):
    """Tiles overlap by twice the reach of three 3x3 convolutions: nothing but rounding may differ."""
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(4, 3, padding="same", activation="tanh") for _ in range(2)]
    network = keras.Sequential([keras.Input((None, None, 1)), *stack, layers.Conv2D(1, 3, padding="same")])
    model = load_model(network, tmp_path / "model.keras")
    picture = np.random.default_rng(0).integers(0, 255, (150, 210, 1), np.uint8)
    whole = probabilities(model, picture)
    monkeypatch.setitem(prediction.LIMITS, 2, (64, 32))
    tiled = probabilities(model, picture)
    # A cosine over 32 pixels gives the 3 pixels that see a tile's padding at most 6% of the weight, 1% on average.
    assert np.abs(tiled - whole).max() < 0.02


def test_no_probability_exceeds_1_where_tiles_overlap():
    inputs = keras.Input((None, None, 1))
    certain = layers.Conv2D(
        2, 1, activation="sigmoid", kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(100)
    )
    model = model_file.Model(keras.Model(inputs, certain(inputs)), {"size": [64, 64], "divisor": 8})
    image = np.zeros((900, 1500, 1), np.float32)
    probs = np.concatenate(list(prediction.probabilities([model], image, [lambda tiles: tiles])))
    assert probs.max() == 1 and probs.min() > 1 - 1e-6


@pytest.mark.parametrize(("sides", "flips", "calls"), [
    ((16, 16), False, 1),  # the only tile, and a copy of it
    ((16, 16), True, 2),  # its four mirror images
    ((16, 28), False, 1),
    ((40, 16), False, 2),  # three tiles and a copy of the last one: they lie in rows of one
    ((40, 16), True, 6),
    ((28, 28), False, 2),
])  # fmt: skip
def test_pictures_are_predicted_in_pairs_and_copies_are_thrown_away(sides, flips, calls, tmp_path, monkeypatch):
    """A network of one 1x1 convolution sees no borders: the values are those of the whole picture."""
    monkeypatch.setitem(prediction.LIMITS, 2, (16, 4))
    monkeypatch.setattr(prediction, "PIXELS", 1)
    network, preprocessing = load_model(threshold_network(), tmp_path / "model.keras")
    sizes = []

    class Counting:
        def predict_on_batch(self, images):
            sizes.append(len(images))
            return network.predict_on_batch(images)

    models = [model_file.Model(Counting(), preprocessing)]
    picture = np.random.default_rng(0).integers(100, 155, (*sides, 1), np.uint8)
    slabs = prediction.probabilities(models, picture, prediction.prepare_pictures(models, picture), flips)
    alone = network.predict_on_batch(picture[None] / np.float32(255))[0, ..., 0]
    np.testing.assert_allclose(np.concatenate([*slabs])[..., 0], alone, atol=1e-5)
    assert sizes == [2] * calls


def test_a_network_of_fixed_size_is_used_in_its_size(tmp_path):
    network = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(64), layers.Reshape((8, 8, 1))])
    network.layers[1].set_weights([np.eye(64), np.zeros(64)])
    model = load_model(network, tmp_path / "model.keras")
    assert model.preprocessing["divisor"] is None
    picture = np.random.default_rng(0).integers(0, 255, (21, 30, 1), np.uint8)
    np.testing.assert_allclose(probabilities(model, picture), picture[..., 0] / 255, atol=1e-6)


def test_the_grey_range_of_a_picture_is_taken_once(tmp_path, monkeypatch):
    calls = []
    take = grey_values.range_of
    monkeypatch.setattr(grey_values, "range_of", lambda *args: calls.append(1) or take(*args))
    path = save_model(threshold_network(), tmp_path / "model.keras", grey_values.STRETCHED)
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(tmp_path / "a.png")
    flags = ["--out-dir", str(tmp_path / "out"), "--models", str(path), str(path)]
    assert predict.main([str(path), str(tmp_path / "a.png"), *flags]) == 0
    assert len(calls) == 1


def test_the_probabilities_of_several_models_are_averaged(tmp_path):
    """Of what three thresholds find, most of them must have found it."""
    paths = [save_model(threshold_network(None, level), tmp_path / f"{level}.keras") for level in (0.2, 0.4, 0.8)]
    grey = np.array([[25, 75, 150, 250]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    flags = ["--out-dir", str(tmp_path / "out"), "--probabilities", "--models", *map(str, paths[1:])]
    assert predict.main([str(paths[0]), str(tmp_path / "a.png"), *flags]) == 0
    kept = pictures.read_picture(tmp_path / "out/a_probability.png")[..., 0] / 65535
    np.testing.assert_allclose(kept, [[0, 1 / 3, 2 / 3, 1]], atol=1e-3)
    assert [f"{level}.keras@" in table(tmp_path / "out")[0]["made_with"] for level in (0.2, 0.4, 0.8)] == [True] * 3


def test_models_that_do_not_go_together_are_refused(picture_folder, tmp_path, capsys):
    grey, colour = (save_model(threshold_network(channels=c), tmp_path / f"{c}.keras") for c in (1, 3))
    fixed, other = (save_model(threshold_network(side), tmp_path / f"fixed{side}.keras") for side in (16, 32))
    for models, words in (((grey, colour), "3 channels"), ((fixed, other), "the same size")):
        said = refusal([models[0], picture_folder[0], "--models", models[1], "--out-dir", tmp_path / "out"], capsys)
        assert words in said and not (tmp_path / "out").exists()
    assert prediction.choose_tile(prediction.load_models([grey, fixed]), (100, 100)) == [16, 16]


def test_flips_average_over_mirrored_pictures(tmp_path):
    """A network that looks to the left and up, at half the weight, looks in all directions then."""
    inputs = keras.Input((None, None, 1))
    layer = layers.Conv2D(1, 3, padding="same", use_bias=False)
    network = keras.Model(inputs, layer(inputs))
    weights = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)[..., None, None]
    layer.set_weights([weights / 2])
    models = [load_model(network, tmp_path / "model.keras")]
    picture = np.zeros((9, 9, 1), np.uint8)
    picture[4, 4] = 255
    found = np.concatenate(
        list(prediction.probabilities(models, picture, prediction.prepare_pictures(models, picture), True))
    )
    around = np.zeros((9, 9))
    around[[3, 5, 4, 4], [4, 4, 3, 5]] = 0.25
    np.testing.assert_allclose(found[..., 0], around, atol=1e-6)


def test_colours_and_grey_go_to_models_of_both(tmp_path, capsys):
    """Pure blue is dark in luma, and a third of all light in colour."""
    blue, grey = np.zeros((20, 20, 3), np.uint8), np.full((20, 20), 200, np.uint8)
    blue[5:15, 5:15, 2] = 255
    Image.fromarray(blue).save(tmp_path / "blue.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for channels, found in ((1, {"blue.png": 0, "grey.png": 1}), (3, {"blue.png": 0.25, "grey.png": 1})):
        path = save_model(threshold_network(level=0.25, channels=channels), tmp_path / "model.keras")
        out = tmp_path / f"out{channels}"
        assert predict.main([str(path), *(str(tmp_path / name) for name in found), "--out-dir", str(out)]) == 0
        assert {row["picture"]: float(row["foreground"]) for row in table(out)} == found
        assert ("grey stands for all three colours" in capsys.readouterr().err) == (channels == 3)
        assert np.asarray(Image.open(out / "blue_overlay.png")).shape == (20, 20, 3)
    shown = np.asarray(Image.open(tmp_path / "out3/blue_overlay.png"))
    assert shown[0, 0].tolist() == [0, 0, 0] and shown[10, 10, 2] > 200 and shown[10, 10, 0] < 20


def test_the_table_has_the_median_diameter_of_the_objects(model_path, tmp_path):
    picture = np.zeros((60, 60), np.uint8)
    picture[5:15, 5:15] = picture[30:32, 30:32] = picture[50:54, 10:14] = 250  # areas 100, 4, 16
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert predict.main([str(model_path), str(tmp_path / "a.png"), "--out-dir", str(tmp_path / "out")]) == 0
    row = table(tmp_path / "out")[0]
    assert row["objects"] == "3" and float(row["diameter"]) == pytest.approx(2 * math.sqrt(16 / math.pi))


def test_a_picture_is_looked_at_in_the_wanted_size_or_the_surest_one(tmp_path, capsys):
    """The network finds where the mean of 5 x 5 pixels is bright: of small squares nothing, unless enlarged."""
    inputs = keras.Input((None, None, 1))
    x = layers.AveragePooling2D(5, strides=1, padding="same")(inputs)
    layer = layers.Conv2D(1, 1, activation="sigmoid")
    network = keras.Model(inputs, layer(x))
    layer.set_weights([np.full((1, 1, 1, 1), 20.0), np.array([-14.0])])
    picture = np.zeros((40, 40), np.uint8)
    picture[10:14, 10:14] = picture[30:34, 20:24] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")

    def predicted(name, settings, *flags):
        model = save_model(network, tmp_path / f"{name}.keras", settings)
        out = tmp_path / name
        assert predict.main([str(model), str(tmp_path / "a.png"), "--out-dir", str(out), *flags]) == 0
        return np.asarray(Image.open(out / "a_mask.png")), table(out)[0]

    scaled = {**grey_values.ABSOLUTE, "scales": [0.5, 1.0, 4.0]}
    mask, row = predicted("as it is", grey_values.ABSOLUTE)
    assert (row["scale"], row["objects"]) == ("1.0", "0")
    for mask, row in (predicted("asked", grey_values.ABSOLUTE, "--scale", "4"), predicted("found", scaled)):
        assert (row["scale"], row["objects"]) == ("4.0", "2") and mask.shape == (40, 40)
        assert not mask[picture == 0].any() and np.count_nonzero(mask) > 20  # without the corners
    assert "2 objects, at scale 4" in capsys.readouterr().out


def test_a_network_that_gives_no_number_is_said(tmp_path, picture_folder, capsys):
    inputs = keras.Input((None, None, 1))
    path = save_model(keras.Model(inputs, keras.ops.log(inputs - 2)), tmp_path / "model.keras")
    said = refusal([path, picture_folder[0] / "p1.png", "--out-dir", tmp_path / "out"], capsys)
    assert "NaN or infinite" in said and "p1.png" in said and not (tmp_path / "out").exists()


# Tables, and what is left when something goes wrong


def test_whatever_is_wrong_with_a_picture_leaves_the_others_alone(
    model_path, picture_folder, tmp_path, monkeypatch, capsys
):
    folder, _ = picture_folder
    read = pictures.read_picture
    problems = {"p1": MemoryError("no memory"), "p2": ZeroDivisionError("odd\nbytes")}

    def fail(path, channels=None):
        if path.stem in problems:
            raise problems[path.stem]
        return read(path, channels)

    monkeypatch.setattr(pictures, "read_picture", fail)
    assert predict.main([str(model_path), str(folder), "--out-dir", str(tmp_path / "out")]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert [
        line for line in said if "p1.png: MemoryError: no memory" in line or "p2.png: ZeroDivisionError: odd" in line
    ] == said
    assert [row["picture"] for row in table(tmp_path / "out")] == ["p0.png", "p3.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*_mask.png")) == ["p0_mask.png", "p3_mask.png"]


def outputs(folder):
    """The rows' names, and the names that have a mask, each with an overlay."""
    masks = {path.name.removesuffix("_mask.png") for path in folder.glob("*_mask.png")}
    assert masks == {path.name.removesuffix("_overlay.png") for path in folder.glob("*_overlay.png")}
    return {row["picture"].removesuffix(".png") for row in table(folder)}, masks


def test_rows_of_pictures_that_were_predicted_before_stay_with_their_masks(model_path, picture_folder, tmp_path):
    folder, _ = picture_folder
    out = tmp_path / "out"
    for names in (("p0", "p1", "p2"), ("p1", "p3")):
        arguments = [str(folder / f"{name}.png") for name in names]
        assert predict.main([str(model_path), *arguments, "--out-dir", str(out), "--threshold", f"0.{len(names)}"]) == 0
    assert [(row["picture"], row["made_with"][-3:]) for row in table(out)] == [
        ("p0.png", "0.3"), ("p2.png", "0.3"), ("p1.png", "0.2"), ("p3.png", "0.2")
    ]  # fmt: skip
    assert outputs(out)[0] == outputs(out)[1] == {"p0", "p1", "p2", "p3"}


def test_continue_leaves_finished_pictures_alone(model_path, picture_folder, tmp_path, monkeypatch, capsys):
    folder, _ = picture_folder
    out = tmp_path / "out"
    command = [str(model_path), str(folder), "--out-dir", str(out), "--continue"]
    first = [str(model_path), str(folder / "p0.png"), str(folder / "p1.png"), str(folder / "p2.png"), *command[2:]]
    assert predict.main(first) == 0
    (out / "p1_mask.png").unlink()
    times = {name: (out / f"{name}_mask.png").stat().st_mtime_ns for name in ("p0", "p2")}
    os.utime(folder / "p2.png", (2e9, 2e9))  # changed since
    with open(out / "predictions.csv", "ab") as file:
        file.write(b"p3.png,90,7")  # killed in the midst of a line
    capsys.readouterr()
    assert predict.main(command) == 0
    said = capsys.readouterr().out
    assert "1 of 4 finished before" in said and "p0.png" not in said and said.count("foreground") == 3
    assert (out / "p0_mask.png").stat().st_mtime_ns == times["p0"]
    assert (out / "p2_mask.png").stat().st_mtime_ns > times["p2"]
    assert outputs(out)[0] == outputs(out)[1] == {"p0", "p1", "p2", "p3"}
    os.utime(folder / "p2.png", (1e9, 1e9))
    assert predict.main(command) == 0 and "4 of 4 finished before" in capsys.readouterr().out
    assert predict.main([*command, "--threshold", "0.4"]) == 0 and "finished before" not in capsys.readouterr().out


def test_a_row_goes_when_another_picture_takes_its_files(model_path, picture_folder, tmp_path, capsys):
    folder, _ = picture_folder
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    Image.open(folder / "p1.png").save(other / "p0.bmp")
    command = ["--out-dir", str(out)]
    assert predict.main([str(model_path), str(folder / "p0.png"), str(folder / "p2.png"), *command]) == 0
    assert predict.main([str(model_path), str(other), *command]) == 0
    assert [row["picture"] for row in table(out)] == ["p2.png", "p0.bmp"]
    assert predict.main([str(model_path), str(folder / "p0.png"), *command, "--continue"]) == 0
    assert [row["picture"] for row in table(out)] == ["p2.png", "p0.png"]
    assert "finished before" not in capsys.readouterr().out


def test_continue_scores_anew_what_has_another_true_mask(model_path, picture_folder, tmp_path, capsys):
    folder, truths = picture_folder
    true, out = tmp_path / "true", tmp_path / "out"
    true.mkdir()
    Image.fromarray(np.zeros(Image.open(folder / "p0.png").size[::-1], np.uint8)).save(true / "p0.png")
    command = [str(model_path), str(folder / "p0.png"), "--masks", str(true), "--out-dir", str(out), "--continue"]
    assert predict.main(command) == predict.main(command) == 0
    assert "1 of 1 finished before" in capsys.readouterr().out
    (out / "p0_mask.png").replace(true / "p0.png")  # corrected
    assert predict.main(command) == 0
    assert float(table(out)[0]["dice"]) == pytest.approx(1)


def test_every_picture_belongs_to_one_shard(model_path, picture_folder, tmp_path, capsys):
    folder, truths = picture_folder
    found = []
    for number in (1, 2, 3):
        flags = ["--out-dir", str(tmp_path / "out"), "--shard", f"{number}/3"]
        assert predict.main([str(model_path), str(folder), *flags]) == 0
        found += [row["picture"] for row in table(tmp_path / f"out/shard-{number}-of-3")]
    assert sorted(found) == [f"{name}.png" for name in truths]
    assert predict.main([str(model_path), str(folder), *flags[:2], "--shard", "5/9"]) == 0, "an empty shard is done"
    assert "Nothing to do in shard 5 of 9: there are fewer pictures than shards." in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows cannot kill so")
@pytest.mark.slow
def test_table_and_masks_belong_together_after_a_kill(model_path, tmp_path, monkeypatch):
    """Killed at a moment of its own in the midst of 60 pictures, and continued: nothing half-written at any time."""
    (tmp_path / "in").mkdir()
    for i in range(60):
        Image.fromarray(np.full((30, 30), i, np.uint8)).save(tmp_path / f"in/{i}.png")
    monkeypatch.chdir(tmp_path)
    flags = [str(model_path), "in", "--out-dir", "out", "--continue"]
    command = [sys.executable, predict.__file__, *flags]
    for pause in (0.0, 0.1):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            process.stdout.readline()  # the first picture is finished
            time.sleep(pause)
            process.kill()
        rows, masks = outputs_after_a_kill(tmp_path / "out")
        assert rows <= masks and len(masks - rows) <= 1 and rows
    assert predict.main(flags) == 0
    assert outputs(tmp_path / "out") == ({str(i) for i in range(60)},) * 2
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def outputs_after_a_kill(folder):
    rows = {row["picture"].removesuffix(".png") for row in csv_table.read(folder / "predictions.csv", predict.COLUMNS)}
    masks = set()
    for path in folder.glob("*_mask.png"):
        assert np.asarray(Image.open(path)).shape == (30, 30), "half a picture"
        masks.add(path.name.removesuffix("_mask.png"))
    return rows, masks


@pytest.mark.parametrize("name", ["$a^b{.png", "\udce9t\udce9.png", "a\nb.png", '%s,";.png', "\u5f71.png", "-x.png"])
def test_names_of_any_kind_are_written_as_they_are(name, model_path, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((20, 20), 240, np.uint8)).save(tmp_path / "in" / name)
    assert predict.main([str(model_path), "in", "--out-dir", "out", "--continue"]) == 0
    assert (tmp_path / "out" / name.replace(".png", "_mask.png")).exists()
    assert csv_table.read(tmp_path / "out/predictions.csv", predict.COLUMNS)[0]["picture"] == name
    assert predict.main([str(model_path), "in", "--out-dir", "out", "--continue"]) == 0
    assert "1 of 1 finished before" in capfd.readouterr().out
    (tmp_path / "in" / name).write_text("no picture any more")
    assert predict.main([str(model_path), "in", "--out-dir", "out"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"predict.py: error: in/{pictures.readable(name)} cannot be read as a picture")


def test_own_pictures_are_trained_on_and_predicted(store, tmp_path, capsys):
    """Bright squares of many sizes in folders of one's own; the model's file then knows how they were prepared."""
    rng = np.random.default_rng(0)
    for name in ("pictures", "masks"):
        (tmp_path / name).mkdir()
    for i in range(9):
        mask = np.zeros((40 + i, 70), bool)
        mask[10:20, 10 : 20 + i] = i != 4
        noisy = np.where(mask, 9000, 3000) + rng.integers(0, 900, mask.shape)
        Image.fromarray(noisy.astype(np.uint16)).save(tmp_path / "pictures" / f"{i}.tif")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    flags = "--images pictures --masks masks --size 32 --filters 4 --epochs 1 --train-images 8 --out-dir out --seed 3"
    scores = unet_segmentation.main(flags.split())
    split = json.loads((tmp_path / "out/split.json").read_text())
    assert sorted(sum(split.values(), [])) == [f"{i}.tif" for i in range(9)]
    rows = list(csv.DictReader((tmp_path / "out/per_image.csv").read_text().splitlines()))
    assert {row["image"] for row in rows} == set(split["test"])
    assert json.loads((tmp_path / "out/scores.json").read_text())["test"] == scores
    assert (tmp_path / "out/dataset.png").exists()
    assert model_file.read_preprocessing(tmp_path / "out/model.keras")["stretch"] == [1, 99]
    assert model_file.read_preprocessing(tmp_path / "out/model.keras")["divisor"] == 8
    assert predict.main(["out/model.keras", "pictures", "--masks", "masks"]) == 0
    assert "outside those of the training" not in capsys.readouterr().err

    (tmp_path / "masks/8.png").unlink()
    for bad, words in ((flags, "8.tif has no mask"), ("--images pictures", "belong together")):
        with pytest.raises(SystemExit) as stop:
            unet_segmentation.main(bad.split())
        assert stop.value.code == 2 and words in capsys.readouterr().err


def refusal(arguments, capsys) -> str:
    """What predict.py says on the way to exit code 2."""
    try:
        code = predict.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_models_are_refused_before_anything_is_written(picture_folder, tmp_path, capsys):
    (tmp_path / "text.keras").write_text("no model")
    save_model(keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(1, 1)]), tmp_path / "two.keras")
    inputs = keras.Input((8, 8, 1))
    save_model(keras.Model(inputs, layers.Lambda(lambda x: x)(inputs)), tmp_path / "lambda.keras")
    for name, words in {"text": "no Keras model", "two": "2 channels", "lambda": "has code in it"}.items():
        said = refusal([tmp_path / f"{name}.keras", picture_folder[0], "--out-dir", tmp_path / "out"], capsys)
        assert words in said and f"{name}.keras" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pictures", "--threshold", "1.5"], "must be in [0, 1]"),
        (["pictures", "--threshold", "nan"], "must be in [0, 1]"),
        (["nothing"], "holds no picture"),
        (["gone.png"], "does not exist"),
        (["text.png"], "cannot be read"),
        (["pictures", "--out-dir", "pictures"], "holds the input"),
        (["pictures", "--masks", "nothing"], "holds no picture"),
        (["pictures", "--masks", "masks", "--out-dir", "masks"], "holds the input"),
        (["pictures", "twin/p1.bmp"], "same output names"),
        (["pictures", "--out-dir", "text.png/out"], "cannot be written"),
        (["pictures", "--shard", "0/3"], "I from 1 to N, such as 3/16; got 0/3"),
        (["pictures", "--shard", "three"], "I from 1 to N, such as 3/16; got three"),
        (["pictures", "--scale", "0"], "1/16 to 16"),
        (["pictures", "--scale", "nan"], "1/16 to 16"),
        (["pictures", "--masks", "double"], "have the same name"),
        (["pictures", "--models", "text.png"], "no Keras model"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_2(
    arguments, words, model_path, picture_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("nothing", "twin", "masks", "double"):
        Path(name).mkdir()
    Path("text.png").write_text("text")
    for name in ("masks/p1.png", "double/p1.png", "double/p1_mask.png"):
        Path(name).write_bytes(Path("pictures/p1.png").read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert words in refusal([model_path, *arguments], capsys)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_fresh_process_needs_nothing_but_the_file(tmp_path, picture_folder):
    file = save_model(unet_segmentation.build_unet((None, None, 1)), tmp_path / "model.keras", seen=WIDE)
    done = subprocess.run(
        [sys.executable, predict.__file__, file, picture_folder[0] / "p3.png", "--threshold", "0.5"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "WARNING: p3.png: All" not in line], done.stderr
    assert (tmp_path / "outputs/predict/p3_mask.png").exists()
