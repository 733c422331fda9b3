"""The report can be typeset from what is recorded, and its two editions say the same."""

import collections
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import typst
from PIL import Image

import metrics
from benchmarks import _common, ablation, processors, repeats
from benchmarks.deep_structures import RATES, STRUCTURES, best_rates
from benchmarks.intervals import paired, wilson
from lab.model.memory import MARGIN
from report import build, experiments, figures, records, screenshot, textbook

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "report"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of all that the report is typeset from, with its figures drawn anew."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPORT, root / "report", ignore=shutil.ignore_patterns("__pycache__", "*.pdf", "figures"))
    for script in [*ROOT.glob("*.py"), *ROOT.glob("lab/**/*.py")]:  # of which the report lists functions
        (root / script.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(script, root / script.relative_to(ROOT))
    results = json.loads((REPORT / "results.json").read_text())
    for edition in build.EDITIONS:
        figures.draw_all(results, edition, root / "report" / "figures" / edition)
    shutil.copy(REPORT / "figures" / "mlflow.png", root / "report" / "figures")  # a photograph, which is not drawn
    return root


RECORDS = {  # of the shape that benchmarks/ records, for those that may be missing
    "classes": {
        "rows": [
            {"part": "shapes", "side": "lab", "seed": seed, "rate": None, "test": {"image_dice": 0.98 + seed / 100}}
            | {
                "objects": {
                    name: {"objects": 10, "confused": seed, "missed": 0} for name in ("disc", "square", "triangle")
                }
            }
            | {"confusion": [[90 + seed, 10, 0, 0], [0, 30, 0, 0], [3 * seed, 0, 27, 0], [0, 0, 0, 30]]}
            for seed in (0, 1)
        ]
        + [
            {"part": "imbalance", "side": loss, "seed": seed, "rate": 1e-3, "val_dice": 0.9, "never_found": []}
            | {"test": {"image_dice/square": 0.5 + seed / 10}}
            for loss in ("ce", "dice", "dice+ce")
            for seed in (0, 1, 100)
        ]
    },
    "deep_structures": {
        "rows": [
            {"halves": "left-right", "side": side, "budget": budget, "seed": seed, "rate": rate}
            | {"seconds": budget + seed, "dice": dice + seed / 10, "structures": dict.fromkeys(STRUCTURES, dice)}
            for side, budget, rate, dice in [
                ("windows", 0, None, 0.1),
                ("ours", 9, None, 0.8),
                ("absent", 9, None, 0.5),
                ("UNet", 9, 1e-3, 0.6),
                ("DynUNet", 9, 1e-3, 0.7),
            ]
            for seed in (0, 1)
        ]
    },
    "own_data": {
        "rows": [
            {"data": data, "side": side, "split": split, "dice": dice + split / 100} | ({"rate": rate} if rate else {})
            for data in ("coins", "nuclei")
            for side, rate, dice, splits in [
                ("Otsu", None, 0.5, (0, 1, 2)),
                ("ours", None, 0.8, (0, 1, 2)),
                ("no augmentation", None, 0.7, (0, 1, 2)),
                ("UNet", 0.1, 0.9, (0,)),
                ("UNet", 0.01, 0.6, (0, 1, 2)),
                ("DynUNet", 0.01, 0.7, (0, 1, 2)),
            ]
            for split in splits
        ]
    },
    "processors": {
        "rows": [
            {
                "what": "training",
                "against": {"device": "AMD EPYC, 2 cores"},
                "provenance": {"device": "Intel(R) Xeon(R) Processor, 2 cores"},
                "short": {"same_bits": 1, "pairs": 3, "largest_difference": 0.01},
                "full": {"dice": [0.9, 0.9], "dice_there": [0.91, 0.91], "repeated": True},
            },
            {
                "what": "memory",
                "rows": [
                    {"status": "measured", "measured_peak_mib": 125, "predicted_total_mib": 100, "error": -0.2}
                    | {"precision": precision}
                    for precision in ("float32", "mixed_bfloat16")
                ]
                + [{"status": "would not fit", "precision": "float32"}],
                "unet": [{"status": "measured", "measured_peak_mib": 90, "predicted_total_mib": 100}],
            },
        ]
    },
    "commands": {
        "rows": [
            {"name": "volumes", "seed": seed, "seconds": 60, "test": {"image_dice": 0.9 + seed / 100}}
            | {"baselines": {"best threshold": {"image_dice": 0.1}, f"Gaussian filter of {seed}": {"image_dice": 0.8}}}
            for seed in (1, 2)
        ]
        + [{"name": name, "seed": 1, "seconds": 9} for name in ("circles", "conv3d", "photographs")]
    },
    "faults": {
        "rows": [
            {"attack": "kills", "outcomes": {"undisturbed": [1, 1], "kill -9 in a training": [19, 20]}},
            {"attack": "disks", "outcomes": {"disk full": [6, 6]}},
        ]
    },
    "shared_server": {
        "rounds": 10,
        "held": {name: [40, 40] for name in ("runs", "points", "files", "models", "versions")},
        "failures": 0,
        "runs_without_an_end": 0,
        "same_mask": True,
    },
}


@pytest.fixture(scope="module", params=["recorded", "every record"])
def either(request, copy, tmp_path_factory):
    """The copy as it is, and one in which no record is missing."""
    if request.param == "recorded":
        return copy
    root = tmp_path_factory.mktemp("either") / "copy"
    shutil.copytree(copy, root)
    results = json.loads((root / "report" / "results.json").read_text())
    results["records"] |= {name: records.READERS[name](found) for name, found in RECORDS.items()}
    (root / "report" / "results.json").write_text(json.dumps(results))
    return root


def ask(root, edition, selector):
    """What of an edition a selector of Typst finds."""
    options = {"root": str(root), "ignore_system_fonts": True}
    return json.loads(typst.query(str(root / "report" / f"report.{edition}.typ"), selector, **options))


@pytest.mark.parametrize("edition", build.EDITIONS)
def test_both_editions_are_typeset_from_the_recorded_results(either, tmp_path, edition):
    build.typeset(edition, tmp_path / "report.pdf", either)
    pages = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes()))
    assert 16 <= pages <= 24
    build.typeset(edition, tmp_path / "answers.pdf", either, part="answers")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "answers.pdf").read_bytes())) in (2, 3)


