"""The README says what was recorded."""

import json
import re
from pathlib import Path

from benchmarks import noise, photographs, scores, summary, time_to_score

ROOT = Path(__file__).resolve().parent.parent


def test_the_tables_are_those_of_the_recorded_runs():
    readme, results = (ROOT / "README.md").read_text(), scores.load()
    assert scores.main_table(results) in readme
    assert scores.ablation_table(results) in readme


def test_the_comparisons_are_those_that_were_recorded():
    readme, recorded = (ROOT / "README.md").read_text(), ROOT / "benchmarks" / "results"
    assert summary.comparisons() in readme
    assert noise.scores_table(json.loads((recorded / "noise.json").read_text())["rows"]) in readme
    assert photographs.scores_table(json.loads((recorded / "photographs.json").read_text())) in readme
    assert time_to_score.scores_table(json.loads((recorded / "time_to_score.json").read_text())["sides"]) in readme


def test_the_memory_study_is_the_recorded_one():
    readme = (ROOT / "README.md").read_text()
    study = json.loads((ROOT / "benchmarks" / "results" / "conv3d_study.json").read_text())
    errors = "median absolute error {median_error:.1%}, largest {largest_error:.1%}".format(**study["summary"])
    assert errors in readme and f"Spearman {study['summary']['spearman']:.3f}" in readme
    rows = [line for line in readme.splitlines() if re.match(r"\| \d+\^3 \|", line)]
    assert rows
    recorded = [describe(row) for row in study["rows"]]
    assert [row for row in rows if row not in recorded] == []


def describe(row):
    shown = [f"{row['input_shape'][0]}^3", row["filters"], f"{row['kernel_size']}^3", row["downsampling"]]
    shown += [row["precision"].removeprefix("mixed_"), f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e9:.1f}"]
    shown += [f"{row['predicted_total_mib']:.0f}"]
    if row["status"] == "measured":
        shown += [f"{row['measured_peak_mib']:.0f}", f"{row['error']:+.0%}"]
    else:
        shown += [f"{row['status']}, not run", ""]
    return "| " + " | ".join(map(str, shown)) + " |"


def test_every_file_and_picture_that_is_named_exists():
    readme = (ROOT / "README.md").read_text()
    names = set(re.findall(r"`([\w/]+\.(?:py|txt))`", readme)) | set(re.findall(r"\]\(([\w/.]+)\)", readme))
    assert names and [name for name in names if not (ROOT / name).exists() and not name.startswith("outputs/")] == []
