"""Train the U-Net by both recipes, seed by seed, and record every score with its circumstances.

    python -m benchmarks.scores                          # 3 seeds of each recipe, nothing else running
    python -m benchmarks.scores --rows lab --seeds 0 1   # or some of them
    python -m benchmarks.scores --table                  # print the table from what is recorded

Each run is the command of its row, in a process of its own. Results go to benchmarks/results/scores.json as soon as
each run ends; a run that is recorded there is not repeated. `benchmarks/ablation.py` asks what each ingredient is for.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _common
from lab.system import backend

ROWS = {  # name: (flags, what it is)
    "report": ("--recipe report", "the report's recipe"),
    "lab": ("", "the lab's recipe"),
}


def key(run: dict) -> tuple:
    """Which runs are the same one, and their order."""
    return list(ROWS).index(run["row"]), run["provenance"]["precision"], run["seed"]


def train(flags: list[str], folder: Path, quiet: bool = False) -> dict:
    """Run `unet_segmentation.py FLAGS` in a process of its own, files and store in `folder`; return what it found."""
    command = [sys.executable, "unet_segmentation.py", *flags]
    # A store of its own: several may run at once, and the user's holds the user's runs.
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    output = subprocess.DEVNULL if quiet else None
    out_dir = ["--out-dir", str(folder / "out")]
    subprocess.run([*command, *out_dir], cwd=_common.ROOT, env=environment, stdout=output, check=True)
    scores = json.loads((folder / "out" / "scores.json").read_text())
    history = json.loads((folder / "out" / "history.json").read_text())
    return {
        "command": " ".join(["python", *command[1:]]),
        **{name: scores[name] for name in ("test", "baselines", "failure", "training_seconds")},
        "last_epoch": {name: values[-1] for name, values in history.items()},
        "val_dice_coeff": history["val_dice_coeff"],
        "provenance": {**_common.provenance(), **circumstances_of(scores["provenance"])},
    }


def circumstances_of(provenance: dict) -> dict:
    """What the training's process knows better than the one that started it."""
    backend_name = provenance["keras.backend"]
    names = ("precision", "keras.backend", f"{backend_name}.version", "device")
    return {name: provenance[name] for name in names}


def run_row(row: str, seed: int, precision: str) -> dict:
    """Run the row's command with one seed; return its scores and its time."""
    with tempfile.TemporaryDirectory() as folder:
        others, started = _common.busy(), time.perf_counter()
        found = train([*ROWS[row][0].split(), "--seed", str(seed), "--precision", precision], Path(folder))
        seconds = time.perf_counter() - started
        if (row, seed) == ("lab", 0):  # the README's pictures
            for name in ("curves.png", "predictions.png"):
                shutil.copy(Path(folder) / "out" / name, _common.ROOT / "pictures")
    return {"row": row, "seed": seed, "wall_seconds": seconds, "others_busy": others, **found}


def mean_and_spread(values: list[float]) -> str:
    """Mean of the seeds, with their standard deviation: 0.9941 ± 0.0002."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def main_table(results: list[dict]) -> str:
    """The README's results table, in Markdown: baselines first, then the recipes."""
    titles = ["", "flags", "seeds", "val soft Dice", "val soft IoU", "val Dice", "test Dice", "5th pct", "worst"]
    of_test = ("image_dice", "image_dice_p5")
    lines, lab = [], list({r["seed"]: r for r in results if r["row"] == "lab"}.values())  # data know no precision
    for name in ("all background", "best global threshold") if lab else ():
        scores = [r["baselines"][name] for r in lab]
        lines.append([name, "", len(lab), "", "", "", *means(scores, of_test), worst(scores)])
    for flags, title, all_runs in groups(results):
        runs = [r for r in all_runs if r["failure"] is None]
        if not runs:
            continue
        seeds = str(len(runs))
        if runs != all_runs:  # the means omit an empty mask
            seeds = f"{len(runs)} of {len(all_runs)}; {len(all_runs) - len(runs)} found nothing"
        last = means([r["last_epoch"] for r in runs], ("val_dice_coeff", "val_iou_metric", "val_image_dice"))
        test = [r["test"] for r in runs]
        lines.append([title, f"`{flags}`" if flags else "none", seeds, *last, *means(test, of_test), worst(test)])
    return _common.table(titles, lines)


def groups(results: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """Flags, name and runs of each row; of each precision apart, and named by it, where there are several."""
    found = []
    for row, (flags, title) in ROWS.items():
        of = {}
        for run in results:
            if run["row"] == row:
                of.setdefault(run["provenance"]["precision"], []).append(run)
        found += [(flags, title if len(of) == 1 else f"{title}, {precision}", runs) for precision, runs in of.items()]
    return found


def means(scores: list[dict], names) -> list[str]:
    """Mean and spread over the runs of each of the named scores."""
    return [mean_and_spread([values[name] for values in scores]) for name in names]


def worst(scores: list[dict]) -> str:
    """Dice of a run's worst image, mean over the runs: the minimum of all would fall with their number."""
    return f"{statistics.mean(values['image_dice_min'] for values in scores):.4f}"


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of each row")
    parser.add_argument("--precision", choices=("auto", "float32", "mixed_bfloat16"), default="auto", help="of all")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    wanted = [(row, seed) for seed in args.seeds for row in args.rows]
    precision = "" if args.table else backend.choose_precision(args.precision)
    for row, seed in [] if args.table else wanted:
        recorded = [(run["row"], run["seed"], run["provenance"]["precision"]) for run in _common.rows("scores")]
        if (row, seed, precision) in recorded:
            print(f"{row}, seed {seed}: recorded already")
            continue
        print(f"{row}, seed {seed}: {ROWS[row][1]}", flush=True)
        _common.record("scores", run_row(row, seed, precision), key)
    print(main_table(_common.rows("scores")))


if __name__ == "__main__":
    main()
