"""README.md and benchmarks/README.md say what was recorded, and name what is there."""

import ast
import functools
import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import data_synth
from benchmarks import _common, summary
from lab.data import grey_values
from lab.model import model_file, prediction

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in summary.PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_tables_and_figures_are_those_of_the_records(page):
    assert summary.fill(PAGES[page]) == PAGES[page], "python -m benchmarks.summary --write"


def test_every_piece_of_the_records_stands_on_a_page():
    marks = {mark for page in PAGES.values() for mark in re.findall(r"<!-- ([^\n]+?) -->", page)}
    assert marks == set(summary.PIECES)


def test_every_record_and_every_benchmark_is_in_the_index():
    recorded = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert recorded <= set(summary.QUESTIONS)
    files = [path for path in (ROOT / "benchmarks").glob("*.py") if "def main(" in path.read_text(encoding="utf-8")]
    told = " ".join([*summary.QUESTIONS, *summary.QUESTIONS.values()])
    assert [path.stem for path in files if path.stem not in told] == ["summary"], "add it to summary.QUESTIONS"


def test_a_piece_ends_at_the_next_empty_line_and_an_unknown_one_is_refused(monkeypatch):
    monkeypatch.setitem(summary.PIECES, "sum", (None, lambda found: "1 + 2"))
    assert summary.fill("before\n<!-- sum -->\nold\nold\n\nafter\n") == "before\n<!-- sum -->\n1 + 2\n\nafter\n"
    assert summary.fill("<!-- sum -->\n\nafter\n") == "<!-- sum -->\n1 + 2\n\nafter\n"
    with pytest.raises(ValueError, match="no piece that is known"):
        summary.fill("<!-- product -->\n")


def test_what_is_not_recorded_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setattr(_common, "RESULTS", tmp_path)
    assert summary.piece("noise") == "Not recorded yet."
    assert "| `noise` | how far" in summary.index() and "| not yet |  |  |" in summary.index()


def test_what_changed_since_a_record_is_looked_for_in_what_made_it(monkeypatch):
    monkeypatch.setattr(ast, "parse", functools.cache(ast.parse))  # most records are made by the same files
    monkeypatch.setattr(ast, "walk", functools.cache(lambda tree, walk=ast.walk: [*walk(tree)]))
    monkeypatch.setattr(summary, "code_of", functools.cache(summary.code_of))
    monkeypatch.setattr(summary, "changed_code", lambda commit, code: code if len(commit) == 40 else [])
    found = summary.changes_since()
    assert found.keys() == {name for name in summary.QUESTIONS if _common.read(name)}
    assert all((ROOT / file).is_file() for files in found.values() for file in files)
    trained, drawn, tiled = found["noise"], found["generator"], found["tiles"]
    # The own file, what it imports, what that imports in a function, what is run as a script, and no more.
    assert {"benchmarks/noise.py", "benchmarks/scores.py", "unet_segmentation.py", "lab/model/muon.py"} < trained
    assert {"data_synth.py", "benchmarks/generator.py"} < drawn and "unet_segmentation.py" not in drawn
    assert {"predict.py", "lab/data/scans.py"} < tiled and "predict.py" not in trained
    monkeypatch.setattr(summary, "changed_code", lambda commit, code: [])
    assert summary.changes_since() == {}


def test_comparisons_of_every_call_and_size_are_told():
    def rows(shape, sides, **more):
        row = {"precision": "float32", "shape": shape, "batch": 2, "share_of_matrix_product": 0.5, **more}
        own = {"Keras, TensorFlow": 1.0, "Keras, JAX": 1.0}
        return [
            {**row, "call": call, "side": side, "images_per_second": 10.0, "lab_against_it": own.get(side, 1.25)}
            for call in ("train", "predict")
            for side in sides
        ]

    found = {"rows": rows([48, 48, 48, 1], ("Keras, TensorFlow", "PyTorch", "PyTorch, channels first"))}
    told = dict(summary.steps(found, "volumes"))
    (text,) = [told["volumes, float32, batch 2"]] if len(told) == 1 else []
    calls = text.split(". ")
    assert [call.split(" 10.0 volumes/s, ")[0] for call in calls] == ["training step", "prediction"]
    assert all("1.25 times PyTorch, channels last, 1.25 times channels first" in call for call in calls)
    found = {"rows": rows([64, 64, 1], ("Keras, JAX", "PyTorch"), what="step", values_per_second=3e6)}
    assert summary.gpu(found).splitlines()[2:] == ["| 64x64 | 2 | 3 | 10 | 1.25 | 3 | 10 | 1.25 |"]


def test_how_soon_a_card_has_the_score_is_told_from_its_epochs():
    def training(seed, *seconds):
        epochs = [{"seconds": taken} for taken in seconds]
        return {"what": "training", "seed": seed, "card": "H100", "reached_after": seconds[1], "epochs": epochs}

    step = {"what": "step", "shape": [64, 64, 1]}
    told = summary.gpu_training({"rows": [step, step, training(0, 50, 52, 54.5), training(1, 20, 23, 26)]})
    assert told.startswith("On a graphics card, H100,") and told.endswith("1 of 6 sizes are recorded:")
    assert "after 52 s, with nothing compiled, and after 23 s" in told
    assert "The 2 epochs after the first take 4.5 to 6.0 s" in told


