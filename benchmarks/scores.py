"""Train the U-Net as the README's tables say, seed by seed, and record every score with its circumstances.

    python -m benchmarks.scores                          # 3 seeds of each row, nothing else running
    python -m benchmarks.scores --rows lab --seeds 0 1   # or some of them
    python -m benchmarks.scores --precision float32      # in the arithmetic that every machine has
    python -m benchmarks.scores --table                  # print the tables from what is recorded

Each run is the command of its row, in a process of its own. Results go to benchmarks/results/scores.json as soon as
each run ends; a run that is recorded there is not repeated.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _common
from lab import backend

ROWS = {  # name: (flags, what it is)
    "lab": ("", "the lab's recipe"),
    "report": ("--recipe report", "the report's recipe"),
    "full": (
        "--train-size 128 --train-images 128 --batch-size 4 --learning-rate 3e-3",
        "full images, half as many, batch 4, 3e-3",
    ),
    "fixed": ("--fixed-images", "the same images every epoch"),
    "adam": ("--optimizer adam --learning-rate 2e-3", "Adam at 2e-3 for Muon"),
    "constant": ("--schedule constant --learning-rate 1e-3", "constant rate of 1e-3"),
    "bce": ("--loss bce", "cross-entropy alone"),
    "dice": ("--loss dice", "Dice loss alone"),
    "more": ("--train-images 1024", "4 times the images"),
    "short": ("--epochs 3 --train-images 128 --val-images 16 --test-images 64", "3 epochs of 128 images"),
}
MAIN = ("report", "lab")
ABLATION = tuple(row for row in ROWS if row not in ("report", "short"))


def key(run: dict) -> tuple:
    """Which runs are the same one, and their order."""
    return list(ROWS).index(run["row"]), run["provenance"]["precision"], run["seed"]


def in_float32(runs: list[dict]) -> list[dict]:
    """Those that may be compared row by row: all of one arithmetic."""
    return [run for run in runs if run["provenance"]["precision"] == "float32"]


def in_main_table(runs: list[dict]) -> list[dict]:
    """The runs of the README's table: their scores are those of the last epoch, as the script keeps it now."""
    return [run for run in runs if run["row"] in MAIN and "selected_epoch" not in run]


def run_row(row: str, seed: int, precision: str) -> dict:
    """Run the row's command with one seed; return its scores and its time."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "unet_segmentation.py", *ROWS[row][0].split(), "--seed", str(seed)]
        command += ["--precision", precision]
        others, started = _common.busy(), time.perf_counter()
        subprocess.run(
            [*command, "--out-dir", folder, "--run-name", f"{row}, seed {seed}"], cwd=_common.ROOT, check=True
        )
        seconds = time.perf_counter() - started
        scores = json.loads((Path(folder) / "scores.json").read_text())
        history = json.loads((Path(folder) / "history.json").read_text())
        if (row, seed) == ("lab", 0):  # the README's pictures
            for name in ("curves.png", "predictions.png"):
                shutil.copy(Path(folder) / name, _common.ROOT / "pictures")
    kept = ("test", "baselines", "failure", "training_seconds")
    return {
        "row": row,
        "seed": seed,
        "command": " ".join(["python", *command[1:]]),
        "wall_seconds": seconds,
        "others_busy": others,
        **{name: scores[name] for name in kept},
        "last_epoch": {name: values[-1] for name, values in history.items()},
        "val_dice_coeff": history["val_dice_coeff"],
        "provenance": {**_common.provenance(), "precision": scores["provenance"]["precision"]},
    }


def mean_and_spread(values: list[float]) -> str:
    """Mean of the seeds, with their standard deviation in units of the last digit: 0.9941 (2)."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ({round(statistics.stdev(values) * 1e4)})"


def main_table(results: list[dict]) -> str:
    """The README's results table, in Markdown: baselines first, then the recipes."""
    titles = ["", "flags", "seeds", "val soft Dice", "val soft IoU", "val Dice", "test Dice", "5th pct", "worst"]
    of_test, results = ("image_dice", "image_dice_p5"), in_main_table(results)
    lines, lab = [], [r for r in results if r["row"] == "lab"]
    for name in ("all background", "best global threshold") if lab else ():
        scores = [r["baselines"][name] for r in lab]
        lines.append([name, "", len(lab), "", "", "", *means(scores, of_test), worst(scores)])
    for row in MAIN:
        all_runs = [r for r in results if r["row"] == row]
        runs = [r for r in all_runs if r["failure"] is None]
        if not runs:
            continue
        flags, title = ROWS[row]
        seeds = len(runs) if runs == all_runs else f"{len(runs)} of {len(all_runs)}"
        last = means([r["last_epoch"] for r in runs], ("val_dice_coeff", "val_iou_metric", "val_image_dice"))
        test = [r["test"] for r in runs]
        lines.append([title, f"`{flags}`" if flags else "none", seeds, *last, *means(test, of_test), worst(test)])
    return _common.table(titles, lines)


def ablation_table(results: list[dict]) -> str:
    """One ingredient of the lab's recipe changed at a time, in Markdown."""
    lines, results = [], in_float32(results)
    for row in ABLATION:
        runs = [r for r in results if r["row"] == row]
        if not runs:
            continue
        soft = means([r["last_epoch"] for r in runs], ["val_dice_coeff"])
        test = [r["test"] for r in runs]
        collapsed = f"{sum(r['failure'] is not None for r in runs)} of {len(runs)}"
        lines.append([ROWS[row][1], len(runs), *soft, *means(test, ["image_dice"]), worst(test), collapsed])
    return _common.table(["recipe", "seeds", "val soft Dice", "test Dice", "worst", "collapsed"], lines)


def means(scores: list[dict], names) -> list[str]:
    """Mean and spread over the runs of each of the named scores."""
    return [mean_and_spread([values[name] for values in scores]) for name in names]


def worst(scores: list[dict]) -> str:
    """Dice of a run's worst image, mean over the runs: the minimum of all would fall with their number."""
    return f"{statistics.mean(values['image_dice_min'] for values in scores):.4f}"


def collapsed_sentence(results: list[dict]) -> str:
    """Which runs of the main table are not in its means."""
    told = []
    for row in MAIN:
        runs = [run for run in in_main_table(results) if run["row"] == row]
        failed = sum(run["failure"] is not None for run in runs)
        if failed:
            told.append(f"Of {len(runs)} runs of {ROWS[row][1]} {failed} collapsed (an empty mask); the means omit it.")
    return " ".join(told)


def short_sentence(results: list[dict]) -> str:
    """Whether trainings of three epochs collapse."""
    runs = [r for r in in_float32(results) if r["row"] == "short"]
    collapsed = sum(r["failure"] is not None for r in runs)
    (dice,) = means([r["test"] for r in runs], ["image_dice"])
    return f"Of {len(runs)} trainings of {ROWS['short'][1]}, {collapsed} collapsed; their test Dice is {dice}."


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of each row")
    parser.add_argument("--precision", choices=("auto", "float32", "mixed_bfloat16"), default="auto", help="of all")
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
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
    results = _common.rows("scores")
    print(main_table(results), ablation_table(results), short_sentence(results), sep="\n\n")


if __name__ == "__main__":
    main()
