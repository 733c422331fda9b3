"""Runs on real MLflow stores: how they end, what they hold, and what happens when a store fails."""

import http.server
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from lab import tracking
from lab.tracking import TrackingError, how_to_view, open_store, tracked_run

ROOT = Path(tracking.__file__).parent.parent
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


def client():
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{Path('mlflow.db').absolute().as_posix()}")


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
    )


def only_run(experiment="Lab"):
    """The one run of the experiment, read back from the store."""
    found = client().get_experiment_by_name(experiment)
    (run,) = client().search_runs([found.experiment_id])
    return run


def start(script, folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# How a run ends


class TestStatus:
    def test_normal_end_is_finished(self, store):
        with tracked_run("Lab"):
            pass
        assert only_run().info.status == "FINISHED"
        assert only_run().info.end_time is not None

    def test_exception_is_failed_and_goes_on_its_way(self, store):
        with pytest.raises(ZeroDivisionError), tracked_run("Lab"):
            1 / 0  # noqa: B018
        assert only_run().info.status == "FAILED"

    def test_ctrl_c_is_killed(self, store):
        with pytest.raises(KeyboardInterrupt), tracked_run("Lab"):
            raise KeyboardInterrupt
        assert only_run().info.status == "KILLED"

    @pytest.mark.parametrize(("code", "status"), [(0, "FINISHED"), (None, "FINISHED"), (3, "FAILED"), ("no", "FAILED")])
    def test_exit_code_decides_between_finished_and_failed(self, store, code, status):
        with pytest.raises(SystemExit), tracked_run("Lab"):
            sys.exit(code)
        assert only_run().info.status == status

    @POSIX
    def test_signal_handlers_are_put_back(self, store):
        before = signal.getsignal(signal.SIGTERM)
        with tracked_run("Lab"):
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before

    @POSIX
    @pytest.mark.parametrize(("first", "status"), [(True, "KILLED"), (False, "FINISHED")])
    def test_ctrl_c_while_closing_still_writes_the_status(self, store, first, status):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt), tracked_run("Lab"):
                # Another program holds the database for a second, so that closing takes as long.
                other = sqlite3.connect("mlflow.db", isolation_level=None, check_same_thread=False)
                other.execute("BEGIN EXCLUSIVE")
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
                threading.Timer(1, other.close).start()
                if first:
                    raise KeyboardInterrupt
        finally:
            signal.signal(signal.SIGINT, before)
        assert only_run().info.status == status

    @POSIX
    @pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
    def test_signal_is_killed_and_becomes_an_exit_code(self, store, name, code):
        signum = getattr(signal, name)
        before = signal.signal(signum, signal.SIG_DFL)
        try:
            with pytest.raises(SystemExit) as stop, tracked_run("Lab"):
                signal.raise_signal(signum)
        finally:
            signal.signal(signum, before)
        assert stop.value.code == code
        assert only_run().info.status == "KILLED"

    def test_run_in_another_thread_needs_no_signal_handler(self, store):
        def work():
            with tracked_run("Lab"):
                pass

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert only_run().info.status == "FINISHED"


SLEEPER = """
import signal, sys, time
from lab.tracking import tracked_run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started pytest without it
try:
    with tracked_run("Lab", run_name=sys.argv[1]):
        print("open", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""
METRIC = """
import sys
from lab.tracking import tracked_run
sys.argv[0] = "script.py"
with tracked_run("Lab") as run:
    run.metrics({"loss": 1}, step=0)
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory, migrated_database):
    """Two processes on one fresh store and two that wait for a signal, started at once: each takes 3 s."""
    fresh, sleeping = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("sleeping")
    (fresh / "script.py").touch()
    if shutil.which("git"):
        git(fresh, "init")
        git(fresh, "add", "script.py")
        git(fresh, "commit", "-m", "a script")
    shutil.copy(migrated_database, sleeping)
    started = {
        "fresh": [start(METRIC, fresh) for _ in range(2)],
        "sleeping": [start(SLEEPER, sleeping, name) for name in ("SIGINT", "SIGTERM")],
    }
    yield started, fresh, sleeping
    for process in started["fresh"] + started["sleeping"]:
        process.kill()
        process.wait()