def test_mlflows_pages_are_shown_by_one_process_without_its_workers_for_jobs():
    lines = [line for line in PAGES["README.md"].splitlines() if line.startswith("    ") and "mlflow ui" in line]
    assert lines
    assert all("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in line and "--workers 1" in line for line in lines)


def test_both_pages_stay_readable_in_one_go():
    assert len(PAGES["README.md"].splitlines()) <= 150
    assert len(PAGES["benchmarks/README.md"].splitlines()) <= 290


def test_the_shown_rows_of_the_memory_study_are_the_recorded_ones():
    """By another way than the page's: every cell is looked for in the row of the file."""
    found = json.loads((ROOT / "benchmarks" / "results" / "conv3d_study.json").read_text())
    shown = [line for line in PAGES["benchmarks/README.md"].splitlines() if re.match(r"\| \d+\^3 \|", line)]
    assert len(shown) == len(summary.STUDY)
    recorded = [describe(row) for row in found["rows"]]
    assert [row for row in shown if row not in recorded] == []


def describe(row):
    shown = [f"{row['input_shape'][0]}^3", row["filters"], f"{row['kernel_size']}^3", row["downsampling"]]
    shown += [row["precision"].removeprefix("mixed_"), f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e9:.1f}"]
    shown += [f"{row['predicted_total_mib']:.0f}"]
    if row["status"] == "measured":
        shown += [f"{row['measured_peak_mib']:.0f}", f"{row['error']:+.0%}"]
    else:
        shown += [f"{row['status']}, not run", ""]
    return "| " + " | ".join(map(str, shown)) + " |"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_picture_and_module_that_is_named_exists(page):
    text, folder = PAGES[page], (ROOT / page).parent
    names = re.findall(r"`([\w./]+\.(?:py|txt|json|yaml|yml|typ|ipynb))`", text)
    missing = [name for name in names if not (ROOT / name).exists() and "/" in name and not name.startswith("outputs/")]
    missing += [link for link in re.findall(r"\]\(([\w./]+)\)", text) if not (folder / link).exists()]
    missing += [name for name in re.findall(r"python -m ([\w.]+)", text) if not find_module(name)]
    assert names and missing == []


def find_module(name):
    return name in ("venv", "pytest", "benchmarks.") or importlib.util.find_spec(name)


def commands(page):
    """The lines that run a script of ours: (script, flags)."""
    found = re.findall(r"python (\w+\.py)((?: [^\n`&|>#]+)?)", PAGES[page])
    return [(script, shlex.split(flags)) for script, flags in found]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_training_parses(page):
    import unet_segmentation as unet

    found = [flags for script, flags in commands(page) if script == "unet_segmentation.py"]
    if page == "README.md":
        assert found
    for flags in found:
        unet.parse_args(flags)


def program(title, page="README.md"):
    """The lines of Python under a title of a page."""
    section = (ROOT / page).read_text(encoding="utf-8").partition(f"# {title}\n")[2].partition("\n#")[0]
    lines = [line[4:] for line in section.splitlines() if not line.strip() or line.startswith("    ")]
    return "\n".join(line for line in lines if not line.startswith(".venv/")).strip()


def save_network(path, settings):
    import unet_segmentation

    network = unet_segmentation.build_unet((None, None, 1), filters=2, depth=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    seen = dict.fromkeys(("1%", "50%", "99%"), [0.0, 1.0])
    model_file.save_model(network, path, {**settings, "size": [32, 32], "seen": seen})
    return path


def test_the_program_from_python_trains_and_predicts(tmp_path, monkeypatch):
    save_network(tmp_path / "outputs" / "unet" / "model.keras", grey_values.ABSOLUTE)
    monkeypatch.chdir(tmp_path)
    assert len(program("From Python").splitlines()) <= 10
    found = {}
    exec(program("From Python"), found)
    assert found["labels"].shape == (64, 64) and found["probs"].shape == (64, 64, 1)
    np.testing.assert_array_equal(found["labels"], found["probs"][..., 0] >= 0.5)
    assert {"loss", "dice_coeff", "iou_metric"} <= found["model"].history.history.keys()


@pytest.mark.parametrize("window", [None, [50, 180], "percentiles"])
def test_the_program_for_onnx_gives_the_probabilities_that_the_lab_gives(window, tmp_path, monkeypatch):
    for name in ("tf2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(name, reason="pip install -r requirements-onnx.txt")
    from lab.model import export

    settings = grey_values.STRETCHED if window == "percentiles" else {**grey_values.ABSOLUTE, "window": window}
    path = save_network(tmp_path / "model.keras", settings)
    export.export(path, tmp_path / "unet.onnx")
    image = data_synth.make_circles(1, size=(53, 75), contrast=0.7, noise=0.05)[0][0]
    image = image if window is None else np.round(255 * image).astype(np.uint8)
    np.save(tmp_path / "image.npy", image)
    monkeypatch.chdir(tmp_path)
    lines = program("ONNX", "CONTRIBUTING.md").splitlines()
    imported = re.findall("^import (.+?)(?: as .+)?$", "\n".join(lines), re.MULTILINE)
    assert len(lines) <= 12 and imported == ["json", "numpy", "onnxruntime"]
    found = {}
    exec(program("ONNX", "CONTRIBUTING.md"), found)
    _, probs = prediction.predict(prediction.load_models([path]), image)
    assert found["probs"].shape == probs.shape and np.ptp(probs) > 0.01
    np.testing.assert_allclose(found["probs"], probs, atol=1e-5)
