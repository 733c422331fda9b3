"""Training shared by several processes, on JAX over loopback, against one process."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import unet_segmentation as unet

if importlib.util.find_spec("jax") is None:  # not imported: JAX sets variables that the children of other tests inherit
    pytest.skip("JAX is for several devices alone: pip install -r tests/requirements.txt", allow_module_level=True)

# A rate that is constant, so that the number of epochs is not compiled in: what is compiled for one test serves in all.
FLAGS = "--size 16 --train-size 16 --radius 2 5 --filters 2 --batch-size 4 --val-images 8 --test-images 4"
FLAGS += " --precision float32 --schedule constant"
SHAPES = "--shapes --size 40 --train-size 40 --radius 3 4"
STEPS = "--epochs 4 --train-images 14"  # 4 + 4 + 4 + 2: the last batch is shorter


def start(folder, process, num, port, *flags):
    """One process of a training on loopback."""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(Path(unet.__file__).parent)}
    environment |= {"KERAS_DISTRIBUTION_NUM_PROCESSES": str(num), "KERAS_DISTRIBUTION_PROCESS_ID": str(process)}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling, most of the time here, takes half
    environment["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = ",".join(f"127.0.0.1:{port + i}" for i in range(num))
    command = [sys.executable, "-u", unet.__file__, *FLAGS.split(), *" ".join(flags).split(), "--distributed"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **streams)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def train(folder, num, *flags):
    """Train with `num` processes; exit codes and consoles."""
    port = free_port()
    processes = [start(folder, i, num, port, *flags) for i in range(num)]
    try:
        consoles = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], consoles


def weights(folder):
    """The trained weights, read without Keras."""
    import zipfile

    import h5py

    with zipfile.ZipFile(folder / "model.keras") as archive, archive.open("model.weights.h5") as file:
        found = {}
        h5py.File(file).visititems(lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {}))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory, migrated_database):
    """A folder with a store, and in `one` what a single process gives."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "mlflow.db").write_bytes(migrated_database.read_bytes())
    codes, consoles = train(folder, 1, STEPS, "--out-dir one")
    assert codes == [0], consoles
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("data", ["", SHAPES], ids=["circles", "three classes"])
def test_two_processes_give_the_weights_and_scores_of_one(whole, data):
    if data:
        codes, consoles = train(whole, 1, STEPS, data, "--out-dir one --overwrite")
        assert codes == [0], consoles
    codes, consoles = train(whole, 2, STEPS, data, "--out-dir two --overwrite")
    assert codes == [0, 0], consoles
    one, two = weights(whole / "one"), weights(whole / "two")
    assert one.keys() == two.keys() and max(np.abs(one[name] - two[name]).max() for name in one) < 1e-5
    first, second = (json.loads((whole / name / "history.json").read_text()) for name in ("one", "two"))
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, atol=1e-6, err_msg=name)
    assert "Test set" in consoles[0] and "Test set" not in consoles[1]  # the first alone writes


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_all_end_when_one_is_killed_and_fewer_go_on_from_its_checkpoint(whole):
    port = free_port()
    processes = [start(whole, i, 2, port, STEPS.replace("4", "40", 1), "--out-dir killed") for i in range(2)]
    for line in processes[0].stdout:
        if "Epoch 3/" in line:
            processes[1].send_signal(signal.SIGKILL)
            break
    started = time.monotonic()
    console = processes[0].communicate(timeout=120)[0]
    processes[1].communicate()
    assert time.monotonic() - started < 90 and processes[0].returncode == 1
    assert "another process of this training has ended" in console and "epochs are kept in killed" in console
    codes, consoles = train(whole, 1, STEPS.replace("4", "40", 1), "--out-dir killed --resume")
    assert codes == [0] and "Going on after epoch" in consoles[0], consoles


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_sigterm_to_all_ends_all(whole):
    port = free_port()
    processes = [start(whole, i, 2, port, STEPS.replace("4", "1000", 1), "--out-dir stopped") for i in range(2)]
    for line in processes[0].stdout:
        if "Epoch 3/" in line:
            break
    for process in processes:
        process.send_signal(signal.SIGTERM)
    consoles = [process.communicate(timeout=60)[0] for process in processes]
    assert processes[0].returncode == 143 and "--resume" in consoles[0], consoles
    assert processes[1].returncode != 0, consoles


@pytest.mark.slow
def test_other_backends_refuse_with_the_reason(tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        [sys.executable, unet.__file__, "--distributed"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "KERAS_BACKEND=jax" in done.stderr
