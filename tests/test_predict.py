"""predict.py on a network whose answer is known: a 1x1 convolution that finds all that is brighter than 0.5."""

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

import predict
import unet_segmentation
from lab import model_file, patches, pictures

SEEN = {"1%": [0.0, 0.3], "50%": [0.2, 0.8], "99%": [0.7, 1.0]}


def threshold_network(size=16, steepness=200.0):
    """probability = sigmoid(steepness * (grey - 0.5))."""
    inputs = keras.Input((size, size, 1))
    layer = layers.Conv2D(1, 1, activation="sigmoid")
    network = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.full((1, 1, 1, 1), steepness), np.array([-steepness / 2])])
    return network


def save_model(network, path, settings=pictures.ABSOLUTE, seen=SEEN):
    model_file.save_model(network, path, {**settings, "size": list(network.input_shape[1:3]), "seen": seen})
    return path


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
        probability = pictures.read_picture(out / f"{name}_probability.png")
        assert probability.dtype == np.uint16
        np.testing.assert_array_equal(probability >= 2**15, truth)
        assert float(row["foreground"]) == pytest.approx(truth.mean()) and row["objects"] == "2"
        assert float(row["dice"]) == float(row["iou"]) == 1 and float(row["confidence"]) > 0.99


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


def test_one_unreadable_picture_does_not_stop_the_others(model_path, picture_folder, tmp_path, capsys):
    folder, _ = picture_folder
    (folder / "p11.png").write_text("text")
    assert predict.main([str(model_path), str(folder), "--out-dir", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "p11.png cannot be read" in captured.err and "1 of 5 failed" in captured.out
    assert [row["picture"] for row in table(tmp_path / "out")] == ["p0.png", "p1.png", "p2.png", "p3.png"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 9 and not any("p11" in name or "partial" in name for name in names)


def test_the_settings_come_from_the_model(picture_folder, tmp_path):
    """A stretched model finds in a dark picture what an absolute one does not."""
    picture = np.full((16, 16), 10, np.uint8)
    picture[4:8, 4:8] = 30
    Image.fromarray(picture).save(tmp_path / "dark.png")
    for settings, found in ((pictures.ABSOLUTE, 0), (pictures.STRETCHED, 16)):
        model = predict.load_model(save_model(threshold_network(), tmp_path / "model.keras", settings))
        assert np.count_nonzero(predict.segment(model, picture, 0.5)[0]) == found


@pytest.mark.parametrize(
    ("grey", "threshold", "words"),
    [
        (20, 0.5, "All background"),
        (240, 0.5, "All foreground"),
        (250, 0.5, "outside what training saw"),
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
    network = unet_segmentation.build_unet((32, 32, 1), filters=2)
    model = predict.load_model(save_model(network, tmp_path / "model.keras"))
    picture = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    expected = network.predict_on_batch(picture[None, ..., None] / np.float32(255))[0, ..., 0]
    np.testing.assert_allclose(np.concatenate(list(predict.probabilities(model, picture))), expected, atol=1e-6)


def test_tiles_of_a_network_leave_no_seam(tmp_path, monkeypatch):
    """Tiles overlap by twice the reach of three 3x3 convolutions: nothing but rounding may differ."""
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(4, 3, padding="same", activation="tanh") for _ in range(2)]
    network = keras.Sequential([keras.Input((32, 32, 1)), *stack, layers.Conv2D(1, 3, padding="same")])
    model = predict.load_model(save_model(network, tmp_path / "model.keras"))
    picture = np.random.default_rng(0).integers(0, 255, (150, 210), np.uint8)
    whole = np.concatenate(list(predict.probabilities(model, picture)))
    monkeypatch.setattr(predict, "TILE", 64)
    tiled = np.concatenate(list(predict.probabilities(model, picture)))
    # A cosine over 32 pixels gives the 3 pixels that see a tile's padding at most 6% of the weight, 1% on average.
    assert np.abs(tiled - whole).max() < 0.02


@pytest.mark.parametrize(("length", "least", "multiple"), [(1, 128, 8), (303, 128, 8), (1100, 128, 8), (16000, 128, 8)])
def test_tiles_cover_an_axis_with_little_waste(length, least, multiple):
    side = predict.fit_tile(length, least, multiple)
    assert side % multiple == 0 and side <= predict.TILE + multiple
    read = side * len(patches.axis_tiles(length, side, predict.OVERLAP))
    assert least <= read <= max(least, 1.05 * length + multiple)


def test_a_network_of_fixed_size_is_used_in_its_size(tmp_path):
    network = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(64), layers.Reshape((8, 8, 1))])
    network.layers[1].set_weights([np.eye(64), np.zeros(64)])
    model = predict.load_model(save_model(network, tmp_path / "model.keras"))
    assert model.multiples is None
    picture = np.random.default_rng(0).integers(0, 255, (21, 30), np.uint8)
    result = np.concatenate(list(predict.probabilities(model, picture)))
    np.testing.assert_allclose(result, picture / 255, atol=1e-6)


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
    flags = "--images pictures --masks masks --size 32 --filters 4 --epochs 2 --train-images 8 --out-dir out --seed 3"
    scores = unet_segmentation.main(flags.split())
    split = json.loads((tmp_path / "out/split.json").read_text())
    assert sorted(sum(split.values(), [])) == [f"{i}.tif" for i in range(9)]
    rows = list(csv.DictReader((tmp_path / "out/per_image.csv").read_text().splitlines()))
    assert {row["crop"].split(",")[0] for row in rows} == set(split["test"])
    assert json.loads((tmp_path / "out/scores.json").read_text())["test"] == scores
    assert (tmp_path / "out/dataset.png").exists()
    assert model_file.read_preprocessing(tmp_path / "out/model.keras")["stretch"] == [1, 99]
    assert predict.load_model(tmp_path / "out/model.keras").multiples == (8, 8)
    assert predict.main(["out/model.keras", "pictures", "--masks", "masks"]) == 0
    assert "outside what training saw" not in capsys.readouterr().err

    (tmp_path / "masks/8.png").unlink()
    for bad, words in ((flags, "8.tif has no mask"), ("--images pictures", "belong together")):
        with pytest.raises(SystemExit) as stop:
            unet_segmentation.main(bad.split())
        assert stop.value.code == 2 and words in capsys.readouterr().err


def bad_models(folder):
    """Files that must be refused, and words of the sentence that does it."""
    whole = save_model(threshold_network(), folder / "good.keras").read_bytes()
    (folder / "half.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "text.keras").write_text("no model")
    with zipfile.ZipFile(folder / "zip.keras", "w") as archive:
        archive.writestr("a.txt", "a")
    threshold_network().save(folder / "plain.keras")
    with zipfile.ZipFile(folder / "broken.keras", "w") as archive:
        archive.writestr("config.json", "{")
        archive.writestr(model_file.MEMBER, json.dumps({**pictures.ABSOLUTE, "size": [8, 8], "seen": SEEN}))
    with zipfile.ZipFile(folder / "future.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        future = {**pictures.ABSOLUTE, "version": 2, "size": [8, 8], "seen": SEEN}
        archive.writestr(model_file.MEMBER, json.dumps(future))
    inputs = keras.Input((8, 8, 1))
    save_model(keras.Model(inputs, layers.Lambda(lambda x: x)(inputs)), folder / "lambda.keras")
    colour = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(1, 1)])
    save_model(colour, folder / "colour.keras")
    save_model(keras.Sequential([keras.Input((8, 8, 1)), layers.MaxPooling2D(2)]), folder / "smaller.keras")
    return {
        "missing": "does not exist", "half": "no Keras model, or a damaged one", "text": "no Keras model",
        "zip": "no Keras model", "plain": "does not say how pictures", "broken": "is damaged",
        "future": "another version", "lambda": "has code in it", "colour": "takes arrays of shape",
        "smaller": "not of equal sides",
    }  # fmt: skip


def refusal(arguments, capsys) -> str:
    """What predict.py says on the way to exit code 2."""
    try:
        code = predict.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_models_are_refused_in_one_sentence(picture_folder, tmp_path, capsys):
    for name, words in bad_models(tmp_path).items():
        said = refusal([tmp_path / f"{name}.keras", picture_folder[0], "--out-dir", tmp_path / "out"], capsys)
        assert words in said and f"{name}.keras" in said
        assert not list((tmp_path / "out").glob("*"))


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
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_2(
    arguments, words, model_path, picture_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("nothing", "twin", "masks"):
        Path(name).mkdir()
    Path("text.png").write_text("text")
    Path("masks/p1.png").write_bytes(Path("pictures/p1.png").read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert words in refusal([model_path, *arguments], capsys)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_fresh_process_needs_nothing_but_the_file(tmp_path, picture_folder):
    file = save_model(unet_segmentation.build_unet(), tmp_path / "model.keras")
    script = Path(predict.__file__)
    done = subprocess.run(
        [sys.executable, script, file, picture_folder[0] / "p3.png"],
        cwd=tmp_path, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/predict/p3_mask.png").exists()
