"""One ingredient of the lab's recipe changed at a time: what is each one for?

    TF_NUM_INTRAOP_THREADS=1 python -m benchmarks.ablation --jobs 2     # 81 trainings, two hours on 2 cores
    KERAS_BACKEND=jax python -m benchmarks.ablation --jobs 8            # 8 at once, on a graphics card
    python -m benchmarks.ablation --table      # print the table from what is recorded

Each row is trained at four learning rates with seed 0; the one of the best validation Dice is trained again with seeds
that the choice has not seen, the same for all rows, so that differences to the lab's recipe are paired by seed. What is
recorded is not repeated.
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks import _common, scores
from benchmarks.intervals import paired, told

MUON, ADAM = (1e-3, 2e-3, 4e-3, 8e-3), (5e-4, 1e-3, 2e-3, 4e-3)
ROWS = {  # name: (what it is, flags, rates)
    "lab": ("the lab's recipe", "", MUON),
    "full": (
        "full images, half as many, batch 4",
        "--train-size 128 --train-images 128 --batch-size 4",
        MUON,
    ),
    "fixed": ("the same images every epoch", "--fixed-images", MUON),
    "adam": ("Adam for Muon", "--optimizer adam", ADAM),
    "constant": ("constant rate", "--schedule constant", (2.5e-4, 5e-4, 1e-3, 2e-3)),
    "bce": ("cross-entropy alone", "--loss ce", MUON),
    "dice": ("Dice loss alone", "--loss dice", MUON),
    "more": ("4 times the images", "--train-images 1024", MUON),
    "report": ("the report's recipe, at the chosen rate", "--recipe report", (2.5e-4, 5e-4, 1e-3, 2e-3)),
}
SWEEP, FRESH = (0,), range(10, 15)  # seeds
FAILED = 0.5  # a test Dice below it counts as a failure; so does a mask that is empty or full


def key(run: dict) -> tuple:
    """Which runs are the same one, and their order."""
    return list(ROWS).index(run["row"]), run["seed"], run["rate"]


def run(row: str, rate: float, seed: int) -> dict:
    """Train a row at a rate; return scores and circumstances."""
    _, flags, _ = ROWS[row]
    with tempfile.TemporaryDirectory() as folder:
        flags = [*flags.split(), "--learning-rate", f"{rate:g}", "--seed", str(seed)]
        found = scores.train(flags, Path(folder), quiet=True)
    del found["baselines"], found["val_dice_coeff"]
    return {"row": row, "rate": rate, "seed": seed, **found}


def run_all(wanted: list[tuple], jobs: int) -> None:
    """Train and record what is wanted, (row, rate, seed) each, and not yet recorded, `jobs` at a time.

    A training that fails costs no other one: which they were is said at the end, with exit code 1.
    """
    failures = []

    def run_and_record(one):
        found = run(*one)
        _common.record("ablation", found, key)
        return found

    recorded = {(found["row"], found["rate"], found["seed"]) for found in _common.rows("ablation")}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run_and_record, one): one for one in wanted if one not in recorded}
        for number, future in enumerate(as_completed(futures), 1):
            if future.exception():
                failures.append(f"{futures[future]}: {future.exception()}")
                continue
            found = future.result()
            score = f"test Dice {found['test']['image_dice']:.4f}"
            name = f"{found['row']}, rate {found['rate']:g}, seed {found['seed']}"
            print(f"{number}/{len(futures)} {name}: {score}, {found['training_seconds']:.0f} s", flush=True)
    if failures:
        raise SystemExit("\n".join(["Trainings that failed (row, rate, seed):", *failures]))


def best_rate(row: str, runs: list[dict]) -> float:
    """The row's rate with the best mean validation Dice over the seeds of the sweep."""
    rates = ROWS[row][2]
    of_rate = {
        rate: [r for r in runs if r["row"] == row and r["rate"] == rate and r["seed"] in SWEEP] for rate in rates
    }
    missing = [rate for rate, found in of_rate.items() if len(found) < len(SWEEP)]
    if missing:
        raise ValueError(f"row {row} is not recorded at the rates {missing}: run python -m benchmarks.ablation.")
    return max(rates, key=lambda rate: sum(r["last_epoch"]["val_image_dice"] for r in of_rate[rate]))


def final(row: str, runs: list[dict]) -> list[dict]:
    """The row's runs at its best rate with seeds that the choice has not seen."""
    rate = best_rate(row, runs)
    return [r for r in runs if r["row"] == row and r["rate"] == rate and r["seed"] not in SWEEP]


def failed(run: dict) -> bool:
    return run["failure"] is not None or run["test"]["image_dice"] < FAILED


def against_lab(runs: list[dict], lab: list[dict], score=lambda run: run["test"]["image_dice"]) -> dict:
    """`paired` differences to the lab's runs of the same seeds, where neither failed; nothing for less than two."""
    of_seed = {run["seed"]: run for run in lab if not failed(run)}
    pairs = [(of_seed[run["seed"]], run) for run in runs if run["seed"] in of_seed and not failed(run)]
    if len(pairs) < 2 or all(one is other for one, other in pairs):
        return {}
    return paired(*([score(pair[i]) for pair in pairs] for i in (0, 1)))


def scores_table(runs: list[dict]) -> str:
    """One ingredient of the lab's recipe changed at a time, in Markdown."""
    rows = [row for row in ROWS if any(run["row"] == row for run in runs)]
    finals = {row: final(row, runs) for row in rows}
    lines = []
    for row in rows:
        what, _, rates = ROWS[row]
        fine = [run for run in finals[row] if not failed(run)]
        test = [run["test"] for run in fine]
        apart = against_lab(finals[row], finals["lab"])
        best = best_rate(row, runs)
        rate = f"{best:g}" + (" (the largest tried)" if best == max(rates) else "")
        soft = scores.means([run["last_epoch"] for run in fine], ["val_dice_coeff"])
        dice = scores.means(test, ["image_dice"])
        lost = f"{len(finals[row]) - len(fine)} of {len(finals[row])}"
        lines.append([what, rate, *soft, *dice, told(apart) if apart else "", scores.worst(test), lost])
    titles = ["recipe", "rate", "val soft Dice", "test Dice", "less the lab's (95% interval)", "worst", "failed"]
    return _common.table(titles, lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows to run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at once")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    args = parser.parse_args(argv)
    if not args.table:
        rows = args.rows[::-1]  # the slow ones first, so that none is left over for the end
        run_all([(row, rate, seed) for row in rows for rate in ROWS[row][2] for seed in SWEEP], args.jobs)
        runs = _common.rows("ablation")
        run_all([(row, best_rate(row, runs), seed) for row in rows for seed in FRESH], args.jobs)
    print(scores_table(_common.rows("ablation")))


if __name__ == "__main__":
    main()
