"""One training from begin to end: what is left when its scores fail, and who takes part in it."""

import functools
import json
from pathlib import Path

import pytest

import unet_segmentation as unet
from lab import command_line, experiment
from lab.model import model_file

TINY = "--size 16 --train-size 16 --radius 2 5 --filters 1 --val-images 2 --test-images 2 --train-images 4 --epochs 1"


def test_scores_that_fail_leave_the_model_and_end_with_exit_code_1(store, capsys):
    import mlflow

    def fail(network, source, history):
        raise RuntimeError("no test set")

    @command_line.script
    def main(argv=None):
        args = unet.parse_args([*TINY.split(), "--precision", "float32", "--out-dir", "out", *(argv or [])])
        source = functools.partial(unet.circles, args)
        return experiment.run("Scores that fail", args, unet.RECIPES, source, unet.build, fail)

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == "test_experiment.py: the scores failed (no test set).\n"
    assert {path.name for path in Path("out").iterdir()} == {"model.keras", "history.json", "curves.png", "scores.json"}
    assert model_file.load_model(Path("out/model.keras")).network.count_params() > 0
    assert "test" not in json.loads(Path("out/scores.json").read_text())
    (run,) = mlflow.search_runs(experiment_names=["Scores that fail"], output_format="list")
    assert run.info.status == "FINISHED" and "loss" in run.data.metrics and "test_image_dice" not in run.data.metrics
    with pytest.raises(SystemExit) as stop:
        main(["--resume"])
    assert stop.value.code == 2 and "its test scores are missing" in capsys.readouterr().err


def test_who_takes_part_trains_only_if_the_first_process_does(monkeypatch):
    trained = []
    monkeypatch.setattr(experiment, "prepare", lambda args, make_source, build: ("source", "model", "float32"))
    monkeypatch.setattr(experiment, "train", lambda *arguments: trained.append(arguments))
    for finished in (b"", b"finished"):
        monkeypatch.setattr(experiment.processes, "from_first_process", lambda data, finished=finished: finished)
        assert experiment.follow("args", None, None) == {} and trained == [("model", "source", "args")]