@pytest.mark.parametrize("edition", build.EDITIONS)
def test_the_committed_figures_are_those_of_the_recorded_results(copy, edition):
    drawn = {path.name: path.read_bytes() for path in (copy / "report" / "figures" / edition).iterdir()}
    committed = {path.name: path.read_bytes() for path in (REPORT / "figures" / edition).iterdir()}
    assert drawn.keys() == committed.keys()
    # Not byte for byte: another release of Matplotlib or zlib may write the same picture otherwise.
    assert all(abs(len(drawn[name]) - len(committed[name])) < 0.1 * len(drawn[name]) for name in drawn)


def test_the_editions_have_the_same_sections_figures_tables_commands_and_citations(either):
    english, french = (
        {
            "levels": [heading["level"] for heading in ask(either, edition, "heading")],
            "figures": [(figure["kind"], figure.get("label")) for figure in ask(either, edition, "figure")],
            "keys": collections.Counter(mark["value"] for mark in ask(either, edition, "<cited>")),
            "commands": [mark["value"] for mark in ask(either, edition, "<command>")],
            "references": sorted(mark["target"] for mark in ask(either, edition, "ref")),
        }
        for edition in build.EDITIONS
    )
    assert english == french
    assert len(english["figures"]) > 15 and len(english["keys"]) > 100


def test_what_is_not_recorded_is_left_out_and_what_is_recorded_is_there(copy):
    results = json.loads((copy / "report" / "results.json").read_text())
    labels = {figure.get("label") for figure in ask(copy, "en", "figure")}
    for name in ("deep_structures", "faults", "photographs", "own_data"):
        assert (f"<tab-{name.replace('_', '-')}>" in labels) == (name in results["records"])


