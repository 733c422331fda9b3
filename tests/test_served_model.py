"""Models in MLflow: what they answer is what predict.py writes, wherever they come from; and how they get there."""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest
import tifffile
from keras import layers
from PIL import Image

import predict
import unet_segmentation as unet
from lab.data import grey_values
from lab.model import model_file, prediction
from lab.track import served_model, store, tracking

SEEN = {"1%": [0.0, 0.3], "50%": [0.2, 0.8], "99%": [0.7, 1.0]}


def save_network(path, ndim=2, channels=1, settings=grey_values.ABSOLUTE, code=False):
    """A network that finds what is brighter than 0.5, of colours their mean; with `code`, one that must be refused."""
    inputs = keras.Input((None,) * ndim + (channels,))
    layer = (layers.Conv2D if ndim == 2 else layers.Conv3D)(1, 1, activation="sigmoid")
    network = keras.Model(inputs, layer(layers.Lambda(lambda x: x)(inputs) if code else inputs))
    layer.set_weights([np.full((1,) * ndim + (channels, 1), 20 / channels), np.array([-10.0])])
    model_file.save_model(network, path, {**settings, "size": [16] * ndim, "seen": SEEN})
    return path


class Logged:
    """A store with a model of each kind, registered; its runs' ids by name."""

    def __init__(self, folder, database):
        self.folder, self.uri = folder, f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
        shutil.copy(database, folder / "mlflow.db")
        kinds = {
            "grey": {},
            "colour": {"channels": 3, "settings": grey_values.STRETCHED},
            "volume": {"ndim": 3},
        }
        self.runs, self.files = {}, {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.uri)
            for name, options in kinds.items():
                self.files[name] = save_network(folder / f"{name}.keras", **options)
                with tracking.tracked_run("Lab") as run:
                    self.version = run.model(self.files[name], register=name)
                assert run.missing == [] and self.version == "1"
                self.runs[name] = run.run_id

    def client(self):
        import mlflow

        return mlflow.MlflowClient(self.uri, self.uri)

    def load(self, name):
        import mlflow

        return mlflow.pyfunc.load_model(f"runs:/{self.runs[name]}/model")


@pytest.fixture(scope="module")
def module_logged(tmp_path_factory, migrated_database):
    return Logged(tmp_path_factory.mktemp("logged"), migrated_database)


@pytest.fixture
def logged(module_logged, monkeypatch, tmp_path):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", module_logged.uri)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which MLflow adds a loaded model's code
    mlflow.set_tracking_uri(module_logged.uri)
    monkeypatch.chdir(tmp_path)
    yield module_logged
    mlflow.set_tracking_uri(None)


def draw(kind):
    """A picture with a bright square, in the types that files have."""
    grey = np.random.default_rng(0).integers(20, 110, (33, 50)).astype(np.uint8)
    grey[5:12, 20:40] += 120
    if "colour" in kind:
        colours = np.stack([grey, grey // 2 + 60, 255 - grey], axis=-1)
        return colours * np.uint16(257) + np.uint16(31) if "16" in kind else colours
    return {"8 bits": grey, "16 bits": grey.astype(np.uint16) * 257, "float": grey / np.float32(255)}[kind]


def predicted(model, picture, suffix=".png"):
    """Mask and probability that predict.py writes for an array that was saved as a picture."""
    if picture.ndim == 3 and picture.dtype == np.uint16:
        tifffile.imwrite(f"picture{suffix}", picture, photometric="rgb")
    else:
        Image.fromarray(picture).save(f"picture{suffix}")
    assert predict.main([str(model), f"picture{suffix}", "--probabilities", "--out-dir", "out"]) == 0
    return [np.asarray(Image.open(f"out/picture_{name}.png")) for name in ("mask", "probability")]


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "float", "colour", "colour of 16 bits"])
@pytest.mark.parametrize("name", ["grey", "colour"])
def test_an_array_gets_the_mask_and_the_probability_that_predict_writes(name, kind, logged):
    picture = draw(kind)
    mask, probability = predicted(logged.files[name], picture, ".png" if kind in ("8 bits", "colour") else ".tif")
    answer = logged.load(name).predict(picture)
    np.testing.assert_array_equal(answer["mask"], mask)
    np.testing.assert_allclose(answer["probability"], probability / 65535, atol=1e-7)
    assert 0 < np.count_nonzero(mask) < mask.size and answer["mask"].dtype == np.uint8


