"""The volumetric network, its account of arithmetic and memory, and the script run from end to end."""

import csv
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import conv3d_analysis as conv3d
import unet_segmentation
from lab import memory

CONFIG = {
    "input_shape": (16, 16, 16, 1),
    "filters": 4,
    "kernel_size": 3,
    "downsampling": "late",
    "precision": "float32",
    "batch_size": 1,
    "optimizer": "adam",
}
BAD = [
    ("--filters 0", "at least 1"),
    ("--kernel-size 4", "odd"),
    ("--kernel-size -3", "odd"),
    ("--input-shape 32 32 32", "depth, height, width, channels"),
    ("--input-shape 2 32 32 1", "divisible by 4"),
    ("--input-shape 0 32 32 1", "divisible by 4"),
    ("--input-shape 36 36 36 1 --downsampling early", "divisible by 8"),
    ("--batch-size 0", "at least 1"),
    ("--steps 0", "at least 1"),
    ("--seed -1", "at least 0"),
    ("--fit-in nan", "above 0"),
    ("--fit-in 0.1", "too small"),
]


@pytest.mark.parametrize("downsampling", ["late", "early"])
def test_mask_has_the_spatial_shape_of_the_volume(downsampling):
    model = conv3d.build_conv3d((8, 16, 24, 2), 2, 3, downsampling)
    mask = model.predict(np.zeros((1, 8, 16, 24, 2)), verbose=0)
    assert mask.shape == (1, 8, 16, 24, 1) and 0 <= mask.min() <= mask.max() <= 1


@pytest.mark.parametrize(("filters", "kernel"), [(8, 3), (5, 7)])
def test_parameters_are_those_of_a_hand_count(filters, kernel):
    f = filters
    widths = [(1, f), (f, f), (f, 2 * f), (2 * f, 2 * f), (2 * f, 4 * f), (4 * f, 4 * f)]  # encoder and bottleneck
    widths += [(4 * f, 2 * f), (2 * f, 2 * f), (2 * f, f), (f, f)]  # decoder, after concatenation
    expected = sum(kernel**3 * a * b + b for a, b in widths)
    expected += sum(2**3 * a * b + b for a, b in [(4 * f, 2 * f), (2 * f, f)]) + f + 1
    model = conv3d.build_conv3d((8, 8, 8, 1), filters, kernel)
    assert model.count_params() == expected == sum(row["parameters"] for row in conv3d.layer_costs(model))


@pytest.mark.parametrize("ndim", [2, 3])
def test_multiply_adds_are_those_counted_one_by_one(ndim):
    """A convolution of ones over ones sums one product per multiply-add; valid padding, so that none is with a zero."""
    import keras
    from keras import layers

    conv, transposed = [(layers.Conv2D, layers.Conv2DTranspose), (layers.Conv3D, layers.Conv3DTranspose)][ndim - 2]
    ones = {"kernel_initializer": "ones"}
    for layer in (conv(3, 3, strides=2, **ones), conv(4, 3, groups=2, **ones), transposed(3, 2, strides=3, **ones)):
        inputs = keras.Input((*range(5, 5 + ndim), 2))
        model = keras.Model(inputs, layer(inputs))
        counted = np.sum(model.predict(np.ones((2, *inputs.shape[1:])), verbose=0), dtype=float)
        assert conv3d.layer_costs(model, batch_size=2)[-1]["multiply_adds"] == counted


