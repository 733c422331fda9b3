"""The README says what was recorded."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import scores  # noqa: E402


def test_the_tables_are_those_of_the_recorded_runs():
    readme, results = (ROOT / "README.md").read_text(), scores.load()
    assert scores.main_table(results) in readme
    assert scores.ablation_table(results) in readme


def test_every_file_and_picture_that_is_named_exists():
    import re

    readme = (ROOT / "README.md").read_text()
    names = set(re.findall(r"`([\w/]+\.(?:py|txt|json|png))`", readme)) | set(re.findall(r"\]\(([\w/.]+)\)", readme))
    assert names and [name for name in names if not (ROOT / name).exists() and not name.startswith("outputs/")] == []
