"""The network, and the script run small from end to end."""

import json

import numpy as np
import pytest

import unet_segmentation as lab

BAD = [
    ("--size 100", "divisible"),
    ("--radius 8 80", "does not fit"),
    ("--epochs 0", "at least 1"),
    ("--train-images -1", "at least 1"),
    ("--noise -1", "noise"),
    ("--learning-rate 0", "above 0"),
    ("--learning-rate nan", "above 0"),
    ("--loss x", "invalid choice"),
]


def test_the_network_has_the_reports_parameters():
    assert lab.build_unet().count_params() == 1_925_025


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_bad_flags_are_one_sentence_and_exit_code_2(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        lab.main([*flags.split(), "--out-dir", str(tmp_path)])
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_masks_of_0_and_255_are_refused():
    with pytest.raises(ValueError, match="exactly 0 or 1"):
        lab.check_arrays(np.zeros((1, 8, 8, 1)), np.full((1, 8, 8, 1), 255))


def test_a_small_run_writes_its_files_and_its_run(store, tmp_path):
    import mlflow

    flags = "--epochs 2 --size 32 --radius 3 8 --filters 4 --train-images 10 --val-images 4 --test-images 6"
    scores = lab.main([*flags.split(), "--out-dir", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert results["test"] == scores
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"curves.png", "history.json", "model.keras", "per_image.csv", "predictions.png", "scores.json"}
    run = mlflow.search_runs(experiment_names=[lab.EXPERIMENT], output_format="list")[0]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_image_dice"] == pytest.approx(scores["image_dice"])
