"""The volumetric network, its simulated training, and the script run from end to end; the study that belongs to it."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest

import conv3d_analysis as conv3d
from benchmarks import _common, memory_study
from lab.model import memory
from lab.system.fresh_process import FreshProcess

ROOT = Path(conv3d.__file__).parent
CONFIG = {
    "input_shape": (16, 16, 16, 1),
    "filters": 4,
    "kernel_size": 3,
    "downsampling": "late",
    "precision": "float32",
    "batch_size": 1,
    "optimizer": "adam",
}
BAD = [  # at once
    ("--filters 0", "at least 1"),
    ("--kernel-size 4", "odd"),
    ("--kernel-size -3", "odd"),
    ("--input-shape 32 32 32", "expected 4 arguments"),
    ("--input-shape 2 32 32 1", "divisible by 4"),
    ("--input-shape 0 32 32 1", "divisible by 4"),
    ("--input-shape 36 36 36 1 --downsampling early", "divisible by 8"),
    ("--batch-size 0", "1 to"),
    ("--steps 0", "1 to"),
    ("--seed -1", "0 to 4294967295"),
    ("--kernel-size 1001", "1 to 31"),
    ("--filters 1000000", "1 to 4096"),
    ("--filters 1e6", "invalid int value"),
    ("--filters 4096 --kernel-size 31", "GiB are free"),
    ("--batch-size 1000000000", "1 to 1000000"),
    ("--batch-size 1000000 --filters 256", "GiB are free"),
    ("--steps 1000000000000", "1 to 10000"),
    ("--seed 4294967296", "0 to 4294967295"),
    ("--input-shape 4096 4096 4096 1", "GiB are free"),
    ("--input-shape 1000000 32 32 1", "1 to 4096"),
    ("--input-shape 32 32 32 0", "1 to 4096"),
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


def test_simulation_is_fixed_by_its_seed():
    assert conv3d.simulate(20, seed=1) == conv3d.simulate(20, seed=1) != conv3d.simulate(20, seed=2)
    assert all(0 <= dice <= 1 for dice in conv3d.simulate(500, seed=0)["simulated/dice"])


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_bad_flags_are_one_sentence_exit_code_2_and_touch_nothing(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        conv3d.main(flags.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in said and len(said.splitlines()) == 2  # the other is the usage
    assert not list(tmp_path.iterdir())


def test_network_that_would_not_fit_is_accounted_for_and_not_measured(monkeypatch):
    """In this process, where the account can be told that little is free and that oneDNN is off."""
    monkeypatch.setattr(memory, "free_memory", lambda: 50 * memory.MIB)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    waited = []
    found = conv3d.examine(CONFIG, lambda: waited.append(True))
    assert found["measured"] is None and found["predicted"]["total"] > 50 and waited
    said = conv3d.describe_refusal(found)
    assert "GiB of memory, of which 0.0 GiB are free" in said and "switches oneDNN off" in said


def test_help_answers_before_keras_is_imported():
    code = "import sys, conv3d_analysis; assert not {'keras', 'tensorflow', 'matplotlib', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, migrated_database):
    """The store, the run's id and the console of one default run, made small."""
    folder = tmp_path_factory.mktemp("conv3d")
    (folder / "mlflow.db").write_bytes(migrated_database.read_bytes())
    flags = "--input-shape 16 16 16 1 --filters 4 --steps 5 --seed 3 --out-dir out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
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
    assert done.stderr == ""
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
    assert run.data.metrics["measured/peak_mib"] > 0 and run.data.metrics["predicted/total_mib"] > 0

    artifacts = folder / "mlruns" / conv3d.EXPERIMENT / run_id / "artifacts"
    assert {path.name for path in artifacts.iterdir()} == {
        "layers.csv",
        "model",
        "simulated_curves.png",
        "index.html",
        "simulation.json",
    }
    assert {path.name for path in (folder / "out").iterdir()} == set(conv3d.FILES)
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


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_two_signals_end_the_script_and_its_process(store):
    """0.3 s apart, while TensorFlow is imported there and MLflow here: exit code, sentence, nothing left over."""
    command = [sys.executable, ROOT / "conv3d_analysis.py", "--input-shape", "64", "64", "64", "1", "--filters", "16"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    script = subprocess.Popen(command, cwd=store, **options)
    time.sleep(2)
    children = psutil.Process(script.pid).children(recursive=True)
    started = time.monotonic()
    script.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    script.send_signal(signal.SIGTERM)
    _, errors = script.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert script.returncode == 143 and errors == "conv3d_analysis.py: stopped by SIGTERM.\n"
    assert children and not psutil.wait_procs(children, timeout=5)[1]
    assert not list((store / "outputs").rglob("*.*"))


@pytest.mark.slow
def test_study_measures_the_grid_as_children_of_one_run(store, monkeypatch):
    """The first network in a process of its own; the others in this one, because each process takes seconds to start.

    A process that has held more memory before knows no peak of a single network.
    """
    import mlflow

    def process(work, config):
        if config is grid[0]:
            return FreshProcess(work, config)
        monkeypatch.setattr(memory, "peak_memory", lambda: memory.resident_memory() + memory.MIB)
        return contextlib.nullcontext(types.SimpleNamespace(result=lambda: work(config, lambda: None)))

    grid = [{**CONFIG, "filters": 8}, {**CONFIG, "input_shape": (4096, 4096, 4096, 1)}]
    monkeypatch.setattr(memory_study, "FreshProcess", process)
    monkeypatch.setattr(memory_study, "study_grid", lambda: grid)
    monkeypatch.setattr(memory_study, "UNET_STEPS", 2)
    panels = {title: (key, values[:2]) for title, (key, values) in memory_study.PANELS.items()}
    monkeypatch.setattr(memory_study, "PANELS", panels)
    monkeypatch.setattr(memory_study, "UNETS", [(16, 2, 1, "float32")])
    monkeypatch.setattr(memory_study, "WITHOUT_ONEDNN", [{"input_shape": (16, 16, 16, 1), "filters": 2}])
    monkeypatch.setattr(_common, "RESULTS", store)
    monkeypatch.setattr(memory_study, "PICTURES", store / "pictures")
    (store / "pictures").mkdir()
    parent = memory_study.main([])
    runs = mlflow.search_runs(experiment_names=[conv3d.EXPERIMENT], output_format="list")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    assert sorted(run.data.tags["status"] for run in children) == ["measured", "would not fit"]
    study = json.loads((store / "conv3d_study.json").read_text())
    assert [row["status"] for row in (*study["unet"], *study["without_onednn"])] == ["measured"] * 2
    rows = study["rows"]
    assert rows[0]["error"] == rows[0]["predicted_total_mib"] / rows[0]["measured_peak_mib"] - 1
    assert "measured_peak_mib" not in rows[1]
    assert {path.name for path in (store / "pictures").iterdir()} == {"conv3d_study.png", "tradeoffs.png"}


def test_recorded_study_holds_what_it_says():
    study = json.loads((ROOT / "benchmarks" / "results" / "conv3d_study.json").read_text())
    summary = memory_study.summarize(study["rows"])
    assert {name: summary[name] for name in summary.keys() & study["summary"].keys()}.items() <= study[
        "summary"
    ].items()
    assert summary["median_error"] <= 0.15 and summary["largest_error"] <= 0.30 and summary["spearman"] >= 0.98
    assert study["provenance"]["git.dirty"] == "false"


def test_grid_of_the_study_has_the_full_cross_and_no_row_twice():
    grid = memory_study.study_grid()
    assert len(grid) == len({json.dumps(config) for config in grid}) == 4 * 3 * 4 + 2 * 2 * 4 + 2 * 2 + 1


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
        assert {"layers.csv", "simulation.json", "model"} <= listed
        architecture = json.loads(ask(f"get-artifact?run_uuid={run_id}&path=model/architecture.json"))
        assert architecture["class_name"] == "Functional"
    finally:
        server.terminate()
        server.wait(20)