def test_a_picture_is_looked_at_at_the_scale_that_predict_finds(logged, monkeypatch):
    picture = draw("8 bits")
    as_it_is = logged.load("grey").predict(picture)["probability"]
    monkeypatch.setattr(prediction, "choose_scale", lambda *_: 2.0)
    _, probability = predicted(logged.files["grey"], picture)
    answer = logged.load("grey").predict(picture)
    np.testing.assert_allclose(answer["probability"], probability / 65535, atol=1e-7)
    assert not np.allclose(answer["probability"], as_it_is, atol=0.01)


@pytest.mark.parametrize("given, words", [
    (np.where(np.arange(64).reshape(4, 4, 4) == 7, np.nan, 1).astype(np.float32), "holds 1 voxel of NaN or infinity"),
    (np.arange(64.0).reshape(4, 4, 4) * 1e300, "63 voxels of NaN or infinity"),
    (np.full((4, 4, 4), 7, np.uint8), "constant"),
    (np.arange(16, dtype=np.uint8).reshape(1, 4, 4), "a single slice"),
])  # fmt: skip
def test_what_is_wrong_with_a_volume_is_said(given, words, logged):
    from mlflow import MlflowException

    with pytest.raises(MlflowException, match=words) as caught:
        logged.load("volume").predict(given)
    assert caught.value.get_http_status_code() == 400


def test_numbers_without_a_type_are_of_8_bits_up_to_255_and_of_16_above(logged):
    model = logged.load("grey")
    for kind in ("8 bits", "16 bits"):
        numbers = draw(kind).astype(object)  # as MLflow gives JSON to the model
        np.testing.assert_array_equal(model.predict(numbers)["mask"], model.predict(draw(kind))["mask"])


def test_a_batch_gets_what_each_picture_gets(logged):
    model, picture = logged.load("grey"), draw("8 bits")
    batch = model.predict(np.stack([picture, picture[::-1]])[..., None])
    assert batch["mask"].shape == (2, 33, 50) and len(batch["remark"]) == 2
    np.testing.assert_array_equal(batch["mask"][0], model.predict(picture)["mask"])
    np.testing.assert_array_equal(batch["mask"][0], batch["mask"][1][::-1])


def test_a_volume_gets_a_mask_of_its_sides(logged):
    volume = np.zeros((9, 20, 17), np.float32)
    volume[3:5, 4:9, 2:7] = 1
    answer = logged.load("volume").predict(volume)
    np.testing.assert_array_equal(answer["mask"], volume.astype(np.uint8) * 255)


def test_the_threshold_is_a_parameter(logged):
    model, picture = logged.load("grey"), draw("8 bits")
    assert model.predict(picture, params={"threshold": 0.0})["mask"].min() == 255
    few, more = (np.count_nonzero(model.predict(picture, params={"threshold": t})["mask"]) for t in (0.9, 0.1))
    assert few < more


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.array("no picture!", object), "base64"),
        (np.array(base64.b64encode(b"text").decode(), object), "the picture cannot be read as a picture"),
        (np.zeros((2, 2, 2, 2, 2), np.uint8), "got one of shape"),
        (np.zeros((0, 4), np.uint8), "got one of shape"),
        (np.zeros((4, 4, 2), np.uint8), "3 or 4 channels"),
        (np.array([[1, 2], [3]], object), "different lengths"),
        (np.array([["a", "b"]], object), "numbers"),
        (np.full((4, 4), 1e39), "holds values from inf"),
        (np.full((4, 4), np.nan, np.float32), "holds values from nan"),
    ],
)
def test_what_is_wrong_with_an_input_is_said(given, words, logged):
    from mlflow import MlflowException

    with pytest.raises(MlflowException, match=words) as caught:
        logged.load("grey").predict(given)
    assert caught.value.get_http_status_code() == 400


