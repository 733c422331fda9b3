"""A model file holds a network of any size with its preprocessing, and nothing in a foreign one does harm."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import unet_segmentation
from lab.data import grey_values
from lab.data.classes import ONE, Classes
from lab.model import model_file

SEEN = {"1%": [0.0, 0.3], "50%": [0.2, 0.8], "99%": [0.7, 1.0]}


def network(*sides, channels=1):
    inputs = keras.Input((*sides, channels))
    convolution = layers.Conv3D if len(sides) == 3 else layers.Conv2D
    return keras.Model(inputs, convolution(1, 1, activation="sigmoid")(inputs))


def save_model(model, path, size=(8, 8), **more):
    model_file.save_model(model, path, {**grey_values.ABSOLUTE, "size": list(size), "seen": SEEN, **more})
    return path


def rewrite(path, new, drop=(), **members):
    """A copy of a model file with other members."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            if name not in drop and name not in members:
                archive.writestr(name, old.read(name))
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
    return new


@pytest.mark.parametrize(("shape", "depth", "divisor"), [
    ((None, None, 1), 3, 8),
    ((None, None, 3), 1, 2),
    ((None, None, None, 1), 2, 4),
    ((32, 32, 1), 3, None),
])  # fmt: skip
def test_the_file_says_which_images_the_network_takes(shape, depth, divisor, tmp_path):
    keras.utils.set_random_seed(0)
    ndim = len(shape) - 1
    unet = unet_segmentation.build_unet(shape, filters=2, depth=depth)
    save_model(unet, tmp_path / "model.keras", (32,) * ndim)
    model, found = model_file.load_model(tmp_path / "model.keras")
    assert found == model_file.read_preprocessing(tmp_path / "model.keras")
    expected = {
        "version": 3,
        "divisor": divisor,
        "channels": shape[-1],
        "ndim": ndim,
        "size": [32] * ndim,
        "seen": SEEN,
    }
    assert found == {**grey_values.ABSOLUTE, **expected}
    side = 3 * divisor if divisor else 32
    images = np.random.default_rng(0).random((1, *(side,) * ndim, shape[-1]), np.float32)
    np.testing.assert_array_equal(model.predict_on_batch(images), unet.predict_on_batch(images))
    assert keras.models.load_model(tmp_path / "model.keras", compile=False).input_shape == (None, *shape)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_a_divisor_without_skips_and_of_another_factor_is_found():
    plain = unet_segmentation.build_unet((None, None, 1), filters=2, depth=2, skips=False)
    thirds = keras.Sequential(
        [keras.Input((None, None, 1)), layers.MaxPooling2D(3), layers.Conv2DTranspose(1, 3, strides=3)]
    )
    assert [model_file.find_divisor(model) for model in (plain, thirds, network(None, None))] == [4, 3, 1]
    shrinking = keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(1, 3)])
    with pytest.raises(ValueError, match="gives masks of other sides than its images"):
        model_file.find_divisor(shrinking)


def test_a_file_of_version_2_keeps_its_own_preprocessing(tmp_path):
    old = {"grey": "luma", "stretch": [1, 99], "version": 2, "divisor": None, "channels": 1, "ndim": 2}
    old |= {"size": [8, 8], "seen": SEEN}
    path = save_model(network(8, 8), tmp_path / "new.keras")
    path = rewrite(path, tmp_path / "old.keras", **{model_file.MEMBER: json.dumps(old)})
    _, found = model_file.load_model(path)
    assert found == {**old, "version": 3, "beyond": "clip", "surroundings": None}