@POSIX
def test_processes_that_are_stopped_leave_killed_runs_and_the_usual_exit_codes(processes):
    started, _, folder = processes
    ends = []
    for name, process in zip(("SIGINT", "SIGTERM"), started["sleeping"], strict=True):
        assert process.stdout.readline() == "open\n", process.communicate()[1]
        process.send_signal(getattr(signal, name))
        ends.append((process.communicate(timeout=60)[1], process.returncode))
    assert ends == [("", 130), ("", 143)]
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        runs = dict(database.execute("SELECT name, status FROM runs").fetchall())
    assert runs == {"SIGINT": "KILLED", "SIGTERM": "KILLED"}


def test_two_processes_on_a_fresh_store_both_succeed_in_silence(processes):
    started, folder, _ = processes
    assert [process.communicate(timeout=120) for process in started["fresh"]] == [("", ""), ("", "")]
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)] * 2
        assert database.execute("SELECT count(*) FROM experiments WHERE name = 'Lab'").fetchone() == (1,)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_of_the_script_is_tagged(processes):
    started, folder, _ = processes
    for process in started["fresh"]:
        process.wait(timeout=120)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        commits = database.execute("SELECT value FROM tags WHERE key = 'mlflow.source.git.commit'").fetchall()
    assert commits == [(head,)] * 2


def test_import_of_tracking_imports_neither_mlflow_nor_keras():
    slow = {"mlflow", "keras", "tensorflow", "numpy", "sqlalchemy"}
    script = f"import sys, lab.tracking; print({slow} & set(sys.modules))"
    assert start(script, ROOT).communicate()[0] == "set()\n"


# What a run holds


def test_params_metrics_tags_and_description_are_read_back(store):
    with tracked_run(
        "Lab",
        run_name="first",
        params={"epochs": 3, "skips": True, "none": None},
        tags={"a": 1},
        description="what it is",
    ) as run:
        for step in (1, 2):
            run.metrics({"loss": np.float32(1 / step), "dice": step / 2}, step=step)
        run.params({"late": "x"})
        run.tags({"b": 2})
    found = only_run()
    assert run.missing == []
    assert found.info.run_id == run.run_id
    assert found.info.run_name == "first"
    assert found.data.params == {"epochs": "3", "skips": "True", "none": "None", "late": "x"}
    assert [(m.step, m.value) for m in client().get_metric_history(run.run_id, "loss")] == [
        (1, 1.0),
        (2, 0.5),
    ]
    assert found.data.tags["a"] == "1" and found.data.tags["b"] == "2"
    assert found.data.tags["mlflow.note.content"] == "what it is"


def test_user_process_and_the_callers_tags_are_tagged(store):
    with tracked_run("Lab", tags={"git.dirty": "false"}):
        pass
    tags = only_run().data.tags
    assert tags["mlflow.source.name"] == sys.argv[0] and tags["mlflow.user"]
    assert tags["process.id"] == str(os.getpid()) and float(tags["process.started"]) < time.time()
    assert tags["git.dirty"] == "false"


def test_nan_and_infinity_are_recorded(store):
    with tracked_run("Lab") as run:
        run.metrics({"nan": float("nan"), "infinity": float("inf")}, step=1)
    metrics = only_run().data.metrics
    assert run.missing == []
    assert np.isnan(metrics["nan"]) and metrics["infinity"] == sys.float_info.max


def test_param_above_the_limit_is_kept_as_text(store):
    with tracked_run("Lab", params={"fits": "x" * 6000, "long": "x" * 6001}) as run:
        pass
    import mlflow

    params = only_run().data.params
    assert params["fits"] == "x" * 6000
    assert "params/long.txt" in params["long"]
    assert mlflow.artifacts.load_text(f"{only_run().info.artifact_uri}/params/long.txt") == "x" * 6001
    assert run.missing == []