def test_every_chapter_has_an_aim_and_questions_with_commands_that_parse(copy):
    import conv3d_analysis
    import predict
    import unet_segmentation
    import volume_segmentation

    scripts = {f"{module.__name__}.py": module for module in (conv3d_analysis, predict, unet_segmentation)}
    scripts["volume_segmentation.py"] = volume_segmentation
    commands = [mark["value"] for mark in ask(copy, "en", "<command>")]
    for words in map(shlex.split, commands):
        assert words[0] == "python"
        if words[1] == "-m":
            assert importlib.util.find_spec(words[2]), words
        elif words[1] == "-c":
            compile(words[2], "a question", "exec")
        elif words[2:] not in (["--help"], ["--size", "100"]):  # the second is asked about because it is refused
            scripts[words[1]].parse_args(words[2:])
    answers = [mark["value"]["number"] for mark in ask(copy, "en", "<answer>")]
    assert [int(number) for number in answers] == list(range(1, len(answers) + 1))
    chapters = len([heading for heading in ask(copy, "en", "heading") if heading["level"] == 1])
    per_chapter = collections.Counter(mark["value"]["chapter"] for mark in ask(copy, "en", "<answer>"))
    without = ("Conclusion", "Glossary", "checklist", "References")
    assert set(per_chapter.values()) <= {2, 3} and len(per_chapter) == chapters - len(without)


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


def test_the_textbooks_dice_is_the_labs_where_float32_is_exact_and_shapes_agree():
    masks = (np.arange(2 * 16 * 16).reshape(2, 16, 16, 1) % 3 == 0).astype("float32")
    probs = np.random.default_rng(0).random(masks.shape, "float32")
    assert float(textbook.dice_coeff(masks, probs)) == pytest.approx(float(metrics.dice_coeff(masks, probs)), abs=1e-6)
    one = masks[:1]  # (1, H, H, 1) and (1, H, H) are broadcast
    assert float(textbook.dice_coeff(one[..., 0], one)) != pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="same shape"):
        metrics.dice_coeff(one[..., 0], one)
    assert np.float32(2**24) + np.float32(1) == np.float32(2**24) and 1024 * 128 * 128 == 2**24


COUNTS = "two|three|four|five|ten|deux|trois|quatre|cinq|dix"


@pytest.mark.parametrize("edition", build.EDITIONS)
def test_counts_of_runs_are_read_and_numbers_stay_with_their_units(edition):
    text = (REPORT / f"report.{edition}.typ").read_text(encoding="utf-8")
    nouns = "seeds|runs|pairs|graines|paires"  # but what students are asked to do
    assert re.findall(rf"[^\n]*\b(?:{COUNTS}) (?:{nouns})\b(?! of your own| à vous)", text) == []
    units = "pixels?|MiB|Mio|seconds?|secondes?|epochs?|époques?|images?|GiB|Gio|seeds?|graines?"
    assert re.findall(rf"#(?:num|mean|difference|cardinal)\([^()]*\)\s+(?:{units})\b", text) == []
    assert re.findall(r"[^\n]*\d (?:px|mm|MiB|Mio|GiB|Gio|pixels?)\b", text) == []


def test_french_has_a_narrow_space_that_does_not_break_before_high_signs():
    text = (REPORT / "report.fr.typ").read_text(encoding="utf-8")
    pictures = [path.read_text(encoding="utf-8") for path in (REPORT / "figures" / "fr").iterdir()]
    drawn = "\n".join(" ".join(re.findall(r">([^<>]+)</(?:text|tspan)>", picture)) for picture in pictures)
    for source in (text, drawn):
        assert re.findall(r"[^\n]{0,20}(?:[ ~\u00a0][:;!?%»]|«[ ~\u00a0])", source) == []
    assert re.findall(r"\w[;!?»]|«\w", re.sub(r'"(?:[^"\\]|\\.)*"|`[^`]*`|#losses\.\w+;', "", text)) == []


def test_a_semicolon_behind_a_number_is_printed():
    """Typst takes one behind a call for the end of the call."""
    for edition in build.EDITIONS:
        text = (REPORT / f"report.{edition}.typ").read_text(encoding="utf-8")
        assert re.findall(r"#[a-z-]+\([^()]*\);", text) == []