def bad_models(folder):
    """Files that must be refused, and words of the sentence that does it."""
    good = save_model(network(8, 8), folder / "good.keras")
    whole = good.read_bytes()
    (folder / "half.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "text.keras").write_text("no model")
    (folder / "folder.keras").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.keras")
    with zipfile.ZipFile(folder / "zip.keras", "w") as archive:
        archive.writestr("a.txt", "a")
    network(8, 8).save(folder / "plain.keras")
    rewrite(good, folder / "brace.keras", **{"config.json": "{"})
    rewrite(good, folder / "list.keras", **{"config.json": "[1]"})
    rewrite(good, folder / "deep.keras", **{"config.json": "[" * 100_000})
    rewrite(good, folder / "other.keras", **{"config.json": "{}"})
    rewrite(good, folder / "weightless.keras", drop=["model.weights.h5"])
    rewrite(good, folder / "weights.keras", **{"model.weights.h5": b"no HDF5"})
    inputs = keras.Input((8, 8, 1))
    save_model(keras.Model(inputs, layers.Lambda(lambda x: x)(inputs)), folder / "lambda.keras")
    config = json.loads(zipfile.ZipFile(good).read("config.json"))
    for name, changes in {
        "class": {"module": "os", "class_name": "system"},
        "registered": {"registered_name": "theirs>Conv2D"},
        "wrapper": {"class_name": "TFSMLayer"},
    }.items():
        config["config"]["layers"][1].update(changes)
        rewrite(good, folder / f"{name}.keras", **{"config.json": json.dumps(config)})
    save_model(network(8, 8, channels=3), folder / "channels.keras", channels=1)
    save_model(network(8, 8, 8), folder / "volume.keras", ndim=2)
    save_model(network(8, 8), folder / "sides.keras", (16, 16))
    save_model(keras.Sequential([keras.Input((8, 8, 1)), layers.MaxPooling2D(2)]), folder / "smaller.keras")
    save_model(network(None, None), folder / "divisor.keras", divisor=None)
    broken = network(8, 8)
    broken.set_weights([np.full_like(weights, np.nan) for weights in broken.get_weights()])
    save_model(broken, folder / "nan.keras")
    return {
        "missing": "does not exist", "half": "no Keras model, or a damaged one", "text": "no Keras model",
        "folder": "no Keras model", "pipe": "no Keras model", "zip": "no Keras model",
        "plain": "not say how to prepare pictures", "brace": "damaged", "list": "no Keras model", "deep": "damaged",
        "other": "damaged", "weightless": "damaged", "weights": "damaged", "lambda": "has code in it",
        "class": "has code in it", "registered": "has code in it", "wrapper": "has code in it",
        "channels": "takes arrays of shape", "volume": "takes arrays of shape", "sides": "says that it was trained on",
        "smaller": "not of equal sides", "divisor": "must be divisible by", "nan": "NaN or infinite",
    }  # fmt: skip


def test_bad_models_are_refused_in_one_sentence(tmp_path):
    for name, words in bad_models(tmp_path).items():
        path = tmp_path / f"{name}.keras"
        if name == "pipe" and not path.exists():
            continue
        with pytest.raises(ValueError, match=words) as error:
            model_file.load_model(path)
        assert path.name in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("change", [
    {"version": 4}, {"version": 1}, {"version": None}, {"beyond": "no"}, {"size": [8]}, {"size": [8, 0]},
    {"size": "88"}, {"size": [8.5, 8]}, {"ndim": 4}, {"channels": "1"}, {"divisor": 0}, {"divisor": True},
], ids=str)  # fmt: skip
def test_damaged_preprocessing_is_refused(change, tmp_path):
    whole = {"version": 3, "divisor": None, "channels": 1, "ndim": 2}
    whole |= {**grey_values.ABSOLUTE, "size": [8, 8], "seen": SEEN}
    good = save_model(network(8, 8), tmp_path / "good.keras")
    bad = rewrite(good, tmp_path / "bad.keras", **{model_file.MEMBER: json.dumps({**whole, **change})})
    with pytest.raises(ValueError, match="the preprocessing inside .* is damaged or of another version"):
        model_file.read_preprocessing(bad)
    for text in ("", "null", "[]", "5", b"\xff\xfe", "[" * 100_000):
        bad = rewrite(good, tmp_path / "bad.keras", **{model_file.MEMBER: text})
        with pytest.raises(ValueError, match="the preprocessing inside .* is damaged"):
            model_file.read_preprocessing(bad)


# Classes


TISSUES = Classes(("cell", "wall"), (0, 10, 20), "palette", tuple(range(256)) * 3, 255)


def class_network(num_channels=3, name="mask"):
    """Two layers, the last one with a channel for background and each class."""
    inputs = keras.Input((8, 8, 1))
    inner = layers.Conv2D(2, 3, padding="same", name="inner")(inputs)
    return keras.Model(inputs, layers.Conv2D(num_channels, 1, activation="softmax", name=name)(inner))


def test_classes_come_back_from_the_file_and_without_them_there_is_one(tmp_path):
    for known, channels in ((TISSUES, 3), (Classes(("cell",), (0, 7)), 1), (ONE, 1)):
        path = save_model(class_network(channels), tmp_path / "model.keras", **known.stored())
        assert model_file.classes_of(model_file.load_model(path).preprocessing) == known
    assert "classes" not in model_file.read_preprocessing(path)


@pytest.mark.parametrize("known, channels", [(TISSUES, 1), (TISSUES, 2), (TISSUES, 4), (ONE, 2)])
def test_the_output_has_one_channel_or_background_and_classes(known, channels, tmp_path):
    path = save_model(class_network(channels), tmp_path / "model.keras", **known.stored())
    with pytest.raises(
        ValueError, match=rf"gives arrays of shape .*, {channels}\); \(N, H, W, {1 if known == ONE else 3}\)"
    ):
        model_file.load_model(path)


@pytest.mark.parametrize("change", [
    {"names": []}, {"names": ["a"]}, {"names": ["a", "a"]}, {"names": ["a", 5]}, {"names": ["a", ""]},
    {"names": ["a", "../b"]}, {"names": ["a", "b\n"]}, {"names": None}, {"values": [0, 10]}, {"values": None},
    {"more": 1}, {"names": [f"n{i}" for i in range(33)], "values": list(range(34))},
], ids=str)  # fmt: skip
def test_damaged_classes_are_refused(change, tmp_path):
    classes = {**TISSUES.stored()["classes"], **change}
    bad = save_model(class_network(), tmp_path / "bad.keras", classes=classes)
    with pytest.raises(ValueError, match="the preprocessing inside .* is damaged or of another version"):
        model_file.read_preprocessing(bad)
    for classes in (None, [], "cell"):
        bad = save_model(class_network(), tmp_path / "bad.keras", classes=classes)
        with pytest.raises(ValueError, match="the preprocessing inside .* is damaged"):
            model_file.read_preprocessing(bad)


@pytest.mark.parametrize("known, kept", [
    (TISSUES, True),
    (Classes(("cell", "wall"), (0, 1, 2)), True),  # other values of the same classes
    (Classes(("wall", "cell"), (0, 10, 20)), False),
    (Classes(("a", "b", "c"), (0, 1, 2, 3)), False),
    (ONE, False),
], ids=lambda known: str(known)[:40])  # fmt: skip
def test_weights_of_other_classes_are_taken_but_for_the_last_layer(known, kept, tmp_path):
    former = class_network()
    path = save_model(former, tmp_path / "former.keras", **TISSUES.stored())
    model = class_network(known.num + (known.num > 1))
    own = model.layers[-1].get_weights()[0]
    said = model_file.copy_weights(path, model, known)
    np.testing.assert_array_equal(model.layers[1].get_weights()[0], former.layers[1].get_weights()[0])
    np.testing.assert_array_equal(
        model.layers[-1].get_weights()[0], former.layers[-1].get_weights()[0] if kept else own
    )
    assert said is None if kept else "former.keras knows other classes (cell, wall)" in said and "mask" in said
    with pytest.raises(ValueError, match="holds another network"):
        model_file.copy_weights(path, network(8, 8), ONE)


def test_weights_of_one_class_are_all_taken_whatever_its_name(tmp_path):
    former, model = class_network(1), class_network(1)
    path = save_model(former, tmp_path / "former.keras")
    assert model_file.copy_weights(path, model, Classes(("cell",), (0, 7))) is None
    for one, other in zip(former.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_member_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    """20 MB of blanks in 20 KB: with 3 GB in 3 MB it is the same, in more time for the test."""
    good = save_model(network(8, 8), tmp_path / "good.keras")
    for member in (model_file.MEMBER, "config.json", "model.weights.h5", "more"):
        bad = rewrite(good, tmp_path / "bad.keras", **{member: b" " * 20_000_000})
        started = time.perf_counter()
        with pytest.raises(ValueError, match=f"its member {member} would unpack to 20,000,000 bytes"):
            model_file.load_model(bad)
        assert time.perf_counter() - started < 0.1


def test_no_damage_ends_in_anything_but_a_sentence(tmp_path):
    """Bytes of the whole file overwritten at random: it loads as it was, or is refused."""
    whole = save_model(network(8, 8), tmp_path / "good.keras").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 30)):
            damaged[place] = rng.integers(256)
        (tmp_path / "bad.keras").write_bytes(damaged)
        try:
            model_file.load_model(tmp_path / "bad.keras")
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 30