def test_an_error_keeps_its_cause_alone_when_the_server_puts_the_upload_before_it(logged):
    from mlflow import MlflowException

    with pytest.raises(MlflowException) as caught:
        logged.load("grey").predict(np.array("no picture!", object))
    cause = caught.value.message
    caught.value.message = f"Failed to predict data 'no picture!'. \nError: {cause}"  # what MLflow's server does
    assert json.loads(caught.value.serialize_as_json())["message"] == cause
    assert cause == "neither numbers nor a picture file in base64 were posted."


def test_the_bare_network_is_there_and_the_signature_leaves_sides_open(logged):
    import mlflow.keras

    uri = f"runs:/{logged.runs['colour']}/model"
    network = mlflow.keras.load_model(uri)
    assert network.input_shape == (None, None, None, 3)
    info = mlflow.models.get_model_info(uri)
    assert [output.shape for output in info.signature.outputs.inputs] == [(-1, -1), (-1, -1)]
    assert set(info.flavors) == {"keras", "python_function"}
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path="down"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pyc")]
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert {f"keras=={keras.__version__}", f"numpy=={np.__version__}"} <= set(requirements)


# predict.py on models in MLflow


def test_predict_takes_models_by_run_version_and_alias(logged, capsys, monkeypatch):
    logged.client().set_registered_model_alias("grey", "champion", "1")
    expected = predicted(logged.files["grey"], draw("8 bits"))[0]
    Path("temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "temporary")
    for name in (f"runs:/{logged.runs['grey']}/model", "models:/grey@champion", "models:/grey/1"):
        assert predict.main([name, "picture.png", "--out-dir", "again"]) == 0
        np.testing.assert_array_equal(np.asarray(Image.open("again/picture_mask.png")), expected)
        assert f"{name}@" in Path("again/predictions.csv").read_text()
        assert predict.main([name, "picture.png", "--out-dir", "again", "--continue"]) == 0
        assert "1 of 1 finished before" in capsys.readouterr().out
    assert list(Path("temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("runs:/0123456789abcdef0123456789abcdef/model", "does not hold the model"),
        ("runs:/RUN/another", "no finished model 'another'"),
        ("runs:/RUN", "no finished model ''"),
        ("runs:/", "does not hold the model"),
        ("models:/nobody@champion", "does not hold the model"),
        ("models:/grey@nobody", "does not hold the model"),
        ("models:/grey/77", "does not hold the model"),
        ("models:/grey", "does not hold the model"),
        ("models:/", "does not hold the model"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(name, words, logged, capfd):
    Image.fromarray(draw("8 bits")).save("picture.png")
    with pytest.raises(SystemExit) as caught:
        predict.main([name.replace("RUN", logged.runs["grey"]), "picture.png"])
    error = capfd.readouterr().err
    assert caught.value.code == 2 and words in error and len(error.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["picture.png"]


@pytest.mark.parametrize(
    ("uri", "words"), [("http://127.0.0.1:9", "No MLflow server answers"), (None, "no MLflow sto")]
)
def test_a_store_that_is_not_there_is_one_sentence_and_none_is_made(uri, words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SystemExit) as caught:
        predict.main(["models:/circles@champion", "picture.png"])
    error = capfd.readouterr().err
    assert caught.value.code == 2 and words in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["htps://me:s3cret@host:5000", "file:///no/store"])
def test_an_address_that_mlflow_does_not_know_is_one_sentence_without_its_password(uri, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(
        tracking.TrackingError, match="MLflow cannot use the store.*check MLFLOW_TRACKING_URI"
    ) as caught:
        store.open_existing()
    assert "s3cret" not in str(caught.value)


def test_a_store_that_cannot_be_written_can_be_read(logged, monkeypatch):
    monkeypatch.setattr(store.os, "access", lambda *_: False)
    assert store.open_existing()[0].search_registered_models()
    with pytest.raises(tracking.TrackingError, match="read-only"):
        store.open_experiment("Lab")


def test_a_database_of_an_older_mlflow_is_told_how_to_go_on(logged, tmp_path, monkeypatch):
    shutil.copy(logged.folder / "mlflow.db", tmp_path / "old.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # of MLflow 1.0
        database.commit()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/old.db")
    with pytest.raises(tracking.TrackingError, match="if that is older.*`mlflow db upgrade sqlite:///.*old.db`"):
        store.open_existing()


def test_what_is_downloaded_is_checked_like_a_file(logged, capfd):
    import mlflow

    Image.fromarray(draw("8 bits")).save("picture.png")
    with tracking.tracked_run("Lab") as run:
        run.model(logged.files["grey"])
    (model,) = logged.client().search_logged_models(
        [logged.client().get_run(run.run_id).info.experiment_id], f"source_run_id = '{run.run_id}'"
    )
    stored = Path(mlflow.artifacts.download_artifacts(model.artifact_location)) / "artifacts" / "model.keras"
    save_network(stored, code=True)
    name = f"runs:/{run.run_id}/model"
    with pytest.raises(SystemExit) as caught:
        predict.main([name, "picture.png", "--out-dir", "out"])
    assert caught.value.code == 2 and not Path("out").exists()
    assert f"the model {name} has code in it" in capfd.readouterr().err
    with pytest.raises(ValueError, match="has code in it"):
        mlflow.pyfunc.load_model(name)


def test_a_training_registers_its_model(store, capsys, quick_training):
    import mlflow

    small = "--size 16 --train-size 16 --radius 2 5 --filters 1 --val-images 2 --test-images 2 --train-images 4"
    flags = [*small.split(), "--epochs", "1", "--precision", "float32"]
    unet.main([*flags, "--out-dir", "first", "--register", "circles"])
    assert "Registered in MLflow as models:/circles/1." in capsys.readouterr().out
    client = mlflow.MlflowClient(f"sqlite:///{(store / 'mlflow.db').as_posix()}")
    version = client.get_model_version("circles", "1")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED" and "register" not in run.data.params
    Image.fromarray(draw("8 bits")).save("picture.png")
    for number, model in enumerate(("first/model.keras", "models:/circles/1")):
        assert predict.main([model, "picture.png", "--out-dir", f"out{number}"]) == 0
    assert Path("out0/picture_mask.png").read_bytes() == Path("out1/picture_mask.png").read_bytes()


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a@b", "..", "it's"])
def test_a_name_that_no_model_can_have_is_refused_before_training(name, capsys):
    with pytest.raises(SystemExit):
        unet.parse_args(["--register", name])
    assert "--register takes a name" in capsys.readouterr().err


def test_a_name_that_the_store_refuses_leaves_the_model_logged(logged, capsys):
    with tracking.tracked_run("Lab") as run:
        assert run.model(logged.files["grey"], register="a/b") is None
    assert run.missing == ["model as a/b"]
    assert "could not record model as a/b" in capsys.readouterr().err
    Image.fromarray(draw("8 bits")).save("picture.png")
    assert predict.main([f"runs:/{run.run_id}/model", "picture.png"]) == 0


# The real server


def post(port, inputs):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"inputs": inputs}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.slow
def test_mlflow_serves_over_http_what_predict_writes(logged):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (line,) = [line for line in served_model.__doc__.splitlines() if "mlflow models serve" in line and "-m " in line]
    here = os.path.relpath(Path(sys.executable).parent)
    line = line.replace(".venv/bin", here).replace("RUN_ID", logged.runs["grey"])
    others = [part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / "uvicorn").exists()]
    environment = {**os.environ, "PATH": os.pathsep.join(others)}  # of an environment that is not activated
    command = ["sh", "-c", f"{line} --host 127.0.0.1 --port {port}"]
    with open("log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, Path("log").read_text()
                time.sleep(0.3)
        for kind in ("8 bits", "16 bits", "colour"):
            mask, probability = predicted(logged.files["grey"], draw(kind))
            answer = post(port, draw(kind).tolist())
            np.testing.assert_array_equal(answer["mask"], mask)
            np.testing.assert_allclose(answer["probability"], probability / 65535, atol=1e-7)
            answer = post(port, base64.b64encode(Path("picture.png").read_bytes()).decode())
            for name, expected in (("mask", mask), ("probability", probability)):
                picture = Image.open(io.BytesIO(base64.b64decode(answer[name])))
                np.testing.assert_array_equal(np.asarray(picture), expected)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(port, "no picture!" * 1000)
        said = json.loads(refused.value.read())
        assert refused.value.code == 400 and said["error_code"] == "INVALID_PARAMETER_VALUE"
        assert said["message"] == "neither numbers nor a picture file in base64 were posted."
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
