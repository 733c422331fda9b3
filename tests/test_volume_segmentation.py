"""volume_segmentation.py, shrunk: spheres, own scans and what predict.py makes of them, the planner, bad input."""

import csv
import dataclasses
import json
import math
import re

import nibabel
import numpy as np
import pytest

import data_synth
import predict
import volume_segmentation as script
from lab import experiment
from lab.data import patches, volumes
from lab.data.sample import Sample
from lab.evaluate import sample_scores
from lab.model import patch_plan

TINY = ["--epochs", "1", "--train-patches", "4", "--batch-size", "2", "--patch", "16", "--filters", "2"]
FILES = set(experiment.FILES) - {"per_image.csv", "confusion.csv", "confusion.png"}


def run(folder, *flags):
    return script.main([*TINY, "--out-dir", str(folder), *flags])


@pytest.fixture
def scan_folders(tmp_path):
    """Four scans of two orientations and spacings, with the masks of their spheres."""
    images, masks = tmp_path / "scans", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    spheres = data_synth.make_spheres(4, (24, 28, 32), num_spheres=(1, 3), radius=(5, 8), noise=0.1)
    turned = np.array([[0, -1.0, 0, 9], [1.2, 0, 0, 0], [0, 0, 0.9, 5], [0, 0, 0, 1]])
    for number, (image, mask) in enumerate(zip(*spheres, strict=True)):
        affine = turned if number % 2 else np.diag([1.0, 1.0, 1.5, 1.0])
        nibabel.Nifti1Image((image[..., 0].T * 1000).astype(np.int16), affine).to_filename(images / f"{number}.nii.gz")
        nibabel.Nifti1Image(mask[..., 0].T.astype(np.uint8), affine).to_filename(masks / f"{number}.nii.gz")
    return images, masks


@pytest.mark.slow
def test_spheres_are_trained_on_scored_and_tracked(store, capsys):
    flags = ["--size", "24", "--radius", "4", "7", "--spheres", "1", "1", "--test-volumes", "2"]
    scores = run(store / "out", *flags)
    files = {path.name for path in (store / "out").iterdir()}
    assert files == FILES - {"split.json", "dataset.png"}
    found = json.loads((store / "out" / "scores.json").read_text())
    assert found["test"] == scores
    assert set(found["baselines"]) >= {"all background", "best threshold", "likeliest sphere"}
    assert found["baselines"]["likeliest sphere"]["image_dice"] > 0.8
    assert found["baselines"]["all background"]["image_dice"] < 1e-6
    rows = list(csv.DictReader((store / "out" / "per_volume.csv").read_text().splitlines()))
    assert len(rows) == 2 and {"image_dice", "surface", "hausdorff95"} <= set(rows[0])
    out, err = capsys.readouterr()
    assert "surface, voxels" in out and "likeliest sphere" in out
    import mlflow

    (record,) = mlflow.search_runs(experiment_names=[script.EXPERIMENT], output_format="list")
    assert record.info.status == "FINISHED"
    assert record.data.metrics["test_image_dice"] == pytest.approx(scores["image_dice"])
    assert record.data.params["patch"] == "(16, 16, 16)"
    assert run(store / "out", *flags, "--resume") == scores
    assert "is finished" in capsys.readouterr().out


def test_a_planned_patch_is_that_of_then_when_a_run_goes_on(store, quick_training, scan_folders, monkeypatch, capsys):
    """With less memory free a smaller one would be planned, and the checkpoint refused."""
    flags = ["--images", str(scan_folders[0]), "--masks", str(scan_folders[1]), "--spacing", "1.5", "--filters", "2"]
    flags += ["--epochs", "1", "--train-patches", "2", "--out-dir", str(store / "out")]
    monkeypatch.setattr(patch_plan, "plan_patch", lambda *settings: (16, 16, 24))
    scores = script.main(flags)
    monkeypatch.setattr(patch_plan, "plan_patch", lambda *settings: (16, 16, 16))
    assert script.main([*flags, "--resume"]) == scores and "is finished" in capsys.readouterr().out


def test_own_scans_are_trained_on_and_predicted_on_their_own_grid(store, quick_training, scan_folders, capsys):
    images, masks = scan_folders
    flags = ["--images", str(images), "--masks", str(masks), "--spacing", "1.5"]
    run(store / "out", *flags)
    assert {path.name for path in (store / "out").iterdir()} >= FILES
    parts = json.loads((store / "out" / "split.json").read_text())
    assert sorted(sum(parts.values(), [])) == [f"{number}.nii.gz" for number in range(4)]
    assert "surface, mm" in capsys.readouterr().out

    scan = images / "1.nii.gz"
    model = store / "out" / "model.keras"
    assert predict.main([str(model), str(scan), "--out-dir", str(store / "predicted"), "--masks", str(masks)]) == 0
    mask = nibabel.load(store / "predicted" / "1_mask.nii.gz")
    assert mask.shape == nibabel.load(scan).shape
    np.testing.assert_array_equal(mask.affine, nibabel.load(scan).affine)


