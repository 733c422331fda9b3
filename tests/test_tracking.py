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
import traceback
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from lab.data import grey_values
from lab.track import dead_runs, send
from lab.track import store as lab_store
from lab.track.store import masked
from lab.track.tracking import TrackingError, how_to_view, open_store, tracked_run

ROOT = Path(__file__).resolve().parent.parent
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
from lab.track.tracking import tracked_run
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
from lab.track.tracking import tracked_run
sys.argv[0] = "script.py"
with tracked_run("Lab") as run:
    run.metrics({"loss": 1}, step=0)
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory, migrated_database):
    """Two processes on one fresh store and three that wait for a signal, started at once: each takes 3 s."""
    fresh, sleeping = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("sleeping")
    (fresh / "script.py").touch()
    if shutil.which("git"):
        git(fresh, "init")
        git(fresh, "add", "script.py")
        git(fresh, "commit", "-m", "a script")
    shutil.copy(migrated_database, sleeping)
    started = {
        "fresh": [start(METRIC, fresh) for _ in range(2)],
        "sleeping": [start(SLEEPER, sleeping, name) for name in ("SIGINT", "SIGTERM", "SIGKILL")],
    }
    yield started, fresh, sleeping
    for process in started["fresh"] + started["sleeping"]:
        process.kill()
        process.wait()


@POSIX
@pytest.mark.slow
def test_processes_that_are_stopped_leave_killed_runs_and_the_usual_exit_codes(processes):
    started, _, folder = processes
    ends = []
    for name, process in zip(("SIGINT", "SIGTERM"), started["sleeping"][:2], strict=True):
        assert process.stdout.readline() == "open\n", process.communicate()[1]
        process.send_signal(getattr(signal, name))
        ends.append((process.communicate(timeout=60)[1], process.returncode))
    assert ends == [("", 130), ("", 143)]
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        runs = dict(database.execute("SELECT name, status FROM runs WHERE name != 'SIGKILL'").fetchall())
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
    script = f"import sys, lab.track.tracking; print({slow} & set(sys.modules))"
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


def test_param_above_the_limit_is_cut(store):
    with tracked_run("Lab", params={"long": "x" * 6001}) as run:
        pass
    assert only_run().data.params == {"long": "x" * 6000} and run.missing == []


def test_text_and_files_lie_under_mlruns_of_the_store(store):
    (store / "curves.png").write_bytes(b"png")
    with tracked_run("2D U-Net: ä") as run:
        run.text("{}", "model/architecture.json")
        run.artifact(store / "curves.png")
    paths = [path for path in (store / "mlruns").rglob("*") if path.is_file()]
    assert {path.name: path.read_bytes() for path in paths} == {
        "architecture.json": b"{}",
        "curves.png": b"png",
    }
    assert all(path.is_relative_to(store / "mlruns" / "2D_U-Net__ä" / run.run_id) for path in paths)


def test_dataset_holds_shape_and_how_to_make_it_again(store):
    images = np.zeros((4, 8, 6, 1), "float32")
    with tracked_run("Lab") as run:
        origin = {"num_samples": 4, "source": "data_synth.make_circles(4, (8, 6))"}
        run.dataset(images, images, name="train", context="training", **origin)
        run.dataset(images + 1, images, name="test", context="testing", **origin)
    assert run.missing == []
    train, test = sorted(only_run().inputs.dataset_inputs, key=lambda item: item.dataset.name, reverse=True)
    assert json.loads(train.dataset.profile)["features_shape"] == [4, 8, 6, 1]
    assert {tag.key: tag.value for tag in train.tags} == {
        "mlflow.data.context": "training",
        "source": "data_synth.make_circles(4, (8, 6))",
    }
    assert train.dataset.digest != test.dataset.digest


def test_dataset_that_is_drawn_while_it_is_used_has_the_shape_of_the_whole(store):
    images = np.zeros((4, 8, 6, 1), "float32")
    with tracked_run("Lab") as run:
        run.dataset(images, images[..., 0], name="train", context="training", source="circles", num_samples=1000)
    assert run.missing == []
    (train,) = only_run().inputs.dataset_inputs
    assert json.loads(train.dataset.profile) == {
        "num_samples": 1000,
        "digest_of_samples": 4,
        "features_shape": [1000, 8, 6, 1],
        "features_size": 1000 * 8 * 6,
        "features_nbytes": 1000 * 8 * 6 * 4,
        "targets_shape": [1000, 8, 6],
        "targets_size": 1000 * 8 * 6,
        "targets_nbytes": 1000 * 8 * 6 * 4,
    }