def test_the_text_claims_the_differences_that_the_records_carry():
    """What the text calls a difference has an interval without 0; what it says is not shown has one with 0."""
    results = build.load()
    worse = ("adam", "fixed", "constant", "full")  # in this order
    shown = [f"e1.ablation.{row}.against_lab.test_dice" for row in (*worse, "dice", "more", "report")]
    shown += ["e1.ablation.bce.against_lab.val_soft_dice"]
    tasks, some = experiments.TASKS, ("large_one", "large_three", "small_three")
    shown += [f"e2.{task}.none_less.dice" for task in tasks] + [f"e2.{task}.none_less.surface" for task in some]
    shown += [f"e2.{size}_three.none_less.surface_dice" for size in ("large", "small")]
    shown += [f"e2.large_{number}.none_less.hausdorff95" for number in ("one", "three")]
    shown += [f"e2.more_on_small.{number}.dice" for number in ("one", "three")]
    losses = [loss for loss in experiments.LOSSES if loss != "bce"]
    shown += [f"e3.1.{loss}.against_bce.confident" for loss in losses]
    shown += [f"e9.levels.{level}.fit_ahead" for level in results["e9"]["levels"]]
    scores = ("ece", "brier")
    hidden = [f"e3.{share}.{loss}.against_bce.{name}" for share in ("10", "1") for loss in losses for name in scores]
    hidden += [f"e3.1.{loss}.against_bce.dice" for loss in losses]
    shown += ["e6.low.ahead.longer", "e6.high.ahead.longer", "e6.high.ahead.usual"]
    hidden += ["e6.low.ahead.usual"]
    hidden += [f"e2.{task}.added_less.{measure}" for task in tasks for measure in experiments.MEASURES]
    hidden += [f"e2.more_on_small.{number}.surface" for number in ("one", "three")]
    hidden += ["e2.small_one.none_less.surface", "e1.ablation.bce.against_lab.test_dice"]
    hidden += [f"e2.small_{number}.none_less.hausdorff95" for number in ("one", "three")]

    def at(key):
        value = results
        for part in key.split("."):
            value = value[part]
        return value

    assert [key for key in shown if at(key)["zero"]] == []
    assert [key for key in hidden if not at(key)["zero"]] == []
    trials = results["e1"]["ablation"]
    means = {row: found["against_lab"]["test_dice"]["mean"] for row, found in trials.items() if found["against_lab"]}
    assert sorted(worse, key=means.get) == list(worse) and means["dice"] > means["adam"]
    assert abs(means["more"] + means["full"]) < 1e-4
    assert all(min(found["rates"]) < found["rate"] < max(found["rates"]) for found in trials.values())
    assert all(found["rate"] == round(found["rate"], 4) for found in trials.values())  # as printed
    soft = {}  # by the soft score three rows would have a larger rate, two of them the largest
    for row, found in trials.items():
        of_rate = {
            run["rate"]: run["last_epoch"]["val_dice_coeff"]
            for run in _common.rows("ablation")
            if (run["row"], run["seed"]) == (row, 0)
        }
        soft[row] = (found["rate"], max(of_rate, key=of_rate.get), max(of_rate))
    larger = [row for row, (chosen, other, _) in soft.items() if other > chosen]
    assert len(larger) == 3 and all(other == chosen for row, (chosen, other, _) in soft.items() if row not in larger)
    assert [soft[row][1] == soft[row][2] for row in larger].count(True) == 2
    by_crops = [row for row in _common.rows("own_data") if row["side"] == "UNet"]
    assert {row["bound"] for row in by_crops} == {"crops"}
    usual = results["e1"]["settings"]["report"]["learning_rate"]
    swept = [run for run in _common.rows("ablation") if (run["row"], run["rate"], run["seed"]) == ("report", usual, 0)]
    assert 2 * trials["report"]["rate"] == usual and [ablation.failed(run) for run in swept] == [True]
    assert trials["report"]["test_dice"]["max"] < results["e1"]["rows"]["report"]["test_dice"]["min"]
    fewest = [results["e2"][task]["concatenated"]["parameters"]["max"] for task in tasks]
    assert all(results["e2"][t][k]["parameters"]["min"] > max(fewest) for t in tasks for k in ("added", "none"))
    behind = [results["e3"]["10"][loss]["against_bce"]["dice"] for loss in losses]
    assert all(found["low"] <= 0 for found in behind)  # none is ahead
    less = [loss for loss in losses if not results["e3"]["10"][loss]["against_bce"]["dice"]["zero"]]
    assert sorted(less) == ["dice_bce", "pooled_dice_one"]
    ends = [curve[-6:] for level in ("low", "high") for kind in ("volumes_longer", "slices_longer")
            for curve in results["e6"][level]["curves"][kind]]  # fmt: skip
    assert max(max(end) - min(end) for end in ends) < 0.01  # no longer rise
    rare = {loss: results["e3"]["0_1"][loss]["failed"] for loss in experiments.LOSSES}
    assert rare["dice_tiny"]["k"] == 0 and rare["dice_tiny"]["high"] < rare["dice"]["low"] - 0.2
    assert rare["bce"]["k"] == rare["bce"]["n"]  # no training is left for its diagram
    assert round(results["e3"]["0_1"]["pixels"]) == 4  # and so 1/5 for an empty mask
    assert rare["dice"]["k"] - rare["dice_tiny"]["k"] > rare["pooled_dice_one"]["k"] - rare["pooled_dice"]["k"]
    for share in ("10", "1"):
        assert all(results["e3"][share][loss]["failed"]["k"] == 0 for loss in ("bce", *losses))
    structures = results["records"]["deep_structures"]["sides"]
    assert structures["windows"]["dice"]["max"] < 0.1
    for name, found in structures["absent"]["structures"].items():
        assert (found["max"] < 0.01) == (name in ("amygdala", "accumbens")), "which of them are lost"
    best = {side: best_rates(_common.rows("deep_structures"), side, 300)[0]["rate"] for side in ("UNet", "DynUNet")}
    assert best["DynUNet"] == max(RATES) and min(RATES) < best["UNet"] < max(RATES)
    missing = {row["attack"]: sum(n - k for k, n in row["outcomes"].values()) for row in _common.rows("faults")}
    assert missing.pop("signals") == 1 and not any(missing.values())
    assert results["e8"]["full"]["same"]
    other = results["records"]["processors"]
    assert other["same"]["k"] == 0 and other["full"]["repeated"] and other["full"]["there"] != other["full"]["here"]
    studies = [_common.read("conv3d_study"), *_common.rows("processors")[1:]]
    assert max(map(processors.largest_factor, studies)) < MARGIN and len(studies) == 2
    assert other["memory"]["bfloat16"]["mean_error"] > 0
    assert all(results["e8"]["elsewhere"][kind]["same_bits"] == 0 for kind in experiments.ELSEWHERE)
    assert (
        results["e8"]["same"]["default"]["k"] == results["e8"]["same"]["deterministic"]["k"] == results["e8"]["seeds"]
    )


