"""Four scripts at once, round after round, on one tracking server: is everything there?

    python -m benchmarks.shared_server                 # ten rounds: about half an hour on 2 busy cores, Linux

Each round starts two trainings on images, one on volumes and an analysis at the same moment, in folders that have
nothing in common but MLFLOW_TRACKING_URI, as on four hosts. The server is MLflow's, on PostgreSQL, with artifacts
through it. Then the server is asked for every metric of every epoch, every file and model, and how each run ended; a
model is fetched from it by its alias. Needs Debian's package postgresql.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _common
from benchmarks._servers import free_port, postgresql, server

IMAGES = "--size 32 --train-size 16 --radius 2 6 --filters 4 --val-images 4 --test-images 6 --train-images 16"
VOLUMES = "--size 32 --radius 4 8 --patch 16 --filters 2 --train-patches 8 --val-patches 4 --test-volumes 2"
SCRIPTS = (
    ("unet_segmentation.py", f"{IMAGES} --epochs 20 --seed 0 --register circles"),
    ("unet_segmentation.py", f"{IMAGES} --epochs 20 --seed 1 --register circles"),  # versions of one name, at once
    ("volume_segmentation.py", f"{VOLUMES} --epochs 5"),
    ("conv3d_analysis.py", "--input-shape 16 16 16 1 --filters 2"),
)
RECORDED_FROM = 10  # rounds
COUNTS = ("runs", "points", "files", "models", "versions")


def run_round(folder: Path, uri: str) -> list[tuple[Path, int, str]]:
    """Run all scripts at once; the folder, exit code and console of each."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    running = []
    for number, (script, flags) in enumerate(SCRIPTS):
        own = folder / str(number)
        own.mkdir(parents=True)
        with open(own / "console", "w") as console:
            command = [sys.executable, str(_common.ROOT / script), *flags.split(), "--out-dir", "out"]
            environment = {**clean, "MLFLOW_TRACKING_URI": uri}
            process = subprocess.Popen(command, cwd=own, env=environment, stdout=console, stderr=console)
        running.append((own, process))
    return [(own, process.wait(), (own / "console").read_text()) for own, process in running]


def written(out: Path) -> tuple[dict, set[str]]:
    """What a script has written: values by metric and step, and the names of the files that it logs."""
    files = {path.name for path in out.iterdir() if not path.name.startswith(".") and path.suffix != ".keras"}
    if (out / "history.json").exists():
        history, step = json.loads((out / "history.json").read_text()), "epoch"
    else:
        history, step = json.loads((out / "simulation.json").read_text()), "step"
        history = {name: values for name, values in history.items() if name == "step" or "simulated/" in name}
    steps = history.pop(step)
    return {(name, at): value for name, row in history.items() for at, value in zip(steps, row, strict=True)}, files


def compare(client, own: Path, console: str) -> dict[str, list]:
    """By COUNTS: how much of what a script has written the server holds, and how much it should hold."""
    run = client.get_run(re.search(r"MLflow run: (\w+)", console)[1])
    points, files = written(own / "out")
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in {name for name, _ in points}}
    held = {(name, metric.step): metric.value for name, row in histories.items() for metric in row}
    doubled = sum(len(row) for row in histories.values()) - len(held)
    same = [key for key, value in points.items() if key in held and is_same(held[key], value)]
    listed = {file.path for file in client.list_artifacts(run.info.run_id)}
    found = {
        "runs": [run.info.status == "FINISHED", 1],
        "points": [len(same) - doubled, len(points)],
        "files": [len(files & listed), len(files)],
    }
    if (own / "out" / "model.keras").exists():
        logged = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
        found["models"] = [sum(model.status == "READY" for model in logged), 1]
    if "Registered in MLflow" in console:
        name, version = re.search(r"models:/(\w+)/(\d+)", console).groups()
        found["versions"] = [client.get_model_version(name, version).run_id == run.info.run_id, 1]
    return found


def is_same(value: float, written) -> bool:
    """Whether a metric is what a JSON file says, which knows no NaN."""
    return math.isnan(value) if written is None else value == written


def fetch(client, folder: Path, uri: str) -> bool:
    """Whether predict.py gives the same mask by a model's alias on the server as by its file."""
    import numpy as np
    from PIL import Image

    version = client.search_model_versions("name = 'circles'")[0]
    client.set_registered_model_alias("circles", "champion", version.version)
    picture = np.random.default_rng(0).integers(0, 255, (50, 70)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "picture.png")
    own = next(own for own in folder.glob("*/[01]") if version.run_id in (own / "console").read_text())
    masks = []
    for number, model in enumerate((own / "out" / "model.keras", "models:/circles@champion")):
        command = [
            sys.executable,
            str(_common.ROOT / "predict.py"),
            str(model),
            "picture.png",
            "--out-dir",
            f"{number}",
        ]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        masks.append((folder / f"{number}" / "picture_mask.png").read_bytes())
    return masks[0] == masks[1]


def run_rounds(client, folder: Path, uri: str, rounds: int) -> dict:
    """Run all rounds, and say after each what the server holds of what it should; return the sums."""
    total, failures = {name: [0, 0] for name in COUNTS}, 0
    for number in range(1, rounds + 1):
        for own, code, console in run_round(folder / f"round-{number}", uri):
            found = compare(client, own, console) if code == 0 else {"runs": [0, 1]}
            missing = [name for name, (held, wanted) in found.items() if held != wanted]
            if code or missing or "warning" in console:
                failures += 1
                print(f"exit code {code}, missing: {missing}\n{console}", flush=True)
            for name, (held, wanted) in found.items():
                total[name] = [total[name][0] + held, total[name][1] + wanted]
        shown = ", ".join(f"{held} of {wanted} {name}" for name, (held, wanted) in total.items())
        print(f"round {number}: {shown}; {failures} scripts failed or warned", flush=True)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    without_end = len(client.search_runs(experiments, "status = 'RUNNING'"))
    return {"rounds": rounds, "held": total, "failures": failures, "runs_without_an_end": without_end}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help=f"fewer than {RECORDED_FROM} are not recorded")
    args = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, postgresql(Path(name)) as store:
        if store is None:
            sys.exit("PostgreSQL is not there: sudo apt install postgresql")
        folder, port = Path(name), free_port()
        uri = f"http://127.0.0.1:{port}"
        with server(folder, store, port):
            import mlflow

            client = mlflow.MlflowClient(uri, uri)
            result = run_rounds(client, folder, uri, args.rounds)
            result["same_mask"] = fetch(client, folder, uri)
    same = "the same" if result["same_mask"] else "ANOTHER"
    print(f"{result['runs_without_an_end']} runs without an end; the model fetched by its alias gives {same} mask.")
    if args.rounds >= RECORDED_FROM:
        _common.write("shared_server", {**result, "seconds": time.monotonic() - started})


if __name__ == "__main__":
    main()
