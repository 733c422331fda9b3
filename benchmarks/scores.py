"""Train the U-Net as the README's table says, seed by seed, and record every score with its circumstances.

    python -m benchmarks.scores                          # 3 seeds of each row, nothing else running
    python -m benchmarks.scores --rows lab --seeds 0 1   # or some of them
    python -m benchmarks.scores --table                  # print the README's tables from what is recorded

Each run is the command of its row, in a process of its own. Results go to benchmarks/results/scores.json as soon as
each run ends; a run that is recorded there is not repeated.
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

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scores.json"
ROWS = {  # name: (flags, what it is)
    "lab": ("", "the lab's recipe"),
    "report": ("--recipe report", "the report's recipe"),
    "full": (
        "--no-small-images --train-images 128 --batch-size 4 --learning-rate 3e-3",
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
ABLATION = tuple(row for row in ROWS if row != "report")


def run_row(row: str, seed: int) -> dict:
    """Run the row's command with one seed; return its scores, its time and its circumstances."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "unet_segmentation.py", *ROWS[row][0].split(), "--seed", str(seed)]
        started = time.perf_counter()
        subprocess.run([*command, "--out-dir", folder, "--run-name", f"{row}, seed {seed}"], cwd=ROOT, check=True)
        seconds = time.perf_counter() - started
        scores = json.loads((Path(folder) / "scores.json").read_text())
        history = json.loads((Path(folder) / "history.json").read_text())
        if (row, seed) == ("lab", 0):  # the README's pictures
            for name in ("curves.png", "predictions.png"):
                shutil.copy(Path(folder) / name, ROOT / "pictures")
    kept = ("test", "baselines", "last_epoch", "selected_epoch", "failure", "training_seconds", "provenance")
    return {
        "row": row,
        "seed": seed,
        "command": " ".join(["python", *command[1:]]),
        "wall_seconds": seconds,
        "date": time.strftime("%Y-%m-%d"),
        **{name: scores[name] for name in kept},
        "val_dice_coeff": history["val_dice_coeff"],
    }


def load() -> list[dict]:
    """What is recorded so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def record(result: dict) -> None:
    """Add one result to the file, or replace the one of its row and seed."""
    results = [r for r in load() if (r["row"], r["seed"]) != (result["row"], result["seed"])] + [result]
    results.sort(key=lambda r: (list(ROWS).index(r["row"]), r["seed"]))
    RESULTS.parent.mkdir(exist_ok=True)
    aside = RESULTS.with_suffix(".partial")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(aside, RESULTS)


def mean_and_spread(values: list[float]) -> str:
    """Mean of the seeds, with their standard deviation in units of the last digit: 0.9941 (2)."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ({round(statistics.stdev(values) * 1e4)})"


def main_table(results: list[dict]) -> str:
    """The README's results table, in Markdown: baselines first, then the recipes."""
    titles = [
        "", "flags", "seeds", "val soft Dice", "val soft IoU", "val Dice", "test Dice", "5th pct", "worst",
    ]  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    lab = [r for r in results if r["row"] == "lab"]
    for name in ("all background", "best global threshold") if lab else ():
        scores = [r["baselines"][name] for r in lab]
        test = [mean_and_spread([s[key] for s in scores]) for key in ("image_dice", "image_dice_p5")]
        worst = f"{min(s['image_dice_min'] for s in scores):.4f}"
        lines.append("| " + " | ".join([name, "", str(len(lab)), "", "", "", *test, worst]) + " |")
    for row in MAIN:
        runs = [r for r in results if r["row"] == row]
        if not runs:
            continue
        last = ("val_dice_coeff", "val_iou_metric", "val_image_dice")
        cells = [mean_and_spread([r["last_epoch"][key] for r in runs]) for key in last]
        cells += [mean_and_spread([r["test"][key] for r in runs]) for key in ("image_dice", "image_dice_p5")]
        cells += [f"{min(r['test']['image_dice_min'] for r in runs):.4f}"]
        flags, title = ROWS[row]
        lines.append("| " + " | ".join([title, f"`{flags}`" if flags else "none", str(len(runs)), *cells]) + " |")
    return "\n".join(lines)


def ablation_table(results: list[dict]) -> str:
    """One ingredient of the lab's recipe changed at a time, in Markdown."""
    lines = ["| recipe | seeds | val soft Dice | test Dice | worst | collapsed |", "|---|---|---|---|---|---|"]
    for row in ABLATION:
        runs = [r for r in results if r["row"] == row]
        if not runs:
            continue
        soft = mean_and_spread([r["last_epoch"]["val_dice_coeff"] for r in runs])
        hard = mean_and_spread([r["test"]["image_dice"] for r in runs])
        worst = f"{min(r['test']['image_dice_min'] for r in runs):.4f}"
        collapsed = f"{sum(r['failure'] is not None for r in runs)} of {len(runs)}"
        lines.append("| " + " | ".join([ROWS[row][1], str(len(runs)), soft, hard, worst, collapsed]) + " |")
    return "\n".join(lines)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of each row")
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    wanted = [(row, seed) for seed in args.seeds for row in args.rows]
    for row, seed in [] if args.table else wanted:
        if any((r["row"], r["seed"]) == (row, seed) for r in load()):
            print(f"{row}, seed {seed}: recorded already")
            continue
        print(f"{row}, seed {seed}: {ROWS[row][1]}", flush=True)
        record(run_row(row, seed))
    print(main_table(load()))
    print()
    print(ablation_table(load()))


if __name__ == "__main__":
    main()
