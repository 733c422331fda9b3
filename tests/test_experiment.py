"""One training from begin to end: what is left when its scores fail, and who takes part in it."""

import functools
import json
from pathlib import Path

import pytest

import unet_segmentation as unet
from lab import command_line, experiment
from lab.model import checkpoints, model_file, timing, training

TINY = "--size 16 --train-size 16 --radius 2 5 --filters 1 --val-images 2 --test-images 2 --train-images 4 --epochs 1"


def test_scores_that_fail_leave_the_model_and_end_with_exit_code_1(store, quick_training, capsys):
    import mlflow

    def fail(network, source, history, settings):
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
    left = {"model.keras", "history.json", "curves.png", "scores.json", "index.html"}
    assert {path.name for path in Path("out").iterdir()} == left
    assert "It has no scores." in Path("out/index.html").read_text()
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
    monkeypatch.setattr(experiment, "choose_epochs", lambda model, source, args: 7)
    monkeypatch.setattr(experiment, "train", lambda *arguments, epochs: trained.append((*arguments, epochs)))
    for finished in (b"", b"finished"):
        monkeypatch.setattr(experiment.processes, "from_first_process", lambda data, finished=finished: finished)
        assert experiment.follow("args", None, None) == {} and trained == [("model", "source", "args", 7)]


@pytest.mark.slow
def test_minutes_are_a_number_of_epochs_that_stays_and_gives_the_bits_of_epochs(
    store, quick_training, monkeypatch, capsys
):
    real, save = training.measure, checkpoints.Checkpoint.save
    pace = timing.Pace(step=1, validation=1, start=6)

    def measure(*arguments):
        real(*arguments)  # steps are made, but on every machine they take as long
        return pace

    def stop(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt

    def train(flags, out, code=None):
        flags = [*TINY.replace("--epochs 1", flags).split(), "--precision", "float32", "--out-dir", out]
        if code is None:
            return unet.main(flags)
        with pytest.raises(SystemExit) as ended:
            unet.main(flags)
        assert ended.value.code == code
        return capsys.readouterr()

    monkeypatch.setattr(training, "measure", lambda *arguments: pace)
    errors = train("--minutes 0.1", "none", code=2).err
    assert "error: --minutes 0.1 is too little for one epoch; give at least 0.2." in errors
    monkeypatch.setattr(training, "measure", measure)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "save", stop)
        said = train("--minutes 0.2", "out", code=130)  # 0.95 * 12 s - 6 s, for epochs of a step and a validation
    assert "--minutes 0.2 has room for 2 epochs.\n" in said.out and "1 of 2 epochs are kept" in said.err
    train("--minutes 60 --resume", "out")
    assert "--minutes 60" not in capsys.readouterr().out  # nothing is measured again
    train("--epochs 2", "other")
    one, other = (json.loads(Path(folder, "scores.json").read_text()) for folder in ("out", "other"))
    assert one["settings"] == other["settings"] and one["settings"]["epochs"] == "2"
    one, other = (model_file.load_model(Path(folder, "model.keras")).network for folder in ("out", "other"))
    assert all((a == b).all() for a, b in zip(one.get_weights(), other.get_weights(), strict=True))
    train("--minutes 60 --resume", "out")
    assert "is finished" in capsys.readouterr().out


def test_the_number_of_epochs_holds_for_a_training_that_goes_on_and_for_later_folds():
    args = unet.parse_args(["--minutes", "1", "--out-dir", "out", "--images", "a", "--masks", "b", "--folds", "3"])
    folder_of_then = functools.partial(experiment.folder_of_then, args)
    assert [folder_of_then(Path(f"out/fold-{fold}"), fold) for fold in (1, 2)] == [None, Path("out/fold-1")]
    resumed = unet.parse_args(["--minutes", "1", "--resume"])
    assert experiment.folder_of_then(resumed, Path("out"), None) == Path("out")