def test_text_and_files_lie_under_mlruns_of_the_store(store):
    (store / "curves.png").write_bytes(b"png")
    with tracked_run("2D U-Net: ä") as run:
        run.text("{}", "model/architecture.json")
        run.artifact(store / "curves.png", "figures")
    paths = [path for path in (store / "mlruns").rglob("*") if path.is_file()]
    assert {path.name: path.read_bytes() for path in paths} == {
        "architecture.json": b"{}",
        "curves.png": b"png",
    }
    assert all(path.is_relative_to(store / "mlruns" / "2D_U-Net__ä" / run.run_id) for path in paths)


def test_dataset_holds_shape_and_how_to_make_it_again(store):
    images = np.zeros((4, 8, 6, 1), "float32")
    with tracked_run("Lab") as run:
        run.dataset(images, images, name="train", context="training", source="data_synth.make_circles(4, (8, 6))")
        run.dataset(images + 1, images, name="test", context="testing", source="data_synth.make_circles(4, (8, 6))")
    assert run.missing == []
    train, test = sorted(only_run().inputs.dataset_inputs, key=lambda item: item.dataset.name, reverse=True)
    assert json.loads(train.dataset.profile)["features_shape"] == [4, 8, 6, 1]
    assert {tag.key: tag.value for tag in train.tags} == {
        "mlflow.data.context": "training",
        "source": "data_synth.make_circles(4, (8, 6))",
    }
    assert train.dataset.digest != test.dataset.digest


def test_nested_run_knows_its_parent(store):
    with tracked_run("Lab") as parent, tracked_run("Lab", parent_run_id=parent.run_id) as child:
        child.metrics({"loss": 1.0})
    run = client().get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.info.status == client().get_run(parent.run_id).info.status == "FINISHED"


def test_model_is_loadable_and_has_a_signature(store):
    import keras
    import mlflow.keras

    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    images = np.random.default_rng(0).random((2, 8, 8, 1), dtype="float32")
    with tracked_run("Lab") as run:
        run.model(model, example=images)
        run.metrics({"after": 1.0})
        assert only_run().info.status == "RUNNING"
    assert run.missing == []
    assert only_run().info.status == "FINISHED"
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    uri = f"runs:/{run.run_id}/model"
    loaded = mlflow.keras.load_model(uri)
    np.testing.assert_allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-5)
    info = mlflow.models.get_model_info(uri)
    assert info.signature.inputs.inputs[0].shape == (-1, 8, 8, 1)
    requirements = Path(mlflow.artifacts.download_artifacts(f"{uri}/requirements.txt")).read_text()
    assert f"keras=={keras.__version__}" in requirements and "tensorflow==" in requirements


# Stores that cannot be used, said before any work


def test_old_file_store_beside_the_database_is_not_taken_for_the_default(store):
    (store / "mlruns" / "0").mkdir(parents=True)
    (store / "mlruns" / "0" / "meta.yaml").touch()
    with tracked_run("Lab"):
        pass
    assert only_run().info.status == "FINISHED"
    assert how_to_view().startswith("mlflow ui --backend-store-uri sqlite:///")


def test_environment_is_left_as_it_was(store, monkeypatch):
    with tracked_run("Lab") as run:
        inside = os.environ["MLFLOW_TRACKING_URI"]
        with tracked_run("Lab", parent_run_id=run.run_id):
            pass
        assert os.environ["MLFLOW_TRACKING_URI"] == inside  # subprocesses, wherever they run, find the same store
    assert Path(inside.removeprefix("sqlite:///")) == store / "mlflow.db"
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with tracked_run("Lab"):
        pass
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///mlflow.db"


def test_changing_the_directory_does_not_change_the_store(store, monkeypatch, tmp_path_factory):
    with tracked_run("Lab") as run:
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        run.text("a", "a.txt")
    assert not any(Path.cwd().iterdir())
    assert len(list((store / "mlruns").rglob("a.txt"))) == 1