def test_nested_run_knows_its_parent(store):
    with tracked_run("Lab") as parent, tracked_run("Lab", parent_run_id=parent.run_id) as child:
        child.metrics({"loss": 1.0})
    run = client().get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.info.status == client().get_run(parent.run_id).info.status == "FINISHED"


def model_file_in(folder):
    """A model file of a tiny network."""
    import keras

    from lab.model import model_file

    network = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    images = np.random.default_rng(0).random((2, 8, 8, 1), dtype="float32")
    model_file.save_model(network, folder / "model.keras", grey_values.describe_training(images, grey_values.ABSOLUTE))
    return folder / "model.keras", network, images


def test_model_is_loadable_in_silence_and_has_a_name(store, capfd):
    import mlflow.keras

    (store / "50%41 of it").mkdir()  # MLflow would decode such a path
    file, network, images = model_file_in(store / "50%41 of it")
    capfd.readouterr()
    with tracked_run("Lab") as run:
        assert run.model(file) is None
        run.metrics({"after": 1.0})
        assert only_run().info.status == "RUNNING"
        assert [run.model(file, register="unet") for _ in range(2)] == ["1", "1"]  # the same file: it does not double
    assert run.missing == []
    assert only_run().info.status == "FINISHED"
    assert capfd.readouterr() == ("", "")
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    for uri in (f"runs:/{run.run_id}/model", "models:/unet/1"):
        loaded = mlflow.keras.load_model(uri)
        np.testing.assert_allclose(loaded.predict(images, verbose=0), network.predict(images, verbose=0), rtol=1e-5)


# A run that goes on


def test_resumed_run_is_the_same_and_no_point_doubles(store):
    with pytest.raises(ZeroDivisionError), tracked_run("Lab", params={"epochs": 3, "resume": False}) as first:
        first.metrics({"loss": 0.5, "nan": float("nan")}, step=1, timestamp=1_700_000_000_000)
        1 / 0  # noqa: B018
    assert only_run().info.status == "FAILED"
    with tracked_run("Lab", params={"epochs": 3, "resume": True, "new": 1}, resume_run_id=first.run_id) as run:
        assert only_run().info.status == "RUNNING"
        run.metrics({"loss": 0.5, "nan": float("nan")}, step=1, timestamp=1_700_000_000_000)
        run.metrics({"loss": 0.25}, step=2)
    assert (run.run_id, run.missing) == (first.run_id, [])
    assert only_run().info.status == "FINISHED"
    assert only_run().data.params == {"epochs": "3", "resume": "False", "new": "1"}
    assert [(m.step, m.value) for m in client().get_metric_history(run.run_id, "loss")] == [(1, 0.5), (2, 0.25)]
    assert len(client().get_metric_history(run.run_id, "nan")) == 1


def test_resume_of_a_run_that_is_not_there_begins_a_new_one_and_says_so(store, capfd):
    with tracked_run("Lab") as first:
        pass
    client().delete_run(first.run_id)
    for run_id in (first.run_id, "0" * 32):
        with tracked_run("Lab", resume_run_id=run_id) as run:
            pass
        assert run.run_id != run_id
        (line,) = capfd.readouterr().err.splitlines()
        assert run_id in line and "a new run begins" in line


# Runs whose process is gone