def test_a_check_of_scans_writes_what_was_read_and_ends_without_a_run(store, scan_folders, capsys):
    flags = ["--images", str(scan_folders[0]), "--masks", str(scan_folders[1]), "--check"]
    assert run(store / "out", *flags) == {}
    assert {path.name for path in (store / "out").iterdir()} == {"dataset.png", "split.json"}
    said = capsys.readouterr().out
    assert said.startswith("2 scans for training, 1 for validation, 1 for the test; split.json names them.\n")
    assert "own scans: trained on 16 x 16 x 16 voxels in grey" in said
    assert said.endswith(f"Nothing was trained. Files: {store / 'out'}.\n")


@pytest.mark.parametrize(("values", "rate"), [(1, script.RATE_OF_ONE), (2, script.RATE_OF_SEVERAL)])
def test_scans_of_several_classes_learn_more_slowly_unless_a_rate_is_given(scan_folders, values, rate):
    for path in scan_folders[1].iterdir():
        mask = nibabel.load(path)
        voxels = np.asarray(mask.dataobj).copy()
        voxels[len(voxels) // 2 :] *= values
        nibabel.save(nibabel.Nifti1Image(voxels, mask.affine), path)
    args = script.parse_args(["--images", str(scan_folders[0]), "--masks", str(scan_folders[1]), *TINY])
    classes, split, _ = script.split_scans(args)
    source = script.own_scans(args, classes, split)
    assert (classes.num, source.learning_rate, args.learning_rate) == (values, rate, None)
    model = script.build(args, source)
    experiment.compile_model(model, source, args, epochs=1)
    assert model.optimizer._learning_rate.warmup_target == rate


def test_the_model_file_gets_the_spacings_of_the_training_scans(scan_folders):
    args = script.parse_args(["--images", str(scan_folders[0]), "--masks", str(scan_folders[1]), *TINY])
    classes, split, _ = script.split_scans(args)
    low, high = script.own_scans(args, classes, split).preprocessing["spacings_seen"]
    steps = np.array([sample.spacing for sample in split["training"]])
    assert (low, high) == (steps.min(axis=0).tolist(), steps.max(axis=0).tolist())
    assert {round(step, 3) for step in (*low, *high)} <= {0.9, 1.0, 1.2, 1.5}


@pytest.mark.parametrize(("patch", "expected"), [("16", "float32"), ("24", "mixed_bfloat16")])
def test_volumes_that_get_2_voxels_deep_are_not_trained_in_bfloat16(patch, expected):
    flags = ["--size", "24", "--radius", "4", "7", *TINY, "--patch", patch, "--precision", "mixed_bfloat16"]
    args = script.parse_args(flags)
    _, model, precision = experiment.prepare(args, lambda: script.spheres(args), script.build)
    assert precision == expected
    assert model.get_layer("bottleneck_conv1").compute_dtype == expected.replace("mixed_", "")


def planned(samples, *flags):
    args = script.parse_args(["--images", "a", "--masks", "b", *flags])
    return patch_plan.choose_patch(
        lambda sides: script.build_unet((*sides, 1), args.filters, script.DEPTH),
        samples,
        args.batch_size,
        args.optimizer,
        args.memory,
        then=None,
    )


def test_more_memory_gives_larger_patches_up_to_the_scans(capsys):
    volume = Sample("a", None, np.zeros((40, 96, 64), bool), None)
    small, large, all_of_it = (planned([volume], "--memory", gib, "--filters", "4") for gib in ("0.25", "0.6", "100"))
    assert all(a <= b for a, b in zip(small, large, strict=True)) and small != large
    assert all_of_it == (40, 96, 64)
    assert all(side % 8 == 0 for side in (*small, *large))
    assert "taken" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no patch trains within 0.01 GiB"):
        planned([volume], "--memory", "0.01")


def test_without_memory_or_a_card_the_patch_is_no_larger_than_pays():
    for shape in ((26, 200, 180), (200, 200, 200), (16, 16, 16), (500, 40, 40)):
        patch = planned([Sample("a", None, np.zeros(shape, bool), None)], "--filters", "1")
        assert math.prod(patch) <= 1.35 * patch_plan.MOST_VOXELS  # sides are rounded up to what is divisible by 8
        assert all(side <= length + 7 for side, length in zip(patch, shape, strict=True))
        assert math.prod(patch) >= 0.5 * min(patch_plan.MOST_VOXELS, math.prod(shape))


@pytest.mark.parametrize(("affine", "known"), [(np.eye(4), True), (None, False)])
def test_a_scan_is_oriented_if_its_file_holds_an_affine(affine, known, tmp_path):
    (image,), (mask,) = data_synth.make_spheres(1, 16, radius=(3, 5))
    for name, voxels in {"scans": image, "masks": mask}.items():
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(voxels[..., 0], affine), tmp_path / name / "a.nii")
    ((sample,), _) = volumes.read_folder(tmp_path / "scans", tmp_path / "masks")
    assert sample.is_oriented is known


