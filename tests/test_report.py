"""The report can be typeset from what is recorded, and its two editions say the same."""

import collections
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import typst

from report import build, experiments

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "report"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of all that the report is typeset from, with its figures drawn anew."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPORT, root / "report", ignore=shutil.ignore_patterns("__pycache__", "*.pdf", "figures"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, root)
    results = json.loads((REPORT / "results.json").read_text())
    for edition in build.EDITIONS:
        build.figures.draw_all(results, edition, root / "report" / "figures" / edition)
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
        text = (REPORT / f"report.{edition}.typ").read_text()
        assert set(re.findall(r"\b0[.,]\d{3,}", text)) <= {"0.9937", "0.9875", "0,9937", "0,9875"}


def test_every_cell_is_recorded_with_its_circumstances():
    results = build.load()
    assert build.missing_cells(results, experiments.EXPERIMENTS) == []
    for cell in results["cells"].values():
        assert cell["wall_seconds"] >= 0
        assert {"python.version", "device", "mlflow.source.git.commit"} <= cell["provenance"].keys()


def surface_by_hand(mask):
    """Pixels of the mask with one of the four neighbours outside it or outside the image."""
    padded = np.pad(mask, 1)
    return [
        (i, j)
        for i, j in np.argwhere(mask)
        if not all(padded[i + 1 + di, j + 1 + dj] for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0)))
    ]


@pytest.mark.parametrize("seed", range(8))
def test_surface_distances_equal_a_search_over_all_pairs(seed):
    rng = np.random.default_rng(seed)
    true, pred = (rng.random((2, 11, 14)) < rng.uniform(0.1, 0.9)).astype(bool)
    one, other = (np.array(surface_by_hand(mask), float) for mask in (true, pred))
    distances = np.sqrt(((one[:, None] - other[None]) ** 2).sum(axis=-1))
    ways = distances.min(axis=1), distances.min(axis=0)
    mean, hausdorff95 = experiments.surface_distances(true, pred)
    assert mean == pytest.approx((ways[0].sum() + ways[1].sum()) / (len(one) + len(other)))
    assert hausdorff95 == pytest.approx(max(np.percentile(way, 95) for way in ways))


def test_surface_distances_of_equal_masks_are_zero_and_of_an_empty_one_undefined():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:5] = True
    assert experiments.surface_distances(mask, mask) == (0.0, 0.0)
    assert experiments.surface_distances(mask, np.zeros_like(mask)) is None


def test_calibration_of_known_probabilities():
    masks = np.array([1, 1, 0, 0], float)
    found = experiments.calibration(masks, np.array([0.5, 0.5, 0.5, 0.5]))
    assert found == {"brier": 0.25, "ece": 0.0, "confident": 0.0}  # half of them are foreground: well calibrated
    found = experiments.calibration(masks, np.array([1, 1, 1, 0], float))
    assert found == {"brier": 0.25, "ece": 0.25, "confident": 1.0}