def test_run_whose_process_was_killed_is_closed_by_the_next_script(processes, monkeypatch, capfd):
    started, _, folder = processes
    process = started["sleeping"][-1]
    assert process.stdout.readline() == "open\n", process.communicate()[1]
    process.kill()  # and not waited for: a zombie is gone too
    monkeypatch.chdir(folder)
    time.sleep(0.1)
    open_store("Another")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        run = database.execute("SELECT status, end_time >= start_time FROM runs WHERE name = 'SIGKILL'").fetchone()
    assert run == ("KILLED", 1)
    (line,) = capfd.readouterr().err.splitlines()
    assert "SIGKILL" in line and "its process is gone" in line


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "KILLED"),  # no process has this number
        ({"process.host": "another"}, "RUNNING"),
        ({"process.id": str(os.getpid()), "process.started": "1.5"}, "KILLED"),  # a number that is used again
        ({"process.id": str(os.getppid()), "process.started": None}, "RUNNING"),  # a live one
        ({"process.id": "unknown"}, "RUNNING"),
    ],
)
def test_only_runs_of_this_machine_whose_process_is_gone_are_closed(store, change, status):
    tags = {"process.host": dead_runs.host(), "process.id": str(2**22 + 1), "process.started": "1.5", **change}
    if tags["process.started"] is None:
        tags["process.started"] = str(psutil.Process(os.getppid()).create_time())
    run_id = client().create_run(open_store("Lab"), tags=tags).info.run_id
    client().log_metric(run_id, "loss", 1.0, timestamp=4_000_000_000_000)
    open_store("Other")
    run = client().get_run(run_id)
    assert run.info.status == status
    assert run.info.end_time == (4_000_000_000_000 if status == "KILLED" else None)  # its last sign of life


def test_two_machines_of_one_name_are_told_apart(monkeypatch):
    hosts = []
    for machine in (b"one", b"other", b"one"):
        monkeypatch.setattr(dead_runs.Path, "read_bytes", lambda path, machine=machine: machine)
        hosts.append(dead_runs.host())
    assert hosts[0] == hosts[2] != hosts[1]


def test_half_logged_model_of_a_dead_run_is_failed(store):
    tags = {"process.host": dead_runs.host(), "process.id": str(2**22 + 1), "process.started": "1.5"}
    experiment_id = open_store("Lab")
    run_id = client().create_run(experiment_id, tags=tags).info.run_id
    models = [client().create_logged_model(experiment_id, name="model", source_run_id=run_id) for _ in range(2)]
    client().finalize_logged_model(models[0].model_id, "READY")
    open_store("Lab")
    assert [client().get_logged_model(model.model_id).status for model in models] == ["READY", "FAILED"]


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
    with pytest.raises(TrackingError, match="artifacts in .*mlruns.*no folder that you can write to"):
        open_store("Lab")


def test_unreadable_database_is_explained_at_once(store):
    (store / "mlflow.db").write_bytes(b"not a database" * 1000)
    begin = time.monotonic()
    with pytest.raises(TrackingError, match="cannot be read as an MLflow database.*move it away"):
        open_store("Lab")
    assert time.monotonic() - begin < 5