def test_costs_of_the_unet_are_those_of_a_hand_count():
    """Two 3x3 convolutions per block; per decoder step a 2x2 transposed one from twice the width at half the size."""
    macs, width_in = 0, 1
    for level in range(4):
        pixels, width = (128 >> level) ** 2, 32 << level
        macs += pixels * 9 * (width_in * width + width * width)
        if level < 3:
            macs += pixels * 9 * (2 * width * width + width * width) + (pixels // 4) * 4 * 2 * width * width
        width_in = width
    macs += 128**2 * 32
    rows = conv3d.layer_costs(unet_segmentation.build_unet())
    assert sum(row["multiply_adds"] for row in rows) == macs
    assert sum(row["parameters"] for row in rows) == 1_925_025


def test_activation_bytes_follow_batch_and_precision():
    single, double = (conv3d.layer_costs(conv3d.make_model(CONFIG), batch) for batch in (1, 2))
    half = conv3d.layer_costs(conv3d.make_model({**CONFIG, "precision": "mixed_bfloat16"}))
    for a, b, c in zip(single, double, half, strict=True):
        assert a["activation_bytes"] == 4 * math.prod(a["output_shape"]) == b["activation_bytes"] / 2
        assert c["activation_bytes"] == a["activation_bytes"] / (1 if c["name"] in ("volume", "mask") else 2)


def test_kernel_size_changes_weights_and_arithmetic_but_no_activation():
    small, large = (conv3d.layer_costs(conv3d.build_conv3d(kernel_size=kernel)) for kernel in (3, 7))
    assert [row["activation_bytes"] for row in small] == [row["activation_bytes"] for row in large]
    convolutions = [(a, b) for a, b in zip(small, large, strict=True) if "_conv" in a["name"]]
    assert all(b["multiply_adds"] * 27 == a["multiply_adds"] * 343 for a, b in convolutions)


def test_open_input_shape_is_refused():
    with pytest.raises(ValueError, match="fixed input shape"):
        conv3d.layer_costs(unet_segmentation.build_unet((None, None, 1)))


def test_live_memory_of_two_layers_is_that_of_a_hand_replay():
    """The backward pass of the second layer holds the input, both outputs, the loss's copies and all gradients."""
    import keras
    from keras import layers

    inputs = keras.Input((8, 8, 8, 1))
    hidden = layers.Conv3D(16, 1, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Conv3D(1, 1)(hidden))
    voxels, batch = 8**3 * 4, 3
    images, target, mask, mask_gradient = 1, 1, 0, 1  # the mask is linear: freed once the loss is known
    hold = images + target * 0 + mask + mask_gradient + 16 + 16  # hidden output and its gradient
    second = batch * voxels * hold + 4 * (16 + 1)  # and the gradient of the second layer's weights
    assert memory.training_memory(model, batch)["live"] * memory.MIB == pytest.approx(second)


def test_every_tensor_is_allocated_once_and_freed_once():
    for model in (conv3d.build_conv3d(), unet_segmentation.build_unet()):
        events = memory.step_events(memory.step_operations(model, 1))
        alive = set()
        for name, size in events:
            assert (name in alive) == (size is None)
            alive ^= {name}
        assert not alive


def test_pool_cuts_reuses_and_doubles():
    mib = memory.MIB
    assert memory.pool_bytes([("a", mib), ("a", None), ("b", mib)]) == mib  # the same chunk again
    assert memory.pool_bytes([("a", mib), ("b", mib), ("c", mib)]) == 3 * mib  # a second region
    assert memory.pool_bytes([("a", mib), ("b", mib), ("a", None), ("b", None), ("c", 2 * mib)]) == 2 * mib  # joined
    assert memory.pool_bytes([("a", 5 * mib), ("a", None), ("b", 3 * mib), ("c", 3 * mib)]) == 6 * mib  # cut, then not


def test_memory_grows_with_voxels_filters_batch_and_optimizer():
    def total(batch=1, optimizer="adam", **changes):
        return memory.training_memory(conv3d.make_model({**CONFIG, **changes}), batch, optimizer)["total"]

    assert total(optimizer="sgd") < total() < total(filters=8)
    assert total(input_shape=(32, 32, 32, 1)) < total(input_shape=(64, 64, 64, 1), downsampling="early")
    assert total(input_shape=(64, 64, 64, 1), downsampling="early") < total(input_shape=(64, 64, 64, 1))
    assert total(batch=64) < total(batch=128)


def test_what_fits_really_is_predicted_to_fit():
    batches, table = conv3d.fit_in(1.5, CONFIG)
    for sides in table.values():
        assert sides == sorted(sides, reverse=True)  # a larger batch leaves less for the patch
    assert max(table[8]) > max(table[64]) and batches[0] == 1


def test_recorded_study_holds_what_it_says():
    study = json.loads((Path(conv3d.__file__).parent / "benchmarks" / "results" / "conv3d_study.json").read_text())
    summary = conv3d.summarize(study["rows"])
    assert summary.items() <= study["summary"].items()
    assert summary["median_error"] <= 0.15 and summary["largest_error"] <= 0.30 and summary["spearman"] >= 0.98
    assert study["provenance"]["git.dirty"] == "false"


def test_simulation_is_fixed_by_its_seed():
    assert conv3d.simulate(20, seed=1) == conv3d.simulate(20, seed=1) != conv3d.simulate(20, seed=2)
    assert all(0 <= dice <= 1 for dice in conv3d.simulate(500, seed=0)["simulated/dice"])


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_bad_flags_are_one_sentence_exit_code_2_and_no_run(flags, words, store, capsys):
    import mlflow

    with pytest.raises(SystemExit) as stop:
        conv3d.main(flags.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err
    assert mlflow.MlflowClient().get_experiment_by_name(conv3d.EXPERIMENT) is None


def test_help_answers_before_keras_is_imported():
    code = "import sys, conv3d_analysis; assert not {'keras', 'tensorflow', 'matplotlib', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(conv3d.__file__).parent)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, migrated_database):
    """The store, the run's id and the console of one default run, made small."""
    folder = tmp_path_factory.mktemp("conv3d")
    (folder / "mlflow.db").write_bytes(migrated_database.read_bytes())
    flags = "--input-shape 16 16 16 1 --filters 4 --steps 5 --seed 3 --out-dir out"
    environment = {**os.environ, "PYTHONPATH": str(Path(conv3d.__file__).parent)}
    code = "import sys, conv3d_analysis; print('id', conv3d_analysis.main(sys.argv[1:]))"
    script = folder / "run.py"
    script.write_text(f"{code.split('; ')[0]}\nif __name__ == '__main__':\n    {code.split('; ')[1]}\n")
    done = subprocess.run(
        [sys.executable, script, *flags.split()],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return folder, done.stdout.split()[-1], done.stdout


def test_run_holds_architecture_parameters_and_marked_simulation(finished, monkeypatch):
    import keras
    import mlflow

    folder, run_id, console = finished
    monkeypatch.chdir(folder)
    client = mlflow.MlflowClient(f"sqlite:///{folder.as_posix()}/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "3D_Volumetric_Analysis"
    expected = {"optimizer": "adam", "filters": "4", "input_shape": "(16, 16, 16, 1)", "kernel_size": "3"}
    assert expected.items() <= run.data.params.items()
    assert run.data.tags["metrics.source"] == "simulated"
    assert run.data.tags["mlflow.note.content"].startswith("SIMULATED")
    assert "SIMULATED, not trained" in console
    history = client.get_metric_history(run_id, "simulated/dice")
    assert [m.value for m in history] == conv3d.simulate(5, seed=3)["simulated/dice"]
    assert [m.step for m in history] == [1, 2, 3, 4, 5]
    assert all("/" in key for key in run.data.metrics)
    assert run.data.metrics["measured/peak_mib"] > 0

    artifacts = folder / "mlruns" / conv3d.EXPERIMENT / run_id / "artifacts"
    assert {path.name for path in artifacts.iterdir()} == {
        "layers.csv",
        "model",
        "simulated_curves.png",
        "simulation.json",
        "tradeoffs.png",
    }
    simulation = json.loads((artifacts / "simulation.json").read_text())
    assert simulation["seed"] == 3 and simulation["formula"] == conv3d.SIMULATION
    rebuilt = keras.models.model_from_json((artifacts / "model" / "architecture.json").read_text())
    built = conv3d.build_conv3d((16, 16, 16, 1), 4)
    assert json.loads(rebuilt.to_json()) == json.loads(built.to_json())
    assert rebuilt.count_params() == built.count_params()
    rebuilt.set_weights(built.get_weights())
    volume = np.random.default_rng(0).random((1, 16, 16, 16, 1), np.float32)
    np.testing.assert_array_equal(rebuilt.predict(volume, verbose=0), built.predict(volume, verbose=0))
    rows = list(csv.DictReader((artifacts / "layers.csv").open()))
    assert sum(int(row["parameters"]) for row in rows) == built.count_params()


@pytest.mark.slow
def test_study_measures_the_grid_as_children_of_one_run(store, monkeypatch):
    import mlflow

    grid = [{**CONFIG, "filters": 8}, {**CONFIG, "input_shape": (4096, 4096, 4096, 1)}]
    monkeypatch.setattr(conv3d, "study_grid", lambda: grid)
    parent = conv3d.main(["--study", "--out-dir", "out"])
    runs = mlflow.search_runs(experiment_names=[conv3d.EXPERIMENT], output_format="list")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    assert sorted(run.data.tags["status"] for run in children) == ["measured", "would not fit"]
    rows = json.loads((store / "out" / "conv3d_study.json").read_text())["rows"]
    assert rows[0]["error"] == rows[0]["predicted_total_mib"] / rows[0]["measured_peak_mib"] - 1
    assert "measured_peak_mib" not in rows[1]


@pytest.mark.slow
def test_a_real_server_serves_the_run_over_its_rest_api(finished):
    folder, run_id, _ = finished
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI"):
        environment.pop(name, None)
    database = f"sqlite:///{folder.as_posix()}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", database]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def ask(path, **body):
        data = json.dumps(body).encode() if body else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def api(path, **body):
        return json.loads(ask(f"api/2.0/mlflow/{path}", **body))

    try:
        for _ in range(120):
            try:
                if ask("health") == "OK":
                    break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.5)
        experiments = {e["name"]: e["experiment_id"] for e in api("experiments/search", max_results=10)["experiments"]}
        runs = api("runs/search", experiment_ids=[experiments[conv3d.EXPERIMENT]])["runs"]
        assert [run["info"]["run_id"] for run in runs] == [run_id]
        history = api(f"metrics/get-history?run_id={run_id}&metric_key=simulated/loss")["metrics"]
        assert [m["value"] for m in history] == conv3d.simulate(5, seed=3)["simulated/loss"]
        listed = {file["path"] for file in api(f"artifacts/list?run_id={run_id}")["files"]}
        assert {"layers.csv", "tradeoffs.png", "model"} <= listed
        architecture = json.loads(ask(f"get-artifact?run_uuid={run_id}&path=model/architecture.json"))
        assert architecture["class_name"] == "Functional"
    finally:
        server.terminate()
        server.wait(20)
