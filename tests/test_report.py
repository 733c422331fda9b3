"""The report can be typeset from what is recorded, and its two editions say the same."""

import collections
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import typst

from report import build, experiments, figures

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "report"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of all that the report is typeset from, with its figures drawn anew."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPORT, root / "report", ignore=shutil.ignore_patterns("__pycache__", "*.pdf", "figures"))
    for script in [*ROOT.glob("*.py"), *ROOT.glob("lab/*.py")]:  # of which the report lists functions
        (root / script.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(script, root / script.relative_to(ROOT))
    results = json.loads((REPORT / "results.json").read_text())
    for edition in build.EDITIONS:
        figures.draw_all(results, edition, root / "report" / "figures" / edition)
    return root


def ask(root, edition, selector):
    """What of an edition a selector of Typst finds."""
    options = {"root": str(root), "ignore_system_fonts": True}
    return json.loads(typst.query(str(root / "report" / f"report.{edition}.typ"), selector, **options))


@pytest.mark.parametrize("edition", build.EDITIONS)
def test_both_editions_are_typeset_from_the_recorded_results(copy, tmp_path, edition):
    build.typeset(edition, tmp_path / "report.pdf", copy)
    pages = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes()))
    assert 10 <= pages <= 16


@pytest.mark.parametrize("edition", build.EDITIONS)
def test_the_committed_figures_are_those_of_the_recorded_results(copy, edition):
    drawn = {path.name: path.read_bytes() for path in (copy / "report" / "figures" / edition).iterdir()}
    committed = {path.name: path.read_bytes() for path in (REPORT / "figures" / edition).iterdir()}
    assert drawn.keys() == committed.keys()
    # Not byte for byte: another release of Matplotlib or zlib may write the same picture otherwise.
    assert all(abs(len(drawn[name]) - len(committed[name])) < 0.1 * len(drawn[name]) for name in drawn)


def test_the_editions_have_the_same_sections_figures_tables_and_citations(copy):
    english, french = (
        {
            "levels": [heading["level"] for heading in ask(copy, edition, "heading")],
            "figures": [(figure["kind"], figure.get("label")) for figure in ask(copy, edition, "figure")],
            "keys": collections.Counter(mark["value"] for mark in ask(copy, edition, "<cited>")),
            "references": sorted(mark["target"] for mark in ask(copy, edition, "ref")),
        }
        for edition in build.EDITIONS
    )
    assert english == french
    assert len(english["figures"]) > 15 and len(english["keys"]) > 100


def test_every_cited_key_is_a_recorded_number_or_word(copy):
    results = json.loads((REPORT / "results.json").read_text())
    for mark in ask(copy, "en", "<cited>"):
        value = results
        for part in mark["value"].split("."):
            value = value[int(part) if isinstance(value, list) else part]
        assert value is None or isinstance(value, (int, float, str, dict)), mark["value"]


@pytest.mark.parametrize(
    "text, message",
    [('#num("e1.no.such.key")', "no"), ("@fig-nowhere", "fig-nowhere"), ('#listing("metrics.py", "gone")', "gone")],
)
def test_a_missing_key_reference_or_function_stops_the_build(copy, text, message):
    (copy / "report" / "report.broken.typ").write_text(f'#import "common.typ": *\n{text}\n')
    with pytest.raises(typst.TypstError, match=message):
        build.typeset("broken", copy / "broken.pdf", copy)


def test_no_measured_number_is_typed_into_the_text():
    """Scores have three decimals or more: none of them stands in the source, but the original's two."""
    for edition in build.EDITIONS:
        text = (REPORT / f"report.{edition}.typ").read_text(encoding="utf-8")
        assert set(re.findall(r"\b0[.,]\d{3,}", text)) <= {"0.9937", "0.9875", "0,9937", "0,9875"}


def test_every_cell_is_recorded_with_its_circumstances():
    results = build.load()
    assert build.missing_cells(results, experiments.EXPERIMENTS) == []
    for cell in results["cells"].values():
        assert cell["wall_seconds"] >= 0
        assert {"python.version", "device", "mlflow.source.git.commit"} <= cell["provenance"].keys()


def test_a_record_that_is_missing_is_named_with_its_command_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments._common, "RESULTS", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        build.main(["--only", "e7"])
    assert stopped.value.code == 2 and "python -m benchmarks.memory_study records it" in capsys.readouterr().err


def test_a_cell_is_of_other_code_where_a_file_that_may_have_made_it_has_changed(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "lab").mkdir()
    for file in ("metrics.py", "lab/training.py", "README.md"):
        (tmp_path / file).write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    results = {"cells": {"e2/a": {"provenance": {"mlflow.source.git.commit": git("rev-parse", "HEAD")}}}}
    (tmp_path / "README.md").write_text("after")
    assert build.of_other_code(results) == []
    (tmp_path / "lab" / "training.py").write_text("after")
    assert build.of_other_code(results) == ["e2/a"]


def test_a_training_of_the_report_is_the_scripts_own(store):
    flags = "--epochs 2 --train-images 8 --test-images 6 --val-images 4 --filters 2 --radius 4 12"
    masks, probs, history, scores, seconds, model = experiments.trained("test", 0, flags)
    assert masks.shape == probs.shape == (6, 64, 64, 1)
    assert history["epoch"] == [1, 2] and {"loss", "val_image_dice"} <= history.keys()
    assert 0 <= scores["image_dice"] <= 1 and seconds > 0
    assert model.count_params() == experiments.unet.build_unet((64, 64, 1), 2).count_params()


@pytest.mark.parametrize("ndim", [2, 3])
def test_slices_and_volumes_are_scored_per_volume(store, monkeypatch, ndim):
    monkeypatch.setattr(experiments, "TRAIN_VOLUMES", 4)
    found = experiments.volume_training(ndim, 1, 2, "low", 0)
    assert 0 <= found["dice_min"] <= found["dice"] <= 1 and found["seconds"] > 0
    assert found["volume_mib"] == found["sample_mib"] * (1 if ndim == 3 else experiments.VOLUME)


def test_calibration_of_known_probabilities():
    masks = np.array([1, 1, 0, 0], float)
    found = experiments.calibration(masks, np.array([0.5, 0.5, 0.5, 0.5]))
    assert found == {"brier": 0.25, "ece": 0.0, "confident": 0.0}  # half of them are foreground: well calibrated
    found = experiments.calibration(masks, np.array([1, 1, 1, 0], float))
    assert found == {"brier": 0.25, "ece": 0.25, "confident": 1.0}