def test_an_interrupted_save_leaves_the_former_file(tmp_path, monkeypatch):
    path = save_model(network(8, 8), tmp_path / "model.keras")
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", _stop)
    with pytest.raises(KeyboardInterrupt):
        save_model(network(8, 8), path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["model.keras"]


def _stop(*_):
    raise KeyboardInterrupt


AS_ON_AVX2 = """
from pathlib import Path
import numpy as np
from lab.model import prediction
from lab.system import backend
backend.import_keras()
(model,) = prediction.load_models([Path("model.keras")])
labels, probs = prediction.predict([model], np.zeros((40, 48, 1), np.float32))
print({layer.compute_dtype for layer in model.network.layers}, probs.dtype)
"""


def test_a_model_of_bfloat16_computes_in_float32_where_the_processor_has_none(tmp_path):
    """oneDNN 3.7 fails in bfloat16 on a processor with AVX2 alone, with "Graph execution error"."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    trained = unet_segmentation.build_unet((None, None, 1), filters=2, depth=2)
    keras.config.set_dtype_policy("float32")
    save_model(trained, tmp_path / "model.keras", (32, 32))
    run = subprocess.run(
        [sys.executable, "-c", AS_ON_AVX2],
        cwd=tmp_path,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(Path(model_file.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "{'float32'} float32\n", run.stderr
