"""An ONNX file gives what its Keras model gives, and says what its images need; or nothing is written."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from lab.data import grey_values
from lab.data.classes import ONE, Classes
from lab.model import export, model_file, prediction
from lab.system import backend
from unet_segmentation import build_unet

SEEN = {"1%": [0.0, 0.3], "50%": [0.2, 0.8], "99%": [0.7, 1.0]}
THREE = Classes(("liver", "spleen", "left kidney"), (0, 10, 20, 30))
PACKAGES = ("tf2onnx", "onnx", "onnxruntime")
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)), reason="pip install -r requirements-onnx.txt"
)


def save_network(path, shape=(None, None, 1), known=ONE, precision="float32"):
    """A model file of a small U-Net of divisor 4; the same network in float32, and its preprocessing."""
    keras.utils.set_random_seed(0)
    settings = {**grey_values.STRETCHED, "size": [side or 18 for side in shape[:-1]], "seen": SEEN, **known.stored()}
    networks = []
    for policy in ("float32", precision):
        keras.config.set_dtype_policy(policy)
        networks.append(build_unet(shape, filters=4, depth=2, num_classes=known.num))
    keras.config.set_dtype_policy("float32")
    weights = networks[0].get_weights()
    weights[-2] *= 8  # of the last layer: from 0 to 1, not about 0.5
    for network in networks:
        network.set_weights(weights)
    model_file.save_model(networks[1], path, settings)
    return networks[0], model_file.read_preprocessing(path)


def run_export(*paths):
    export.main([str(path) for path in paths])


@needs_onnx
@pytest.mark.parametrize(("shape", "known", "precision", "sides"), [
    ((None, None, 1), ONE, "float32", (20, 44)),
    ((None, None, 3), THREE, "mixed_bfloat16", (28, 16)),
    ((None, None, None, 1), ONE, "mixed_bfloat16", (8, 20, 12)),
    ((16, 24, 1), ONE, "float32", (16, 24)),
])  # fmt: skip
def test_a_file_gives_what_the_model_gives_in_float32_and_says_what_images_need(
    shape, known, precision, sides, tmp_path, capsys
):
    import onnxruntime

    network, settings = save_network(tmp_path / "model.keras", shape, known, precision)
    run_export(tmp_path / "model.keras", tmp_path / "unet.onnx")
    told = capsys.readouterr().out
    assert float(re.search(r"up to ([\d.e+-]+)", told)[1]) <= export.TOLERANCE
    assert ("In the training's precision" in told) == (precision != "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "unet.onnx"]

    session = onnxruntime.InferenceSession(tmp_path / "unet.onnx")
    images = np.random.default_rng(0).random((3, *sides, shape[-1]), np.float32)
    (probs,) = session.run(None, {session.get_inputs()[0].name: images})
    expected = network.predict_on_batch(images)
    assert probs.shape == expected.shape and np.ptp(expected) > 0.5
    np.testing.assert_allclose(probs, expected, atol=1e-4)
    names = ["batch", *["depth", "height", "width"][-len(sides) :], shape[-1]]
    assert session.get_inputs()[0].shape == [fixed or name for fixed, name in zip((None, *shape), names, strict=True)]

    about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    largest, overlap = prediction.LIMITS[len(sides)]
    tiles = {"divisor": None if shape[0] else 4, "smallest": settings["size"], "largest": largest, "overlap": overlap}
    assert about == {
        "preprocessing": {"window": None, **settings},
        "classes": json.loads(json.dumps(dataclasses.asdict(known))),
        "tiles": tiles,
    }


@needs_onnx
def test_a_file_that_does_not_agree_is_not_written_and_the_former_one_stays(tmp_path, monkeypatch, capsys):
    save_network(tmp_path / "model.keras")
    (tmp_path / "unet.onnx").write_text("the former one")
    monkeypatch.setattr(export, "TOLERANCE", -1)
    with pytest.raises(SystemExit) as stop:
        run_export(tmp_path / "model.keras", tmp_path / "unet.onnx")
    assert stop.value.code == 2 and "would differ from the Keras model by" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "unet.onnx"]
    assert (tmp_path / "unet.onnx").read_text() == "the former one"
    monkeypatch.undo()
    run_export(tmp_path / "model.keras", tmp_path / "unet.onnx")
    assert (tmp_path / "unet.onnx").stat().st_size > 1000


def test_a_difference_that_is_no_number_is_no_agreement():
    pairs = [np.zeros(2), np.array([0, np.nan])], [np.ones(2), np.zeros(2)]
    assert np.isnan(export.largest_difference(*pairs))
    assert export.largest_difference(pairs[1], [np.zeros(2), np.full(2, 0.25)]) == 1


@pytest.mark.parametrize(("model", "target", "message"), [
    ("none.keras", "unet.onnx", "none.keras does not exist"),
    ("unet.txt", "unet.onnx", "is no Keras model"),
    ("model.keras", "none/unet.onnx", "in a folder that exists"),
    ("model.keras", "model.keras", "a file NAME.onnx"),
    ("model.keras", "folder.onnx", "a file NAME.onnx"),
])  # fmt: skip
def test_a_path_that_cannot_be_is_one_sentence(model, target, message, tmp_path, capsys):
    save_network(tmp_path / "model.keras")
    (tmp_path / "unet.txt").write_text("no model")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SystemExit) as stop:
        run_export(tmp_path / model, tmp_path / target)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("python -m lab.model.export: error: ") and message in line


@pytest.mark.skipif(all(map(importlib.util.find_spec, PACKAGES)), reason="all packages are there")
def test_without_its_packages_one_sentence_names_the_file_that_lists_them(tmp_path, capsys):
    save_network(tmp_path / "model.keras")
    with pytest.raises(SystemExit) as stop:
        run_export(tmp_path / "model.keras", tmp_path / "unet.onnx")
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "pip install -r requirements-onnx.txt" in line
    assert (backend.ROOT / "requirements-onnx.txt").is_file() and not (tmp_path / "unet.onnx").exists()


@needs_onnx
def test_on_jax_one_sentence_says_that_tensorflow_is_needed(tmp_path):
    pytest.importorskip("jax")
    save_network(tmp_path / "model.keras")
    command = [sys.executable, "-m", "lab.model.export", tmp_path / "model.keras", tmp_path / "unet.onnx"]
    ended = subprocess.run(
        command, cwd=backend.ROOT, env={**os.environ, "KERAS_BACKEND": "jax"}, capture_output=True, text=True
    )
    assert ended.returncode == 2 and not (tmp_path / "unet.onnx").exists()
    assert ended.stderr.splitlines()[-1].endswith("unset KERAS_BACKEND. Its models work too.")
