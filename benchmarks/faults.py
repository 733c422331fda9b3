"""Attack the scripts and count what they survive: kills, signals, a tracking server that goes away, disks that fill up.

    python -m benchmarks.faults                        # all of it: about an hour, Linux
    python -m benchmarks.faults --only kills signals   # or some, each recorded by itself

Each attack is one on real processes, files, servers and disks, with networks so small that the time goes into starting
Python. A row says how many of how many attempts ended as promised; what did not is printed, with the console.
"""

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks import _common
from benchmarks._servers import free_port, postgresql, server

TINY = "--size 32 --train-size 16 --radius 2 6 --filters 4 --val-images 4 --test-images 6 --train-images 16"
TRAINING = f"{TINY} --precision float32 --deterministic --epochs"
SCRIPTS = {
    "unet_segmentation.py": f"{TRAINING} 400",
    "volume_segmentation.py": "--size 32 --radius 4 8 --patch 16 --filters 2 --train-patches 8 --epochs 400",
    "conv3d_analysis.py": "--input-shape 64 64 64 1 --filters 16",
}
SENTENCES = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}
ENDED = ("FINISHED", "FAILED", "KILLED")


# Processes and stores


def start(folder: Path, script: str, flags: str, **environment: str) -> subprocess.Popen:
    """Start a script of the lab, or a module such as "-m lab.track.send", in `folder`, its console in a file there."""

    def hear():  # a shell's background job ignores Ctrl-C, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    program = script.split() if script.startswith("-m ") else [str(_common.ROOT / script)]
    command = [sys.executable, "-u", *program, *flags.split()]
    console = open(folder / "console", "w")  # noqa: SIM115  closed with the process
    streams = {"stdout": console, "stderr": console}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    clean["PYTHONPATH"] = str(_common.ROOT)
    return subprocess.Popen(command, cwd=folder, env={**clean, **environment}, preexec_fn=hear, **streams)


def run(folder: Path, script: str, flags: str, **environment: str) -> tuple[int, str]:
    """Run a script to its end; its exit code and console."""
    code = start(folder, script, flags, **environment).wait()
    return code, (folder / "console").read_text(errors="replace")


def wait_for(folder: Path, words: str, process: subprocess.Popen, seconds: float = 120) -> bool:
    """Wait until the console of a process holds `words`; False if it ends before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if words in (folder / "console").read_text(errors="replace"):
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return False


@contextmanager
def folder_with_store():
    """A new folder with an MLflow database in it, as after the first run."""
    template = Path(tempfile.gettempdir()) / "faults-mlflow.db"
    if not template.exists():
        import mlflow

        mlflow.MlflowClient(f"sqlite:///{template}").get_experiment("0")
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(template, Path(name) / "mlflow.db")
        yield Path(name)


def statuses(folder: Path) -> list[str]:
    """The statuses of all runs of a store."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return [status for (status,) in database.execute("SELECT status FROM runs ORDER BY start_time")]


def digest(model: Path) -> str:
    """Of the weights in a model file, whatever the archive says of its time."""
    with zipfile.ZipFile(model) as archive:
        return hashlib.sha256(archive.read("model.weights.h5")).hexdigest()


def rubbish(folder: Path) -> list[str]:
    """What an output folder should not hold."""
    kept = ("checkpoint-", "mlflow_unsent")
    hidden = [path.name for path in folder.glob(".*")] if folder.exists() else []
    return hidden + [path.name for path in folder.glob("*partial*") if not path.name.startswith(kept)]


# Attacks: each yields (what, did it end as promised, what was seen)