def test_a_paired_interval_is_that_of_students_t():
    found = paired([1, 2, 3], [2, 2, 5])  # differences 1, 0, 2: mean 1, standard error 1 / sqrt(3)
    assert found["mean"] == 1 and not found["low"] > 0 and found["zero"]
    assert found["high"] - 1 == pytest.approx(4.3026527 / 3**0.5)
    assert not paired([0, 0, 0], [1, 1.1, 0.9])["zero"]
    with pytest.raises(ValueError, match="two pairs"):
        paired([1], [2])


def test_an_interval_of_a_share_is_that_of_wilson():
    z = 1.959963985
    assert wilson(3, 3)["low"] == pytest.approx(3 / (3 + z**2)) and wilson(3, 3)["high"] == 1
    assert wilson(0, 3)["high"] == pytest.approx(z**2 / (3 + z**2))
    assert wilson(1, 2)["low"] + wilson(1, 2)["high"] == pytest.approx(1)


def test_processors_are_named_plainly_and_the_largest_step_is_found():
    found = processors.compared(RECORDS["processors"])
    assert (found["here"], found["there"]) == ("AMD EPYC", "Intel Xeon") and found["same"]["k"] == 1
    assert found["full"] == {"here": 0.91, "there": 0.9, "repeated": True}
    assert found["memory"]["largest_factor"] == 1.25 and found["memory"]["bfloat16"]["mean_error"] == -0.2


def test_own_data_are_compared_by_split_at_the_rate_that_went_on():
    found = records.own_data(RECORDS["own_data"])["data"]["coins"]
    assert found["UNet"]["dice"]["mean"] == pytest.approx(0.61) and found["ours"]["less_ours"] is None
    assert found["no_augmentation"]["less_ours"]["mean"] == pytest.approx(-0.1)
    assert records.own_data(RECORDS["own_data"])["num_rates"] == 2


def test_the_volumes_scores_are_told_beside_both_references():
    found = records.commands(RECORDS["commands"])
    assert (found["network"]["min"], found["network"]["max"]) == (0.91, 0.92)
    assert found["filter"]["values"] == [0.8, 0.8] and found["threshold"]["mean"] == pytest.approx(0.1)