def test_database_that_is_locked_is_not_called_damaged(store, monkeypatch):
    monkeypatch.setattr(lab_store, "LOCK_SECONDS", 1)
    with closing(sqlite3.connect("mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match="database is locked.*wait for the program .*leave the file") as locked:
            open_store("Lab")
        assert "move" not in str(locked.value)
    open_store("Lab")


def test_database_that_is_locked_for_a_while_is_waited_for(store):
    other = sqlite3.connect("mlflow.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.5, other.close).start()
    open_store("Lab")


def test_database_of_another_program_is_left_alone(store):
    (store / "mlflow.db").unlink()
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("CREATE TABLE grades (name)")
    with pytest.raises(TrackingError, match="not an MLflow database"):
        open_store("Lab")


def test_database_of_another_mlflow_is_explained(store):
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()
    with pytest.raises(TrackingError, match="install the MLflow that made it"):
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


# Secrets


@pytest.mark.parametrize(
    ("uri", "text", "shown"),
    [
        ("", "http://me:s3cret@host:5000", "http://me:***@host:5000"),
        ("", "at https://me:s3/cr@et@host/a, said", "at https://me:***@host/a, said"),
        ("", "https://ghp_0123456789abcdefghij@host/", "https://***@host/"),
        ("", "https://ghp_0123456789abcdefghij:x-oauth-basic@host/", "https://***@host/"),
        ("", "postgresql+psycopg2://me:s3cret@host/runs", "postgresql+psycopg2://me:***@host/runs"),
        ("", "url: /health?user=me&password=s3cret&x=1", "url: /health?user=me&password=***&x=1"),
        ("", "http://host/?token=s3cret", "http://host/?token=***"),
        ("", "http://host/?api_key=s3cret#a", "http://host/?api_key=***"),
        ("", "{'Authorization': 'Basic bWU6czNjcmV0'}", "{'Authorization': 'Basic ***'}"),
        ("http://me:s3cret@host", "cannot log in as me with s3cret", "cannot log in as me with ***"),
        ("http://me:s3c%2Fret@host", "no host 's3c/ret'", "no host '***'"),
        ("http://me:s3cr/et1@host", "nonnumeric port: 's3cr'", "nonnumeric port: '***'"),
        ("http://0123456789abcdefghijk@host", "user 0123456789abcdefghijk", "user ***"),
        # Texts without a secret stay as they are.
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        (
            "http://host:5000",
            "ask me@host at http://host:5000/#/a, 3 tokens",
            "ask me@host at http://host:5000/#/a, 3 tokens",
        ),
    ],
)
def test_no_text_shows_a_secret(monkeypatch, uri, text, shown):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize("uri", ["sqlite:////home/me@work/mlflow.db", "http://host:5000", ""])
def test_text_without_a_secret_stays_as_it_is(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    text = f"ask me@work about {uri}, http://host:5000/#/a and 3 tokens of the basic password"
    assert masked(text) == text


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_values_of_mlflows_secret_variables_are_hidden_wherever_they_stand(monkeypatch, name):
    monkeypatch.setenv(name, "s3cr et")
    assert masked("got s3cr et, s3cr%20et or et alone") == "got ***, *** or et alone"


@pytest.mark.parametrize(
    "uri", ["http://me:s3cret@{}", "http://me:s3/cret@{}", "http://s3cret@{}", "http://{}/?token=s3cret"]
)
def test_error_of_a_server_that_does_not_answer_shows_no_password(store, monkeypatch, uri):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(f"127.0.0.1:{closed.getsockname()[1]}"))
        with pytest.raises(TrackingError) as error:
            open_store("Lab")
    shown = "".join(traceback.format_exception(error.value))
    assert "s3" not in shown and "cret@" not in shown and "***" in shown


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
        with pytest.raises(TrackingError, match=f"No MLflow server answers.*status {health[0]}"):
            open_store("Lab")


def test_server_that_dies_mid_run_costs_seconds_and_two_lines(store, monkeypatch, capfd):
    with serving() as (address, end):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        begin = time.monotonic()
        with tracked_run("Lab", folder=Path(".")) as run:
            run.metrics({"loss": 1.0}, step=0)
            assert run.missing == unsent_files() == []
            end()
            for step in range(1, 51):
                run.metrics({"loss": 1.0}, step=step)
        assert time.monotonic() - begin < 30
    assert len(run.missing) == 51  # and the end of the run
    output, errors = capfd.readouterr()
    assert output == ""
    first, last = errors.splitlines()
    assert "could not record metrics at step 1 " in first and "the script goes on" in first
    assert "metrics at step 1; " in last and "41 more" in last and last.endswith("python -m lab.track.send .")


def test_neither_the_warnings_of_a_run_nor_its_file_show_a_password(store, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serving() as (address, end):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//me:s3cret@"))
        with tracked_run("Lab", folder=store) as run:
            end()
            run.tags({"a": "b"})
            run.text("a", "a.txt")
        with pytest.raises(SystemExit) as exit:
            send.main([str(store)])
    errors = capfd.readouterr().err + str(exit.value.code)
    assert len(errors.splitlines()) == 3 and "s3cret" not in errors and "me:***@127" in errors
    (file,) = unsent_files()
    assert "s3cret" not in file.read_text()


# Stores that fail in the middle


def spoil():
    """Make the database unreadable; return the function that makes it whole again."""
    whole = Path("mlflow.db").read_bytes()
    Path("mlflow.db").write_bytes(b"overwritten" * 1000)
    return lambda: Path("mlflow.db").write_bytes(whole)


def unsent_files():
    return list(Path.cwd().rglob("mlflow_unsent_*"))


def steps(run):
    return [point.step for point in client().get_metric_history(run.run_id, "loss")]


def dump():
    with closing(sqlite3.connect("mlflow.db")) as database:
        return list(database.iterdump())


def test_after_a_failure_nothing_is_sent_until_the_end_or_another_start(store, capfd):
    with tracked_run("Lab", folder=store) as run:
        run.metrics({"loss": 1.0}, step=1)
        assert unsent_files() == []
        mend = spoil()
        run.metrics({"loss": 1.0}, step=2)
        mend()
        run.tags({"a": "b"})
        assert run.missing == ["metrics at step 2", "tags a"] and steps(run) == [1] and len(unsent_files()) == 1
        open_store("Lab", folder=store)
        assert steps(run) == [1, 2] and only_run().info.status == "RUNNING" and unsent_files() == []
        run.metrics({"loss": 1.0}, step=3)
        assert steps(run) == [1, 2] and len(unsent_files()) == 1
    assert steps(run) == [1, 2, 3] and only_run().data.tags["a"] == "b" and only_run().info.status == "FINISHED"
    assert run.missing == unsent_files() == []
    first, _, last = capfd.readouterr().err.splitlines()
    assert "could not record metrics at step 2" in first and "answers again" in last


def test_database_that_vanishes_mid_run_does_not_hide_the_scripts_own_error(store, capfd):
    with pytest.raises(ZeroDivisionError), tracked_run("Lab") as run:
        spoil()
        1 / 0  # noqa: B018
    assert run.missing == ["the end of the run (FAILED)"]
    (line,) = capfd.readouterr().err.splitlines()
    assert "the end of the run (FAILED)" in line and "file is not a database" in line


def test_command_sends_what_an_outage_missed_and_twice_changes_nothing(store, capfd):
    Path("out").mkdir()
    model, *_ = model_file_in(store / "out")
    Path("out/curves.png").write_bytes(b"png")
    images = np.zeros((4, 8, 6, 1), "float32")
    with pytest.raises(ZeroDivisionError), tracked_run("Lab", folder="out") as run:
        run.metrics({"loss": 0.5}, step=1, timestamp=1_700_000_000_000)
        mend = spoil()
        for step in (1, 2):  # the first one is there already
            run.metrics({"loss": 1 / (2 * step)}, step=step, timestamp=1_700_000_000_000)
        run.metrics({"nan": float("nan"), "infinity": float("inf")}, step=1)
        run.params({"late": "x"})
        run.tags({"a": "old"})
        run.tags({"a": "new"})
        run.text("{}", "model/architecture.json")
        run.artifact("out/curves.png")
        run.dataset(images, images, name="train", context="training", source="circles", num_samples=4)
        assert run.model(model, register="circles") is None
        1 / 0  # noqa: B018
    end = time.time() * 1000
    assert run.missing[::9] == ["metrics at step 1", "model as circles"] and len(run.missing) == 11
    assert capfd.readouterr().err.splitlines()[-1].endswith("python -m lab.track.send out")
    mend()
    Path("out").rename("moved")
    (file,) = unsent_files()
    kept = file.read_bytes()

    command = start("import runpy; runpy.run_module('lab.track.send', run_name='__main__')", store, "moved")
    assert command.communicate() == ("", f"note: MLflow run {run.run_id} now has what it had missed.\n")
    found = only_run()
    assert (command.returncode, unsent_files(), found.info.status) == (0, [], "FAILED") and found.info.end_time <= end
    assert [(m.step, m.value) for m in client().get_metric_history(run.run_id, "loss")] == [(1, 0.5), (2, 0.25)]
    assert found.data.params == {"late": "x"} and found.data.tags["a"] == "new"
    assert len(found.inputs.dataset_inputs) == 1
    artifacts = [path.relative_to(store / "mlruns/Lab") for path in Path("mlruns").absolute().rglob("*.*")]
    assert {path.name for path in artifacts if path.parts[0] == run.run_id} == {"architecture.json", "curves.png"}
    (version,) = client().search_model_versions("name = 'circles'")
    assert version.run_id == run.run_id

    before = dump()
    file.write_bytes(kept)
    with pytest.raises(SystemExit) as done:
        send.main(["moved"])
    assert (done.value.code, unsent_files(), dump()) == (0, [], before)


OUTAGE = """
import time
from pathlib import Path
from lab.track.tracking import tracked_run
with tracked_run("Lab", folder=".") as run:
    Path("mlflow.db").rename("away")
    Path("mlflow.db").write_bytes(b"overwritten" * 1000)
    run.metrics({"loss": 1.0}, step=1, timestamp=4_000_000_000_000)
    print(run.run_id, flush=True)
    time.sleep(60)
"""


def test_next_start_sends_what_a_killed_run_had_missed_and_closes_it(store, capfd):
    process = start(OUTAGE, store)
    run_id = process.stdout.readline().strip()
    process.kill()
    process.communicate()
    Path("away").replace("mlflow.db")
    open_store("Lab", folder=store)
    assert only_run().data.metrics == {"loss": 1.0} and unsent_files() == []
    assert (only_run().info.status, only_run().info.end_time) == ("KILLED", 4_000_000_000_000)
    assert f"run {run_id} now has what it had missed" in capfd.readouterr().err
    open_store("Lab", folder=store)
    assert capfd.readouterr().err == ""


def test_resumed_run_keeps_its_id_its_params_and_what_could_not_yet_be_sent(store):
    with pytest.raises(KeyboardInterrupt), tracked_run("Lab", folder=store) as first:
        mend = spoil()
        first.params({"epochs": 3})
        first.metrics({"loss": 1.0}, step=1, timestamp=1_700_000_000_000)
        raise KeyboardInterrupt
    mend()
    with tracked_run("Lab", params={"epochs": 4}, resume_run_id=first.run_id, folder=store) as run:
        assert only_run().info.status == "RUNNING" and run.missing[:2] == ["params epochs", "metrics at step 1"]
        for step in (1, 2):
            run.metrics({"loss": 1.0}, step=step, timestamp=1_700_000_000_000)
    assert run.run_id == first.run_id and run.missing == unsent_files() == []
    assert steps(run) == [1, 2] and only_run().data.params == {"epochs": "3"} and only_run().info.status == "FINISHED"


def test_what_another_store_does_not_know_is_kept_and_named(store, monkeypatch, migrated_database, capfd):
    Path("curves.png").write_bytes(b"of the first run")
    with tracked_run("Lab", folder=store) as run:
        mend = spoil()
        run.metrics({"loss": 1.0}, step=1)
        run.artifact("curves.png")
    mend()
    shutil.copy(migrated_database, "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    capfd.readouterr()
    open_store("Lab", folder=store)
    (line,) = capfd.readouterr().err.splitlines()
    assert run.run_id in line and "does not hold the run" in line and len(unsent_files()) == 1
    Path("curves.png").write_bytes(b"of the next run")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    open_store("Lab", folder=store)
    assert steps(run) == [1] and unsent_files() == []
    first, last = capfd.readouterr().err.splitlines()
    assert "curves.png is gone, or another file lies there" in first and "not recorded" in last and "curves.png" in last


def test_folder_that_cannot_be_written_does_not_stop_the_work(store, capfd):
    with tracked_run("Lab", folder=store / "gone") as run:
        mend = spoil()
        for step in (1, 2):
            run.metrics({"loss": 1.0}, step=step)
        mend()
    assert steps(run) == [1, 2]
    assert capfd.readouterr().err.count("kept in memory only") == 1


def test_what_mlflow_refuses_is_named_and_not_sent_again(store, capfd):
    with tracked_run("Lab", params={"a": 1}, folder=store) as run:
        run.params({"a": 2})
        run.metrics({"loss": 1.0}, step=1)
        assert steps(run) == [1]
    assert run.missing == ["params a"] and unsent_files() == []
    first, last = capfd.readouterr().err.splitlines()
    assert "could not record params a" in first and "left out" in first
    assert "not recorded" in last and "params a" in last and "lab.track.send" not in last


def test_artifact_store_that_fails_alone_costs_no_number_and_leaves_no_half_model(store):
    model, *_ = model_file_in(store)
    with tracked_run("Lab", folder=store) as run:
        Path("mlruns/Lab").rmdir()
        Path("mlruns/Lab").write_text("a file")
        assert run.model(model, register="circles") is None
        run.metrics({"loss": 1.0}, step=1)
    assert run.missing == ["model as circles"]
    ended = only_run().info
    assert steps(run) == [1] and ended.status == "FINISHED"
    Path("mlruns/Lab").unlink()
    open_store("Lab", folder=store)
    assert unsent_files() == [] and only_run().info.end_time == ended.end_time
    models = client().search_logged_models([ended.experiment_id])
    assert sorted(model.status for model in models) == ["FAILED", "FAILED", "READY"]
    assert len(client().search_model_versions("name = 'circles'")) == 1


def test_wrong_use_still_raises(store):
    with pytest.raises(ValueError, match="could not convert"), tracked_run("Lab") as run:
        run.metrics({"loss": "low"})
