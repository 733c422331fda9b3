"""The benchmarks' small helpers by arithmetic, their commands, their records."""

import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

import unet_segmentation as unet
from benchmarks import _common, gpu, memory, scores, time_to_score, train_step

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def test_sides_are_called_in_turns_and_the_first_round_is_not_counted():
    calls = []
    times = _common.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(taken) for taken in times.values()] == [2, 2]


def test_ratio_is_the_median_of_the_rounds_own_ratios():
    assert _common.ratio([2.0, 9.0, 8.0], [1.0, 3.0, 4.0]) == Fraction(2, 1)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Records go to a folder of their own."""
    monkeypatch.setattr(_common, "RESULTS", tmp_path)
    return tmp_path


def test_a_row_takes_the_place_of_the_one_with_its_key_and_rows_are_sorted(results):
    def key(row):
        return row["side"], row["seed"]

    for side, seed, value in [("b", 0, 1), ("a", 1, 2), ("a", 0, 3), ("b", 0, 4)]:
        _common.record("some", {"side": side, "seed": seed, "value": value}, key)
    rows = _common.rows("some")
    assert [(row["side"], row["seed"], row["value"]) for row in rows] == [("a", 0, 3), ("a", 1, 2), ("b", 0, 4)]
    assert all(row.keys() >= CIRCUMSTANCES for row in rows)
    assert [path.name for path in results.iterdir()] == ["some.json"]


def test_what_a_row_says_of_its_own_circumstances_stays(results):
    _common.record("some", {"seed": 0, "command": "python unet_segmentation.py"}, lambda row: (row["seed"],))
    assert _common.rows("some")[0]["command"] == "python unet_segmentation.py"


def test_a_timing_beside_other_programs_is_not_recorded(results, capsys):
    _common.write("some", {"seconds": 1.0}, others=0.5)
    _common.record("rows", {"seed": 0}, lambda row: (row["seed"],), others=0.5)
    assert list(results.iterdir()) == [] and "other programs had 50%" in capsys.readouterr().out
    _common.write("some", {"seconds": 1.0}, others=0.05)
    assert _common.read("some")["others_busy"] == 0.05


COMMANDS = {
    **{f"scores: {row}": flags for row, (flags, _) in scores.ROWS.items()},
    **{f"time_to_score: {side}": flags for side, flags in time_to_score.FLAGS.items()},
    "time_to_score: monai": time_to_score.DATA,
    "memory": memory.SMALL,
    **{f"gpu: {flags}": flags for plan in (gpu.CARD, gpu.PROCESSOR) for flags in (plan["flags"], plan["large"])},
}


@pytest.mark.parametrize("flags", COMMANDS.values(), ids=COMMANDS)
def test_every_training_that_is_run_is_one_that_the_script_understands(flags):
    unet.parse_args([*flags.split(), "--seed", "1"])


def test_the_ablation_changes_what_its_rows_say():
    lab = vars(unet.parse_args([]))
    changed = {"full": "train_size", "adam": "optimizer", "constant": "schedule", "bce": "loss", "more": "train_images"}
    for row, flag in {**changed, "fixed": "fixed_images", "dice": "loss"}.items():
        assert vars(unet.parse_args(scores.ROWS[row][0].split()))[flag] != lab[flag]


@pytest.mark.parametrize("ndim", train_step.WORK)
def test_both_sides_have_as_many_parameters_and_answer_every_call(ndim):
    torch = pytest.importorskip("torch")
    work = {**train_step.OPTIONS, "shape": (16,) * ndim + (1,), "filters": 2, "batches": (1, 2), "matrix": 64}
    sides = train_step.keras_side(work), train_step.torch_side(work, "channels last")
    assert sides[0]["parameters"] == sides[1]["parameters"]
    for side in sides:
        assert list(side["calls"]) == ["train 1", "train 2", "predict 2", "matrix"]
        for call in side["calls"].values():
            call(2)
    assert train_step.torch_network(ndim, 2)(torch.zeros(1, 1, *[16] * ndim)).shape == (1, 1, *[16] * ndim)


def test_without_a_graphics_card_its_benchmark_says_so_in_one_sentence():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, env={**os.environ, **NO_CARD})
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and re.search("no graphics card|JAX and PyTorch are needed", done.stderr)


def test_importing_the_benchmarks_and_the_report_only_defines():
    names = [f"benchmarks.{path.stem}" for path in FOLDER.glob("*.py")] + ["report.build"]
    code = (
        "import importlib, os, sys; before = dict(os.environ)\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "assert dict(os.environ) == before\n"
        "print(*{'keras', 'matplotlib', 'mlflow', 'torch', 'jax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


NO_CARD = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
CIRCUMSTANCES = {"date", "command", "machine", "versions", "provenance"}
OLD = ("conv3d_study", "noise", "scores")  # recorded before each row had circumstances of its own
SHAPES = {  # by record: what each of its rows has
    "conv3d_study": {"input_shape", "filters", "kernel_size", "downsampling", "precision", "predicted_total_mib"},
    "faults": {"attack", "outcomes"},
    "generator": {"images", "size", "lab_against_noise", "monai_against_lab"},
    "gpu": {"side", "shape", "images_per_second", "values_per_second", "share_of_matrix_product"},
    "memory": {"images", "new_every_epoch_mib", "fixed_mib"},
    "metrics_speed": {"score", "side", "milliseconds", "it_against_lab_tensors"},
    "noise": {"noise", "seed", "threshold", "network", "fit"},
    "photographs": set(),
    "prediction": {"precision", "side", "images_per_second"},
    "scores": {"row", "seed", "command", "date", "test", "baselines", "last_epoch", "failure", "val_dice_coeff"},
    "shared_server": set(),
    "tiles": set(),
    "time_to_score": {"side", "seed", "target", "reached_after", "epochs", "date", "command", "machine", "provenance"},
    "train_step": {"precision", "batch", "side", "images_per_second", "lab_against_it", "share_of_matrix_product"},
}
SHAPES["train_step_3d"] = SHAPES["train_step"]
RECORDS = sorted(path.stem for path in (FOLDER / "results").glob("*.json"))


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_has_the_shape_that_its_readers_expect(name):
    found = _common.read(name)
    if name in SHAPES:
        assert all(SHAPES[name] <= row.keys() for row in found.get("rows", []))
        assert bool(SHAPES[name]) == ("rows" in found)
    if name not in OLD:
        parts = [found] if "machine" in found else found["rows"]
        assert parts and all(part.keys() >= CIRCUMSTANCES and part["machine"]["cores"] for part in parts)


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_was_made_by_a_commit_that_holds_the_file_that_made_it(name):
    commits = set(re.findall(r"\b[0-9a-f]{40}\b", (FOLDER / "results" / f"{name}.json").read_text()))
    assert commits
    if not (FOLDER.parent / ".git").exists() or git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("needs the history of the repository")
    made_by = {"conv3d_study": ("benchmarks/memory_study.py", "conv3d_analysis.py")}
    files = made_by.get(name, (f"benchmarks/{name.removesuffix('_3d')}.py",))
    for commit in commits:
        assert any(git("cat-file", "-e", f"{commit}:{file}").returncode == 0 for file in files), commit


FROM_CHANGED_TREES = ("memory", "metrics_speed", "photographs", "prediction", "tiles", "train_step")  # to be made anew


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(strict=True) if name in FROM_CHANGED_TREES else ())
        for name in RECORDS
    ],
)
def test_every_record_comes_from_a_tree_without_changes(name):
    found = _common.read(name)
    parts = [part["provenance"] for part in [found, *found.get("rows", [])] if "provenance" in part]
    assert parts and {provenance["git.dirty"] for provenance in parts} == {"false"}


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True)
