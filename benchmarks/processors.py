"""The same on another processor: what becomes of a training's bits and scores, and of the memory that is predicted?

    python -m benchmarks.processors                     # a quarter of an hour on 2 cores
    python -m benchmarks.processors --parts training    # or one of the two

It belongs on another processor than the one that recorded the report's E8 and `memory_study`, with the same versions of
Python and packages. Each part is a row for that processor: E8's trainings, short ones and the default one, beside those
recorded, and the networks of the memory study, measured here.
"""

import argparse
import json

from benchmarks import _common, memory_study
from lab.system import backend
from report import experiments


def there() -> dict:
    """The cells of E8 that the processor of the report has recorded."""
    cells = json.loads((_common.ROOT / "report" / "results.json").read_text())["cells"]
    return {name: cells[f"e8/{name}"] for name in ("elsewhere", "full")}


def training() -> dict:
    """E8's trainings on this processor beside those on the report's."""
    other = there()
    short, full = experiments.in_own_process(experiments.fingerprints, True), experiments.full()
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