def test_scans_of_one_known_orientation_are_flipped_left_and_right_only():
    def allowed(spacing, patch, *oriented):
        samples = [Sample("a", None, None, None, spacing, is_oriented=known) for known in oriented]
        return patches.symmetries(samples, patch)

    assert allowed((1, 1, 1), (16, 16, 16), True, True) == ([2], [])
    assert allowed((1, 1, 1), (16, 16, 16), True, False) == ([0, 1, 2], [(0, 1), (0, 2), (1, 2)])
    assert allowed((3, 1, 1), (16, 16, 16), False) == ([0, 1, 2], [(1, 2)])  # of equal spacing
    assert allowed(None, (8, 16, 16), False) == ([0, 1, 2], [(1, 2)])  # of equal sides


def test_an_epochs_patches_are_its_own_and_come_again():
    source = script.spheres(script.parse_args(["--size", "24", "--radius", "4", "7", *TINY]))
    one, again, other = (list(source.batches(epoch)) for epoch in (0, 0, 1))
    assert [images.shape for images, _ in one] == [(2, 16, 16, 16, 1)] * 2
    np.testing.assert_array_equal(one[0][0], again[0][0])
    assert not np.array_equal(one[0][0], other[0][0])


def test_scores_of_the_truth_are_perfect_and_of_nothing_zero():
    args = script.parse_args(["--size", "24", "--radius", "4", "7", *TINY])
    samples = script.make_spheres(args, 3, script.TEST)
    scores, rows = sample_scores.score_samples(samples, [sample.labels[..., None] for sample in samples])
    assert scores["image_dice"] == scores["image_iou_min"] == 1
    assert scores["surface"] == scores["hausdorff95"] == 0
    assert [row["volume"] for row in rows] == ["volume 0", "volume 1", "volume 2"]
    scores, rows = sample_scores.score_samples(samples, [np.zeros_like(sample.labels[..., None]) for sample in samples])
    assert scores["image_dice"] < 1e-6 and "surface" not in scores and rows[0]["surface"] is None


def test_distances_of_one_table_are_in_one_unit():
    args = script.parse_args(["--size", "24", "--radius", "4", "7", *TINY])
    samples = script.make_spheres(args, 2, script.TEST)
    shifted = [np.roll(sample.labels, 1, axis=0)[..., None] for sample in samples]
    of = {}
    for known in ((None, None), ((3, 1, 1), (3, 1, 1)), (None, (3, 1, 1))):
        these = [dataclasses.replace(sample, spacing=spacing) for sample, spacing in zip(samples, known, strict=True)]
        of[known] = sample_scores.score_samples(these, shifted)[0]["surface"], sample_scores.table_columns(these)[1]
    voxels, millimetres, mixed = of.values()
    assert mixed == voxels and "surface, voxels" in mixed[1] and "surface, mm" in millimetres[1]
    assert millimetres[0] > voxels[0]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--patch", "20"], "divisible by 8"),
        (["--patch", "16", "16"], "one number, or three"),
        (["--patch", "128"], "larger than --size 64"),
        (["--images", "a"], "belong together"),
        (["--spacing", "1"], "are for scans"),
        (["--memory", "0"], "are for scans"),
        (["--images", "a", "--masks", "b", "--memory", "0"], "--memory must be"),
        (["--images", "a", "--masks", "b", "--spacing", "0"], "--spacing must be"),
        (["--images", "a", "--masks", "b"], "a is not a folder"),
        (["--radius", "4", "40"], "does not fit"),
        (["--epochs", "0"], "--epochs must be"),
        (["--test-volumes", "1000000"], "GiB of memory"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        script.main(flags)
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip()
    assert re.search(words, last), last
    assert "Traceback" not in last
    assert not list(tmp_path.iterdir())
