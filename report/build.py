"""Build the lab report: run what is not recorded yet, draw the figures, typeset both editions and their answers.

    python -m report.build                  # all of it; seconds where everything is recorded
    python -m report.build --only e2        # run one experiment (again from its missing cells), and nothing else
    python -m report.build --list           # what there is, what is recorded, what it took

Every cell of an experiment goes to report/results.json as soon as it is done, so an interrupted build goes on where it
stopped. To run a cell again, delete it from that file; a line at the end says how many were recorded by other code than
what lies here. No number is typed into the text: Typst reads results.json, and a missing key or a reference to nothing
stops the build. What report/records.py reads of benchmarks/results may be missing: its paragraph is left out then.
"""

import argparse
import json
import os
import time
from pathlib import Path

from benchmarks import _common
from lab import command_line
from lab.system import backend
from lab.system.output_files import written_aside
from report import experiments, records

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results.json"
EDITIONS = ("en", "fr")
PARTS = ("report", "answers")


def load() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cells": {}}


def save(results: dict) -> None:
    """Write results.json; an interruption leaves the old file or the new one."""
    with written_aside(HERE) as aside:
        (aside / RESULTS.name).write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def missing_cells(results: dict, names) -> list[tuple[str, str]]:
    """(experiment, cell) of what is not recorded."""
    return [
        (name, cell)
        for name in names
        for cell in experiments.EXPERIMENTS[name][1]()
        if f"{name}/{cell}" not in results["cells"]
    ]


def of_other_code(results: dict) -> dict[str, list[str]]:
    """Recorded cells whose commit differs from what lies here in code that may have made them, and in which files."""
    commits = {key: cell["provenance"].get("mlflow.source.git.commit", "") for key, cell in results["cells"].items()}
    code = _common.code_of("report/experiments.py")
    changed = {commit: _common.changed_code(commit, code) for commit in set(commits.values())}
    return {key: changed[commit] for key, commit in commits.items() if changed[commit]}


def run_missing(names) -> None:
    """Run the cells that are not recorded, each recorded at once with its circumstances."""
    for record, reader in experiments.RECORDS.items():
        if reader in names:
            experiments.benchmark(record)  # what is missing is said before the work, not after it
    missing = missing_cells(load(), names)
    if missing:
        backend.import_keras()
    for position, (name, cell) in enumerate(missing):
        left = sum(experiments.EXPERIMENTS[rest][3] for rest, _ in missing[position:])
        print(f"[{position + 1}/{len(missing)}] {name}: {cell}; about {left / 60:.0f} minutes left", flush=True)
        function, arguments = experiments.EXPERIMENTS[name][1]()[cell]
        started = time.perf_counter()
        found = function(*arguments)
        found |= {"wall_seconds": time.perf_counter() - started, "provenance": _common.provenance()}
        results = load()
        results["cells"][f"{name}/{cell}"] = found
        save(results)


def summarize(names) -> dict:
    """Bring the summaries of results.json up to date; return all of it."""
    results = load()
    for name in names:
        cells = {key.split("/", 1)[1]: cell for key, cell in results["cells"].items() if key.startswith(f"{name}/")}
        results[name] = experiments.EXPERIMENTS[name][2](cells)
    found = list(results["cells"].values())
    some = results["cells"]["e1/network"]
    results["build"] = {
        "cells": len(found),
        "minutes": sum(cell["wall_seconds"] for cell in found) / 60,
        **made_at(found),
        # Typst takes a point in a key for the next level.
        "made_with": {key.replace(".", "_"): value for key, value in some["provenance"].items()},
    }
    results["records"], results["compute"] = records.read_all(), records.compute()
    save(results)
    return results


def made_at(cells: list[dict]) -> dict:
    """The commits at which the cells were recorded, and the newest day of a record: the stamp of the first page.

    Not the commit of the page, which would have to be set again after each commit of its own.
    """
    commits = {cell["provenance"]["mlflow.source.git.commit"][:7] for cell in cells}
    found = [_common.read(path.stem) for path in _common.RESULTS.glob("*.json")]
    days = {part["date"] for record in found for part in (record, *record.get("rows", ())) if "date" in part}
    return {"commit": ", ".join(sorted(commits)), "day": max(days)}


def typeset(edition: str, target: Path, root: Path = ROOT, part: str = "report") -> None:
    """Typeset one edition, or the answers to its questions, with Typst's fonts only: the same pages everywhere."""
    import typst

    typst.compile(
        str(root / "report" / f"report.{edition}.typ"),
        output=str(target),
        root=str(root),
        ignore_system_fonts=True,
        timestamp=0,
        sys_inputs={"part": part},
    )


def print_list() -> None:
    results = load()
    for name, (title, cells, _, _) in experiments.EXPERIMENTS.items():
        done = [results["cells"][f"{name}/{cell}"] for cell in cells() if f"{name}/{cell}" in results["cells"]]
        seconds = sum(cell["wall_seconds"] for cell in done)
        print(f"{name}  {title:26} {len(done):3} of {len(cells()):3} cells recorded, {seconds:6.0f} s")
    print_age(results)


def print_age(results: dict) -> None:
    """Say how many cells the code that lies here has not recorded."""
    others = of_other_code(results)
    if others:
        names = ", ".join(sorted({key.split("/")[0] for key in others}))
        files = ", ".join(sorted({file for changed in others.values() for file in changed}))
        print(f"{len(others)} of {len(results['cells'])} cells ({names}) were recorded by other code: {files}.")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="NAME", choices=experiments.EXPERIMENTS, help="run this experiment alone")
    parser.add_argument("--list", action="store_true", help="list the experiments and run nothing")
    return parser.parse_args(argv)


@command_line.script
def main(argv=None) -> None:
    args = parse_args(argv)
    if args.list:
        print_list()
        return
    names = [args.only] if args.only else list(experiments.EXPERIMENTS)
    os.chdir(ROOT)  # where the scripts and their MLflow store are at home
    run_missing(names)
    results = summarize(names)
    if args.only:
        return
    from report import figures  # Matplotlib takes a while to import

    for edition in EDITIONS:
        figures.draw_all(results, edition, HERE / "figures" / edition)
        for part in PARTS:
            typeset(edition, HERE / f"{part}.{edition}.pdf", part=part)
            print(HERE / f"{part}.{edition}.pdf")
    print_age(results)


if __name__ == "__main__":
    main()
