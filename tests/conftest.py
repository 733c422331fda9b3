"""Fixtures that several test files share."""

import functools
import os
import shutil
import sys

import pytest

from lab.system import backend

backend.prepare()  # as a script does, before JAX, where it is installed, tells TensorFlow to talk more
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: what is long and begins last leaves a processor idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def float32_again():
    """The scripts set Keras's precision for their whole process; the next test finds the default."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture
def quick_training(monkeypatch):
    """A U-Net of the scripts has one pooling, and two of its steps are timed: TensorFlow compiles it in half the time.

    For laws that hold for a network of any depth.
    """
    import unet_segmentation
    import volume_segmentation
    from lab.model import training

    shallow = functools.partial(unet_segmentation.build_unet, depth=1)
    monkeypatch.setattr(unet_segmentation, "build_unet", shallow)
    monkeypatch.setattr(volume_segmentation, "DEPTH", 1)
    monkeypatch.setattr(training, "MOST", 2)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory):
    """An MLflow database with all tables and no experiment but Default: 7 s, so once per session."""
    import mlflow

    file = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file.as_posix()}").get_experiment("0")
    return file


@pytest.fixture
def store(tmp_path, monkeypatch, migrated_database):
    """A fresh MLflow store in the current directory, `tmp_path`; fails if the test leaves a run active."""
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(None)
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    active = mlflow.active_run()
    mlflow.end_run()
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    assert active is None, f"the test left run {active.info.run_id} active"
