"""The same on another processor: what becomes of a training's bits and scores, and of the memory that is predicted?

    python -m benchmarks.processors                     # a quarter of an hour on 2 cores
    python -m benchmarks.processors --parts training    # or one of the two

It belongs on another processor than the one that recorded the report's E8 and `memory_study`, with the same versions of
Python and packages. Each part is a row for that processor: E8's trainings, short ones and the default one, beside those
recorded, and the networks of the memory study, measured here.
"""

import argparse
import json
import statistics

from benchmarks import _common, memory_study, repeats
from benchmarks.intervals import wilson
from lab.model.memory import MARGIN
from lab.system import backend


def there() -> dict:
    """The cells of E8 that the processor of the report has recorded."""
    cells = json.loads((_common.ROOT / "report" / "results.json").read_text())["cells"]
    return {name: cells[f"e8/{name}"] for name in ("elsewhere", "full")}


def training() -> dict:
    """E8's trainings on this processor beside those on the report's."""
    other = there()
    short, full = repeats.in_own_process(repeats.fingerprints, True), repeats.full()
    return {
        "short": compare(other["elsewhere"]["here"], short),
        "full": {**compare(other["full"]["runs"], full["runs"]), "repeated": full["same"]},
        "precision": full["precision"],
        "against": {
            "device": other["full"]["provenance"]["device"],
            "commits": sorted({cell["provenance"]["mlflow.source.git.commit"][:7] for cell in other.values()}),
        },
    }


def compare(those: list[dict], these: list[dict]) -> dict:
    """Of pairs of trainings: how many ended with the same weights, both Dice, and their largest difference."""
    pairs = list(zip(those, these, strict=True))
    return {
        "same_bits": sum(a["weights"] == b["weights"] for a, b in pairs),
        "pairs": len(pairs),
        "dice": [b["dice"] for _, b in pairs],
        "dice_there": [a["dice"] for a, _ in pairs],
        "largest_difference": max(abs(a["dice"] - b["dice"]) for a, b in pairs),
    }


def memory() -> dict:
    """The memory study's networks on this processor."""
    grid, rows = memory_study.study_grid(), []
    for i, config in enumerate(grid, 1):
        rows.append(memory_study.study_row(config))
        print(f"{i:3}/{len(grid)} {memory_study.describe_row(rows[-1])}", flush=True)
    more = {"unet": memory_study.unet_rows(), "without_onednn": memory_study.rows_without_onednn()}
    return {"summary": memory_study.summarize(rows), "rows": rows, **more}


PARTS = {"training": training, "memory": memory}


def key(row: dict) -> tuple:
    """Which rows are the same measurement, and their order."""
    return list(PARTS).index(row["what"]), row["machine"]["family_model"]


# What the report cites


def compared(found: dict) -> dict:
    """Of E8's trainings and of the memory study on another processor, how they compare with those recorded first."""
    rows = {row["what"]: row for row in found["rows"]}
    training, study = rows["training"], rows["memory"]
    full = training["full"]
    return {
        "here": _plain(training["against"]["device"]),
        "there": _plain(training["provenance"]["device"]),
        "same": wilson(training["short"]["same_bits"], training["short"]["pairs"]),
        "largest_difference": training["short"]["largest_difference"],
        "full": {"here": full["dice_there"][0], "there": full["dice"][0], "repeated": full["repeated"]},
        "memory": {**errors_of(study["rows"]), "largest_factor": largest_factor(study), "margin": MARGIN},
    }


def errors_of(rows: list[dict]) -> dict:
    """By precision, of the networks that were measured: their number, mean, median absolute and largest error."""
    found = {}
    for precision in ("float32", "mixed_bfloat16"):
        some = [row["error"] for row in rows if row["status"] == "measured" and row["precision"] == precision]
        sizes = [abs(error) for error in some]
        found[precision.removeprefix("mixed_")] = {
            "num_measured": len(some),
            "mean_error": statistics.mean(some),
            "median_error": statistics.median(sizes),
            "largest_error": max(sizes),
        }
    return found


def largest_factor(study: dict) -> float:
    """Measured by predicted memory of a training step with oneDNN, at most."""
    rows = [row for row in study["rows"] + study["unet"] if row["status"] == "measured"]
    return max(row["measured_peak_mib"] / row["predicted_total_mib"] for row in rows)


def _plain(device: str) -> str:
    """A processor's name without its marks and its cores: "Intel(R) Xeon(R) Processor, 2 cores" is an Intel Xeon."""
    return device.split(",")[0].replace("(R)", "").removesuffix(" Processor")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do again")
    args = parser.parse_args(argv)
    here, before = (
        machine["family_model"] for machine in (backend.processor(), _common.read("conv3d_study")["machine"])
    )
    if here == before:
        raise SystemExit(
            f"processors.py: this is the processor of the records, family/model {here}; run it on another."
        )
    for part in args.parts:
        _common.record("processors", {"what": part, **PARTS[part]()}, key)


if __name__ == "__main__":
    main()