def test_how_to_view_names_the_store(store, monkeypatch):
    assert how_to_view() == "mlflow ui"
    with tracked_run("Lab"):
        assert how_to_view() == "mlflow ui"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////a b/runs.db")
    assert how_to_view() == "mlflow ui --backend-store-uri 'sqlite:////a b/runs.db'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert how_to_view() == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:5000")
    assert how_to_view() == "http://me:***@127.0.0.1:5000"


def test_default_experiment_is_refused(store):
    with pytest.raises(TrackingError, match="name of its own"):
        open_store("Default")


def test_deleted_experiment_is_explained(store):
    number = open_store("Lab")
    client().delete_experiment(number)
    with pytest.raises(TrackingError, match=f"trash.*mlflow experiments restore -x {number}"):
        open_store("Lab")


def test_experiment_made_in_the_web_interface_is_explained(store):
    client().create_experiment("Lab", artifact_location="mlflow-artifacts:/7")
    with pytest.raises(TrackingError, match="web interface.*mlflow experiments rename"):
        open_store("Lab")


def test_artifact_folder_that_is_gone_or_blocked_is_explained(store):
    client().create_experiment("Moved", artifact_location=(store.parent / "former" / "mlruns").as_uri())
    with pytest.raises(TrackingError, match="moved.*mlflow experiments rename"):
        open_store("Moved")
    (store / "mlruns").write_text("a file")
    with pytest.raises(TrackingError, match="artifacts in .*mlruns.*folder that you can write to"):
        open_store("Lab")


def test_unreadable_database_is_explained_at_once(store):
    (store / "mlflow.db").write_bytes(b"not a database" * 1000)
    begin = time.monotonic()
    with pytest.raises(TrackingError, match="cannot be read as an MLflow database.*move it away"):
        open_store("Lab")
    assert time.monotonic() - begin < 5


def test_database_of_another_program_is_left_alone(store):
    (store / "mlflow.db").unlink()
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("CREATE TABLE grades (name)")
    with pytest.raises(TrackingError, match="not an MLflow database"):
        open_store("Lab")


def test_database_of_a_newer_mlflow_is_explained(store):
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()
    with pytest.raises(TrackingError, match="newer MLflow.*install"):
        open_store("Lab")


def test_half_created_database_is_explained(store):
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # MLflow's first migration
        database.execute("DROP TABLE metrics")
        database.commit()
    with pytest.raises(TrackingError, match="move mlflow.db away"):
        open_store("Lab")