def kills(rounds: int):
    """kill -9 at a random moment of a training, and of the writing of its results; then --resume: the same weights."""
    flags = f"{TRAINING} 30 --out-dir out"
    with folder_with_store() as folder:
        started = time.monotonic()
        code, console = run(folder, "unet_segmentation.py", flags)
        whole, expected = time.monotonic() - started, digest(folder / "out" / "model.keras")
        yield "undisturbed", code == 0, console
    rng = random.Random(0)
    for attempt in range(rounds + rounds // 2):
        writing = attempt >= rounds
        with folder_with_store() as folder:
            process = start(folder, "unet_segmentation.py", flags)
            wait_for(folder, "Epoch 30/30" if writing else "Epoch 1/30", process)
            time.sleep(rng.uniform(0, whole / 6 if writing else whole / 3))
            process.kill()
            process.wait()
            code, console = run(folder, "unet_segmentation.py", f"{flags} --resume")
            right = code == 0 and digest(folder / "out" / "model.keras") == expected and not rubbish(folder / "out")
            right = right and "RUNNING" not in statuses(folder)
            yield "kill -9 while results are written" if writing else "kill -9 in a training", right, console


def signals(rounds: int):
    """Ctrl-C or SIGTERM, sometimes twice, at a random moment of each script: code, status and sentence, within 5 s.

    One that strikes while Python ends, when all is done, changes nothing: exit code 0 and FINISHED.
    """
    rng = random.Random(1)
    scripts = list(SCRIPTS)
    for attempt in range(3 * rounds):
        script, signum = scripts[attempt % len(scripts)], (signal.SIGINT, signal.SIGTERM)[attempt // 3 % 2]
        with folder_with_store() as folder:
            process = start(folder, script, f"{SCRIPTS[script]} --out-dir out")
            time.sleep(rng.uniform(1, 14))
            if process.poll() == 0:
                continue  # done before the signal: nothing was tried
            children = children_of(process.pid)
            signalled = time.monotonic()
            process.send_signal(signum)
            if attempt % 2:  # an impatient user
                time.sleep(0.3)
                process.send_signal(signum)
            code = process.wait(60)
            seconds = time.monotonic() - signalled
            console = (folder / "console").read_text(errors="replace")
            ended, stopped = statuses(folder), code == 128 + signum and SENTENCES[signum] in console
            finished = code == 0 and ended == ["FINISHED"] and "MLflow run: " in console
            right = finished or stopped and not set(ended) - {"KILLED"}
            right = right and seconds < 5 and not rubbish(folder / "out")
            right = right and "Traceback" not in console and not left_over(children)
            yield f"{SENTENCES[signum]}, {script}", right, f"{code} after {seconds:.1f} s\n{console}"


def children_of(pid: int) -> list:
    """The processes that a process has started, and those that they have."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def left_over(children: list, seconds: float = 5) -> list:
    """Those that go on so long after their parent has ended."""
    import psutil

    return psutil.wait_procs(children, timeout=seconds)[1]


def servers(rounds: int):
    """A server stopped, frozen or killed in mid-run and at its end: nothing is missing once the rest is sent.

    What the end of a run misses is sent by the command, what its middle misses by the next start in the folder.
    """
    by_start, by_command = ("unet_segmentation.py", f"{TRAINING} 1 --out-dir out"), ("-m lab.track.send", "out")
    with tempfile.TemporaryDirectory() as name, postgresql(Path(name)) as database:
        stores = {"SQLite": f"sqlite:///{name}/server.db"} | ({"PostgreSQL": database} if database else {})
        for kind, store in stores.items():
            for fault in (signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
                for when, later in (("Epoch 3/40", by_start), ("Epoch 40/40", by_command)):
                    yield (f"server {fault.name}, {kind}", *_lost_server(Path(name), store, fault, when, later))


def _lost_server(shared: Path, store: str, fault: int, when: str, later: tuple[str, str]) -> tuple[bool, str]:
    port = free_port()
    address = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(shared, store, port) as process:
            training = start(folder, "unet_segmentation.py", f"{TRAINING} 40 --out-dir out", **address)
            wait_for(folder, when, training)
            os.killpg(process.pid, fault)
            code = training.wait()
        console = (folder / "console").read_text(errors="replace")
        run_id = re.search("MLflow run: ([0-9a-f]{32})", console)[1]
        with server(shared, store, port):
            again, second = run(folder, *later, **address)
            found = _found(port, run_id)
        left = list((folder / "out").glob("mlflow_unsent_*"))
    files = ["curves.png", "history.json", "per_image.csv", "predictions.png", "scores.json"]
    whole = (list(range(1, 41)), "FINISHED", files, ["READY"])
    return code == again == 0 and found == whole and not left, f"{found}\n{console}\n{second}"


def _found(port: int, run_id: str) -> tuple[list[int], str, list[str], list[str]]:
    """What a server holds of a run: the steps of its loss, its status, its files, the statuses of its models."""
    import mlflow

    client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
    run = client.get_run(run_id).info
    models = client.search_logged_models([run.experiment_id], f"source_run_id = '{run_id}'")
    files = sorted(file.path for file in client.list_artifacts(run_id))
    steps = [point.step for point in client.get_metric_history(run_id, "loss")]
    return steps, run.status, files, [model.status for model in models if model.status != "FAILED"]


def at_once(rounds: int):
    """Four scripts at once on a store that none has opened yet: all succeed."""
    for _ in range(max(1, rounds // 2)):
        with tempfile.TemporaryDirectory() as name:
            folders = [Path(name) / str(i) for i in range(4)]
            for folder in folders:
                folder.mkdir()
            store = {"MLFLOW_TRACKING_URI": f"sqlite:///{name}/mlflow.db"}
            flags = f"{TRAINING} 2 --out-dir out"
            processes = [start(folder, "unet_segmentation.py", flags, **store) for folder in folders]
            codes = [process.wait() for process in processes]
            seen = "\n".join((folder / "console").read_text() for folder in folders)
            yield (
                "4 scripts at once on a new store",
                codes == [0] * 4 and statuses(Path(name)) == ["FINISHED"] * 4,
                seen,
            )


def disks(rounds: int):
    """A disk of a few MB that is full at the start, or fills up on the way: a sentence, and the results somewhere."""
    for size in (1, 2, 3, 4, 6, 8):
        with folder_with_store() as folder:
            disk = folder / "out"
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(disk)], check=True)
            try:
                flags = f"{TRAINING} 20 --out-dir out"
                process = start(folder, "unet_segmentation.py", flags.replace("--filters 4", "--filters 16"))
                wait_for(folder, "Epoch 2/20", process)
                (disk / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 4096)))
                code = process.wait()
                console = (folder / "console").read_text(errors="replace")
                named = [word.rstrip(".,;") for word in console.split() if "results-" in word]
                model = any((Path(path) / "model.keras").exists() for path in [disk, *named])
                yield "disk full", code in (1, 2) and "Traceback" not in console and (model or code == 2), console
                for path in named:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                subprocess.run(["umount", str(disk)], check=True)


BAD = [
    *(f"unet_segmentation.py {flags}" for flags in (
        "--size 100", "--size 20000000", "--size -8", "--epochs 0", "--train-images 10000000000000", "--filters 0",
        "--filters 1000000", "--batch-size 0", "--batch-size 10000000000", "--seed -1", "--seed 4294967296",
        "--learning-rate nan", "--learning-rate -1", "--noise -1", "--noise nan", "--contrast 0", "--contrast 9",
        "--circles 2 1", "--radius 0 1", "--radius 8 80", "--loss x", "--recipe x", "--images nowhere --masks nowhere",
        "--images .", "--images . --masks .", "--out-dir /proc/lab", "--out-dir /dev/null", "--resume --overwrite",
        "--train-size 256", "--train-size 9", "--val-images 0", "--test-images -3", "--precision float8",
        "--train-images 100000000 --fixed-images", "--distributed", "--optimizer sgd", "--schedule x", "--unknown",
    )),
    *(f"conv3d_analysis.py {flags}" for flags in (
        "--input-shape 1024 1024 1024 1", "--input-shape 3 3 3 1", "--input-shape 32 32 32", "--kernel-size 1001",
        "--kernel-size 2", "--filters 1000000", "--filters 0", "--batch-size 1000000000", "--steps 1000000000000",
        "--steps 0", "--seed -1", "--seed 4294967296", "--downsampling x", "--out-dir /proc/lab",
    )),
    *(f"volume_segmentation.py {flags}" for flags in (
        "--size 3", "--size 20000", "--patch 20", "--patch 4096", "--epochs 0", "--filters 0", "--filters 100000",
        "--images nowhere --masks nowhere", "--images .", "--spacing 0", "--memory 0", "--memory 0.001", "--noise -1",
        "--radius 0 1", "--radius 40 60", "--seed -1", "--batch-size 0", "--loss x", "--out-dir /proc/lab",
    )),
    *(f"predict.py {flags}" for flags in (
        "nowhere.keras a.png", "empty.keras a.png", "text.keras a.png", "zip.keras a.png", "half.keras a.png",
        "bomb.keras a.png", "good.keras nowhere.png", "good.keras text.png", "good.keras fifo.png",
        "good.keras loop.png", "good.keras empty", "good.keras a.png --threshold 2", "good.keras a.png --threshold nan",
        "good.keras a.png --out-dir .", "good.keras a.png --masks nowhere", "good.keras a.png --out-dir /dev/null/x",
        "good.keras /dev/zero", "good.keras truncated.png", "good.keras a.png --shard 3/2", "good.keras",
        "code.keras a.png", "nan.keras a.png",
    )),
    "unet_segmentation.py KERAS_BACKEND=abacus", "predict.py good.keras a.png KERAS_BACKEND=abacus",
    "conv3d_analysis.py MLFLOW_TRACKING_URI=http://127.0.0.1:9", "unet_segmentation.py MLFLOW_TRACKING_URI=./mlruns",
]  # fmt: skip


def bad_inputs(rounds: int):
    """A hundred commands that cannot work: one sentence, an exit code, in seconds, no traceback and nothing written."""
    with folder_with_store() as folder:
        _make_bad_files(folder)
        for line in BAD:
            script, *words = line.split()
            before = _contents(folder)
            environment = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))
            flags = " ".join(word for word in words if word.split("=", 1)[0] not in environment)
            started = time.monotonic()
            code, console = run(folder, script, flags, **environment)
            seconds = time.monotonic() - started
            last = console.strip().splitlines()[-1] if console.strip() else ""
            right = code in (1, 2) and "Traceback" not in console and "unexpected" not in console and script in last
            clean = _contents(folder) == before
            yield "bad input", right and clean and seconds < 60, f"{line}: {code} after {seconds:.0f} s\n{console}"


def _contents(folder: Path) -> set[str]:
    """All files but the console and MLflow's store, in which an experiment may have been opened."""
    store = ("mlflow.db", "mlruns", "console")
    return {str(path) for path in folder.rglob("*") if not path.relative_to(folder).parts[0].startswith(store)}


def _make_bad_files(folder: Path) -> None:
    """Models, pictures and folders that cannot be used; `good.keras` can."""
    import numpy as np
    from PIL import Image

    from lab.data import grey_values
    from lab.model import model_file
    from lab.system import backend

    keras = backend.import_keras()
    inputs = keras.Input((None, None, 1))
    settings = grey_values.describe_training(np.random.default_rng(0).random((4, 16, 16, 1)), grey_values.ABSOLUTE)

    def save(name, outputs, weights=None):
        network = keras.Model(inputs, outputs)
        for variable in network.weights if weights is not None else ():
            variable.assign(np.full(variable.shape, weights))
        model_file.save_model(network, folder / name, settings)

    def layer():
        return keras.layers.Conv2D(1, 1, activation="sigmoid")

    save("good.keras", layer()(inputs))
    save("nan.keras", layer()(inputs), np.nan)
    save("code.keras", layer()(keras.layers.Lambda(lambda x: x)(inputs)))
    whole = (folder / "good.keras").read_bytes()
    (folder / "half.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.keras").touch()
    (folder / "text.keras").write_text("no model")
    with zipfile.ZipFile(folder / "zip.keras", "w") as archive:
        archive.writestr("a.txt", "a")
    with zipfile.ZipFile(folder / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("preprocessing.json", "w") as member:
            for _ in range(300):
                member.write(b" " * 2**20)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(folder / "truncated.png")
    (folder / "truncated.png").write_bytes((folder / "truncated.png").read_bytes()[:1000])
    (folder / "text.png").write_text("no picture")
    os.mkfifo(folder / "fifo.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "empty").mkdir()


ATTACKS = {
    "kills": kills,
    "signals": signals,
    "servers": servers,
    "at_once": at_once,
    "disks": disks,
    "bad_inputs": bad_inputs,
}


def scores_table(rows: list[dict]) -> str:
    """What was attempted, over all scripts and stores, and how often it ended as promised, in Markdown."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        for what, (right, tried) in row["outcomes"].items():
            if what != "undisturbed":  # what the others are compared with
                total = counts.setdefault(what.split(",")[0], [0, 0])
                total[0], total[1] = total[0] + right, total[1] + tried
    lines = [[what, f"{right} of {tried}"] for what, (right, tried) in counts.items()]
    return _common.table(["attack", "ended as promised"], lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="which attacks")
    parser.add_argument("--rounds", type=int, default=20, help="kills in mid-training; the other counts follow")
    args = parser.parse_args(argv)
    for name in args.only:
        outcomes: dict[str, list[int]] = {}
        started = time.monotonic()
        for what, right, seen in ATTACKS[name](args.rounds):
            count = outcomes.setdefault(what, [0, 0])
            count[0], count[1] = count[0] + right, count[1] + 1
            print(f"{'as promised' if right else 'NOT AS PROMISED'}: {what}", flush=True)
            if not right:
                print(seen, flush=True)
        row = {"attack": name, "outcomes": outcomes, "seconds": time.monotonic() - started}
        _common.record("faults", row, lambda row: (list(ATTACKS).index(row["attack"]),))
    print(scores_table(_common.rows("faults")))


if __name__ == "__main__":
    main()