def test_classes_are_told_by_the_seeds_that_chose_nothing():
    found = records.classes(RECORDS["classes"])
    assert (found["objects"], found["confused"], found["dice"]["values"]) == (60, 3, [0.98, 0.99])
    assert found["confusion"]["square"] == {"background": 3 / 57, "disc": 0, "square": 54 / 57, "triangle": 0}
    assert found["losses"]["dice_ce"]["values"] == [0.5, 0.6] and "ce_weights" not in found["losses"]
    structures = records.deep_structures(RECORDS["deep_structures"])
    assert structures["seconds"] == 9.5 and structures["sides"]["ours"]["dice"]["values"] == pytest.approx([0.8, 0.9])
    assert structures["sides"]["absent"]["structures"]["brain_stem"]["mean"] == 0.5


def test_a_record_that_is_missing_has_no_paragraph(monkeypatch, tmp_path):
    monkeypatch.setattr(records._common, "RESULTS", tmp_path)
    assert records.read_all() == {} and records.compute() == []
    (tmp_path / "faults.json").write_text(json.dumps(RECORDS["faults"]))
    assert records.read_all()["faults"]["total"]["k"] == 25
    assert [(row["record"], row["runs"]) for row in records.compute()] == [("faults", 26)]


def test_a_training_is_counted_once(monkeypatch, tmp_path):
    monkeypatch.setattr(records._common, "RESULTS", tmp_path)
    for name in ("deep_structures", "own_data"):
        (tmp_path / f"{name}.json").write_text(json.dumps(RECORDS[name]))
    runs = {row["record"]: row["runs"] for row in records.compute()}
    assert runs == {"deep_structures": 4 * 2, "own_data": 2 * (3 + 3 + 1 + 3 + 3)}  # windows are not trained


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


def test_a_cell_is_of_other_code_where_a_file_that_made_it_has_changed(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.setattr(_common, "ROOT", tmp_path)
    for folder in ("lab/model", "lab/data", "report"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "report" / "experiments.py").write_text("from lab.model import training\n")
    for file in ("metrics.py", "lab/model/training.py", "lab/data/scans.py"):
        (tmp_path / file).write_text('"""What it is."""\n\n\ndef f(x):\n    """What it gives."""\n    return x + 1\n')
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    results = {"cells": {"e2/a": {"provenance": {"mlflow.source.git.commit": git("rev-parse", "HEAD")}}}}
    (tmp_path / "lab" / "data" / "scans.py").write_text("SCANS = True  # which no experiment imports\n")
    training = tmp_path / "lab" / "model" / "training.py"
    training.write_text('"""In other words."""\n\ndef f(x):  # of one line less\n    return (x + 1)\n')
    assert build.of_other_code(results) == {}
    training.write_text(training.read_text().replace("x + 1", "x + 2"))
    assert build.of_other_code(results) == {"e2/a": ["lab/model/training.py"]}


def test_a_training_of_the_report_is_the_scripts_own(store, quick_training):
    flags = "--epochs 2 --train-images 8 --test-images 6 --val-images 4 --filters 2 --radius 4 12"
    masks, probs, history, scores, seconds, model = repeats.trained("test", 0, flags)
    assert masks.shape == probs.shape == (6, 64, 64, 1)
    assert history["epoch"] == [1, 2] and {"loss", "val_image_dice"} <= history.keys()
    assert 0 <= scores["image_dice"] <= 1 and seconds > 0
    assert model.count_params() == experiments.unet.build_unet((64, 64, 1), 2).count_params()


@pytest.mark.slow
@pytest.mark.parametrize("ndim", [2, 3])
def test_slices_and_volumes_are_scored_per_volume(store, quick_training, monkeypatch, ndim):
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


def test_a_page_whose_charts_are_not_there_yet_is_not_taken():
    page = Image.new("RGB", (900, 900), "white")
    assert not screenshot.has_charts(page)
    page.paste(screenshot.LINE, (100, 100, 800, 200))  # a button above the charts
    page.paste(screenshot.LINE, (100, 320, 800, 324))  # the line under a heading
    assert not screenshot.has_charts(page)
    page.paste(screenshot.LINE, (100, 700, 800, 703))
    assert screenshot.has_charts(page)