def test_folder_that_does_not_exist_is_explained(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{(store / 'no' / 'runs.db').as_posix()}")
    with pytest.raises(TrackingError, match="folder is missing or read-only"):
        open_store("Lab")


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root writes everywhere")
def test_read_only_folder_is_explained(store):
    store.chmod(0o500)
    try:
        with pytest.raises(TrackingError, match="folder is missing or read-only"):
            open_store("Lab")
    finally:
        store.chmod(0o700)


def test_file_store_is_explained(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(TrackingError, match="MLflow cannot use the store ./mlruns.*unset"):
        open_store("Lab")


# Servers


@contextmanager
def serving(health=(200, b"OK")):
    """As much of an MLflow server as one run needs; yields its address and a function that ends it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = 200, b"{}"
            if self.path == "/health":
                status, body = health
            elif "experiments/get-by-name" in self.path:
                body = json.dumps(
                    {
                        "experiment": {
                            "experiment_id": "1",
                            "name": "Lab",
                            "lifecycle_stage": "active",
                            "artifact_location": "mlflow-artifacts:/1",
                        }
                    }
                ).encode()
            elif "runs/create" in self.path or "runs/update" in self.path:
                info = {
                    "run_id": "a" * 32,
                    "experiment_id": "1",
                    "status": "RUNNING",
                    "artifact_uri": "mlflow-artifacts:/1",
                }
                body = json.dumps({"run": {"info": info, "data": {}}, "run_info": info}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def end():
        server.shutdown()
        server.server_close()

    try:
        yield f"http://127.0.0.1:{server.server_port}", end
    finally:
        end()


@pytest.mark.parametrize("backlog", [None, 1], ids=["nobody listens", "accepts and is silent"])
def test_server_that_does_not_answer_is_one_error_in_seconds(store, monkeypatch, backlog):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if backlog:
            silent.listen(backlog)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        with (
            pytest.raises(TrackingError, match="No MLflow server answers.*MLFLOW_TRACKING_URI"),
            tracked_run("Lab"),
        ):
            pytest.fail("the work began")
        assert time.monotonic() - begin < 10


@pytest.mark.parametrize("health", [(500, b""), (404, b"not found"), (200, b"<html>")])
def test_server_that_is_no_mlflow_is_one_error(store, monkeypatch, health):
    with serving(health) as (address, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(TrackingError, match=f"not a working MLflow server.*{health[0]}"):
            open_store("Lab")


def test_server_that_dies_mid_run_costs_seconds_and_two_lines(store, monkeypatch, capfd):
    with serving() as (address, end):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        begin = time.monotonic()
        with tracked_run("Lab") as run:
            run.metrics({"loss": 1.0}, step=0)
            assert run.missing == []
            end()
            for step in range(1, 51):
                run.metrics({"loss": 1.0}, step=step)
        assert time.monotonic() - begin < 30
    assert len(run.missing) == 51  # and the end of the run
    output, errors = capfd.readouterr()
    assert output == ""
    first, last = errors.splitlines()
    assert "could not record metrics at step 1 " in first
    assert "metrics at step 1; " in last and "41 more" in last


# Stores that fail in the middle


def test_database_that_fails_mid_run_does_not_stop_the_work_and_gets_all_of_it(store, capfd):
    with tracked_run("Lab", params={"a": 1}) as run:
        with closing(sqlite3.connect("mlflow.db")) as database:
            database.execute("ALTER TABLE metrics RENAME TO gone")
        run.metrics({"loss": 1.0}, step=7)
        run.metrics({"loss": 1.0}, step=8)
        run.tags({"still": "recorded"})
        assert run.missing == ["metrics at step 7", "metrics at step 8", "tags still"]
        with closing(sqlite3.connect("mlflow.db")) as database:
            database.execute("ALTER TABLE gone RENAME TO metrics")
        run.metrics({"loss": 1.0}, step=9)
    assert run.missing == []
    assert [point.step for point in client().get_metric_history(run.run_id, "loss")] == [7, 8, 9]
    assert only_run().data.tags["still"] == "recorded"
    assert only_run().info.status == "FINISHED"
    first, last = capfd.readouterr().err.splitlines()
    assert "could not record metrics at step 7" in first and "no such table: metrics" in first
    assert "answers again" in last


def test_database_that_vanishes_mid_run_does_not_hide_the_scripts_own_error(store, capfd):
    with pytest.raises(ZeroDivisionError), tracked_run("Lab") as run:
        (store / "mlflow.db").write_bytes(b"overwritten" * 1000)
        1 / 0  # noqa: B018
    assert run.missing == ["the end of the run (FAILED)"]
    assert "the end of the run (FAILED)" in capfd.readouterr().err
    (store / "mlflow.db").unlink()


def test_artifact_folder_that_fails_mid_run_does_not_stop_the_work(store):
    with tracked_run("Lab") as run:
        shutil.rmtree(store / "mlruns")
        (store / "mlruns").write_text("a file")
        run.text("{}", "model/architecture.json")
        run.artifact(store / "missing.png")
        run.metrics({"loss": 1.0}, step=1)
    assert run.missing == ["text model/architecture.json", "file missing.png"]
    assert only_run().data.metrics == {"loss": 1.0}


def test_wrong_use_still_raises(store):
    with pytest.raises(ValueError, match="could not convert"), tracked_run("Lab") as run:
        run.metrics({"loss": "low"})
