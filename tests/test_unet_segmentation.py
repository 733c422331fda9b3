"""The network, and the script run small from end to end."""

import contextlib
import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
import unet_segmentation as unet
from lab import experiment
from lab.data import grey_values
from lab.model import model_file

SMALL = ["--size", "32", "--train-size", "16", "--radius", "2", "6", "--filters", "4"]
SMALL += ["--val-images", "4", "--test-images", "6"]
FLAGS = ["--epochs", "3", "--train-images", "50", "--batch-size", "4"]  # 50 = 12 * 4 + 2
FLAGS += ["--precision", "float32", "--run-name", "small", "--deterministic"]
BAD = [
    ("--size 100", "divisible"),
    ("--radius 8 80", "does not fit"),
    ("--epochs 0", "must be 1 to"),
    ("--train-images -1", "must be 1 to"),
    ("--val-images 0", "must be 1 to"),
    ("--batch-size 0", "must be 1 to"),
    ("--filters 0", "1 to 512"),
    ("--circles 2 1", "in this order"),
    ("--noise -1", "noise"),
    ("--contrast 0", "above 0"),
    ("--learning-rate 0", "above 0"),
    ("--learning-rate nan", "above 0"),
    ("--smooth 0", "above 0 of a Dice loss; got 0.0"),
    ("--smooth nan", "above 0 of a Dice loss"),
    ("--smooth 1e-6 --loss ce", "of a Dice loss; got 1e-06 with --loss ce"),
    ("--seed -1", "seed"),
    ("--loss x", "invalid choice"),
    ("--train-size 256", "larger than --size"),
    ("--train-size 20", "divisible"),
    ("--contrast 0.1 0.2 0.3", "two ends"),
    ("--seed 4294967296", "0 to 4294967295"),
    ("--size 20000000", "GiB of memory"),
    ("--filters 1000000", "1 to 512"),
    ("--train-images 10000000000000", "1 to 1000000000"),
    ("--batch-size 10000000000", "1 to 1000000000"),
    ("--resume --overwrite", "give one of them"),
    ("--images . --masks . --folds 2 --distributed", "without --distributed"),
    ("--images . --masks . --recipe photographs", "draws circles"),
    ("--images . --masks . --folds 1", "at least 2"),
    ("--folds 3", "your own pictures"),
    ("--check", "for your own data"),
]


@contextlib.contextmanager
def deterministic_once():
    """`--deterministic` holds for a whole process; the next test finds the default."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import config

        config.disable_op_determinism()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, migrated_database):
    """One run of the script on 32x32 images, in a store of its own: (folder, scores, run, console)."""
    import io

    import mlflow

    folder, console = tmp_path_factory.mktemp("small"), io.StringIO()
    shutil.copy(migrated_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(console):
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        with deterministic_once():
            scores = unet.main([*SMALL, *FLAGS, "--out-dir", "out"])
        mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').as_posix()}")
        run = mlflow.search_runs(experiment_names=[unet.EXPERIMENT], output_format="list")[0]
        yield folder, scores, run, console.getvalue()
        mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def test_the_network_has_the_parameters_of_its_formula():
    widths = [(1, 32), (32, 64), (64, 128), (128, 256)]
    encoder = sum(9 * a * b + b + 9 * b * b + b for a, b in widths)
    decoder = sum(4 * 2 * b * b + b + 9 * 2 * b * b + b + 9 * b * b + b for b in (128, 64, 32))
    assert unet.build_unet().count_params() == encoder + decoder + 32 + 1 == 1_925_025


def test_skips_may_be_added_instead_of_concatenated():
    added, concatenated = (unet.build_unet((16, 24, 1), filters=2, skips=skips) for skips in ("add", True))
    assert added.output_shape == concatenated.output_shape
    level = added.get_layer("skip1")
    assert level.output.shape[-1] == 2 and concatenated.get_layer("skip1").output.shape[-1] == 4
    up, encoder = np.ones((2, 1, 16, 24, 2), "float32") * [[[[[1.0]]]], [[[[2.0]]]]]
    np.testing.assert_array_equal(level([up, encoder]), up + encoder)


def test_a_network_without_skips_has_no_concatenation_and_the_same_output_shape():
    network = unet.build_unet((16, 24, 1), filters=2, skips=False)
    assert network.output_shape == (None, 16, 24, 1)
    assert not any("Concatenate" in type(layer).__name__ for layer in network.layers)


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_bad_flags_are_one_sentence_and_exit_code_2(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        unet.main([*flags.split(), "--out-dir", str(tmp_path)])
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_told_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        unet.main(["--out-dir", str(tmp_path / "file" / "out")])
    assert stop.value.code == 2 and "cannot be written" in capsys.readouterr().err


def test_a_dead_server_is_told_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as stop:
        unet.main(["--out-dir", str(tmp_path)])
    assert stop.value.code == 2 and "http://127.0.0.1:9" in capsys.readouterr().err


def test_ordinary_images_are_not_called_strange():
    args = unet.parse_args(["--test-images", "200"])
    source = unet.circles(args)
    seen = grey_values.describe_training(source.typical_images(), source.preprocessing)["seen"]
    images, _ = source.test
    assert [i for i in range(200) if grey_values.describe_strangeness(images[i], seen)] == []


def test_a_batch_larger_than_the_training_set_is_the_set():
    source = unet.circles(unet.parse_args([*SMALL, "--train-images", "3", "--batch-size", "8"]))
    (first, _), (second, _) = (next(source.batches(epoch)) for epoch in (0, 1))
    assert first.shape == second.shape == (3, 16, 16, 1) and (first != second).any()


@pytest.mark.parametrize(
    ("flags", "side"),
    [
        ("", 64),
        ("--radius 12 12", 64),
        ("--radius 25 25 --train-size 128", 128),
        ("--size 32 --radius 2 6 --train-size 16", 16),
        ("--size 32 --radius 2 6 --train-size 32", 32),
        ("--train-size 128", 128),
        ("--recipe report", 128),
        ("--circles 0 1 --train-size 128", 128),
        ("--recipe photographs", 128),
    ],
)
def test_training_images_have_the_side_that_was_asked_for_or_the_recipes(flags, side):
    args = unet.parse_args([*flags.split(), "--train-images", "4", "--val-images", "2", "--test-images", "2"])
    source = (unet.photographs if "photographs" in flags else unet.circles)(args)
    images, masks = next(source.batches(0))
    assert images.shape == masks.shape == (4, side, side, 1) and source.sides == (side, side)
    assert source.validation[0].shape == source.test[0].shape == (2, args.size, args.size, 1)
    assert f"trained on {side} x {side} pixels in grey, validated on {args.size} x {args.size}." in source.describe()


LITTLE = "training images of 64x64 pixels suit one circle that covers at most a quarter of them; add --train-size 128."


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--radius 25 25", LITTLE),  # pi * 25^2 pixels are more than a quarter of 64^2
        ("--radius 25 25 --train-size 64", LITTLE),
        ("--circles 0 1", LITTLE),
        ("--circles 3 3", LITTLE),
        ("--size 32 --radius 2 6", "--train-size 64 is larger than --size 32; take at most that."),
        ("--size 32 --radius 2 6 --recipe report", "--train-size 128 is larger than --size 32; take at most that."),
    ],
)
def test_a_training_size_that_does_not_suit_the_circles_is_refused(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        unet.parse_args(flags.split())
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_fixed_images_come_back_in_every_epoch_in_another_order():
    source = unet.circles(unet.parse_args([*SMALL, "--train-images", "6", "--batch-size", "6", "--fixed-images"]))
    first, second = (next(source.batches(epoch))[0] for epoch in (0, 1))
    assert (first != second).any()
    np.testing.assert_array_equal(np.sort(first.sum(axis=(1, 2, 3))), np.sort(second.sum(axis=(1, 2, 3))))


def test_the_images_of_an_epoch_depend_on_nothing_but_seed_and_epoch():
    source = unet.circles(unet.parse_args(SMALL))
    for one, other in zip(source.batches(3), source.batches(3), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_the_recipe_for_photographs_draws_stretched_images_of_many_kinds():
    args = unet.parse_args(["--recipe", "photographs", "--train-images", "16"])
    images, masks = unet.make_circles(args, 16, unet.TEST)
    low, high = np.percentile(images, (1, 99), axis=(1, 2, 3))
    assert low.max() < 0.05 and high.min() > 0.9
    assert len({round(float(mask.mean()), 3) for mask in masks}) > 8


def test_a_run_writes_its_files(small_run):
    folder, scores, _, console = small_run
    files = {path.name for path in (folder / "out").iterdir()}
    pictures = {"curves.png", "predictions.png", "index.html"}
    assert files == {"history.json", "model.keras", "per_image.csv", "scores.json", *pictures}
    results = json.loads((folder / "out" / "scores.json").read_text())
    assert results["test"] == scores
    assert results["baselines"]["all background"]["image_dice"] == pytest.approx(0, abs=1e-5)
    assert all(name in console for name in ("all background", "best global threshold", "U-Net", "mlflow ui"))
    rows = (folder / "out" / "per_image.csv").read_text().splitlines()
    assert len(rows) == 1 + 6


def test_a_small_training_lowers_the_loss(small_run):
    history = json.loads((small_run[0] / "out" / "history.json").read_text())
    assert history["epoch"] == [1, 2, 3] and history["loss"][2] < history["loss"][0]


def test_a_run_is_tracked_with_each_metric_at_each_epoch(small_run):
    import mlflow

    folder, scores, run, _ = small_run
    history = json.loads((folder / "out" / "history.json").read_text())
    client = mlflow.MlflowClient()
    for name in set(history) - {"epoch"}:
        tracked = client.get_metric_history(run.info.run_id, name)
        assert [metric.step for metric in tracked] == [1, 2, 3]
        np.testing.assert_allclose([metric.value for metric in tracked], history[name])
    assert run.info.status == "FINISHED" and run.info.run_name == "small"
    assert run.data.metrics["test_image_dice"] == pytest.approx(scores["image_dice"])
    assert run.data.params["seed"] == "0" and run.data.params["loss"] == "dice+ce"
    assert {"keras.version", "tensorflow.version", "device"} <= set(run.data.tags)
    assert {tag.value for data in run.inputs.dataset_inputs for tag in data.tags} >= {"training", "validation", "test"}
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"curves.png", "predictions.png", "index.html", "scores.json", "history.json", "per_image.csv"} <= artifacts


def test_the_tracked_model_and_the_saved_one_are_the_same(small_run):
    import keras
    import mlflow.keras

    folder, _, run, _ = small_run
    saved = keras.models.load_model(folder / "out" / "model.keras")
    tracked = mlflow.keras.load_model(f"runs:/{run.info.run_id}/model")
    assert saved.input_shape == (None, None, None, 1)  # of any size
    found = model_file.read_preprocessing(folder / "out" / "model.keras")
    assert found["size"] == [32, 32] and found["divisor"] == 8
    image = np.random.default_rng(0).random((1, 32, 32, 1), "float32")
    np.testing.assert_allclose(saved.predict(image, verbose=0), tracked.predict(image, verbose=0), rtol=1e-6)


def test_the_saved_model_loads_in_a_fresh_process_that_knows_nothing_of_the_lab(small_run):
    code = "import keras; m = keras.models.load_model('out/model.keras'); print(m.count_params())"
    done = subprocess.run([sys.executable, "-c", code], cwd=small_run[0], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [str(unet.build_unet((32, 32, 1), filters=4).count_params())], done.stderr


def test_a_store_that_breaks_during_training_leaves_complete_files_and_a_warning(
    store, quick_training, monkeypatch, capsys
):
    train = experiment.train

    def train_and_break(*arguments, **more):
        history = train(*arguments, **more)
        for file in Path().glob("mlflow.db*"):
            file.write_bytes(b"broken")
        return history

    monkeypatch.setattr(experiment, "train", train_and_break)
    unet.main([*SMALL, "--epochs", "1", "--train-images", "4", "--precision", "float32", "--out-dir", "out"])
    assert len(list(Path("out").iterdir())) == 8  # and what the store missed
    assert "not recorded in MLflow run" in capsys.readouterr().err


def stop_script(*flags, until, signum):
    """Run the script, stopped by a signal once it prints `until`; its exit code and console."""
    # A shell's background job ignores Ctrl-C, and so would its children.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-u", unet.__file__, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear,
    )
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if until in line:
                process.send_signal(signum)
                break
        lines.append(process.communicate(timeout=90)[0])
    finally:
        process.kill()
    return process.returncode, "".join(lines)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_stopped_run_goes_on_to_the_same_weights_and_is_one_run_in_mlflow(store, small_run, capsys):
    """Killed in its second epoch, stopped by Ctrl-C in its third, and ended in another process."""
    import keras
    import mlflow

    flags, whole = [*SMALL, *FLAGS, "--out-dir", "out"], small_run[0] / "out"

    def status():
        return [run.info.status for run in mlflow.search_runs(experiment_names=[unet.EXPERIMENT], output_format="list")]

    def kept():
        return {path.name for path in Path("out").iterdir() if not path.name.startswith(".")}

    def refusal(*more):
        with pytest.raises(SystemExit) as stop:
            unet.main([*flags, *more])
        assert stop.value.code == 2
        return capsys.readouterr().err

    code, _ = stop_script(*flags, until="Epoch 2/3", signum=signal.SIGKILL)
    assert (code, kept(), status()) == (-9, {"checkpoint-000001.npz"}, ["RUNNING"])
    code, console = stop_script(*flags, "--resume", until="Epoch 3/3", signum=signal.SIGINT)
    assert "Going on after epoch 1." in console and "Epoch 1/3" not in console
    assert "2 of 3 epochs are kept in out: --resume." in console
    assert (code, kept(), status()) == (130, {"checkpoint-000001.npz", "checkpoint-000002.npz"}, ["KILLED"])
    with deterministic_once():
        both_ways = refusal()
        assert "--resume" in both_ways and "--overwrite" in both_ways
        assert "filters was 4, is 8" in refusal("--filters", "8", "--resume")
        unet.main([*flags, "--resume"])
    console = capsys.readouterr().out
    assert "Going on after epoch 2." in console and "Epoch 2/3" not in console
    one, other = (keras.models.load_model(folder / "model.keras").get_weights() for folder in (whole, Path("out")))
    for expected, found in zip(one, other, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert Path("out/history.json").read_text() == (whole / "history.json").read_text()
    assert {path.name for path in Path("out").iterdir()} == {path.name for path in whole.iterdir()}
    (run,) = mlflow.search_runs(experiment_names=[unet.EXPERIMENT], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_image_dice")
    assert run.info.status == "FINISHED" and [metric.step for metric in history] == [1, 2, 3]


def test_a_finished_run_is_not_trained_again(small_run, monkeypatch, capsys):
    folder, scores, _, _ = small_run
    monkeypatch.chdir(folder)
    with deterministic_once():
        assert unet.main([*SMALL, *FLAGS, "--out-dir", "out", "--resume"]) == pytest.approx(scores)
    assert capsys.readouterr().out == "The run in out is finished: see out/scores.json.\n"


def test_a_training_that_diverges_is_one_sentence_exit_code_1_and_files(store, quick_training, capsys):
    flags = "--optimizer adam --schedule constant --learning-rate 1e37 --epochs 2 --train-images 8 --out-dir out"
    with pytest.raises(SystemExit) as stop:
        unet.main([*SMALL, *flags.split(), "--precision", "float32"])
    assert stop.value.code == 1 and "became NaN or infinite" in capsys.readouterr().err
    assert json.loads(Path("out/scores.json").read_text())["failure"].startswith("The loss became NaN")
    assert Path("out/curves.png").exists() and not list(Path("out").glob("checkpoint*"))


def test_a_plot_that_fails_costs_the_plot_alone(store, quick_training, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("no font")

    monkeypatch.setattr(unet.plots, "plot_predictions", fail)
    with pytest.raises(SystemExit) as stop:
        unet.main([*SMALL, *["--epochs", "1", "--train-images", "4", "--precision", "float32", "--out-dir", "out"]])
    assert stop.value.code == 1 and "predictions.png could not be written (no font)." in capsys.readouterr().err
    assert {"model.keras", "scores.json", "curves.png"} <= {path.name for path in Path("out").iterdir()}


@pytest.fixture
def own_pictures(tmp_path, quick_training):
    """Six pictures of bright squares and their masks."""
    rng = np.random.default_rng(0)
    for name in ("pictures", "masks"):
        (tmp_path / name).mkdir()
    for i in range(6):
        mask = np.zeros((40, 40), bool)
        mask[8 : 20 + i, 8:20] = True
        noisy = np.where(mask, 180, 60) + rng.integers(0, 30, mask.shape)
        Image.fromarray(noisy.astype(np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    return "--images pictures --masks masks --size 32 --filters 4 --epochs 1 --train-images 8 --precision float32"


def test_folds_test_every_picture_once_and_give_mean_and_spread(store, own_pictures, capsys):
    import mlflow

    mean = unet.main([*own_pictures.split(), "--folds", "2", "--out-dir", "out"])
    tested = [json.loads(Path(f"out/fold-{k}/split.json").read_text())["test"] for k in (1, 2)]
    assert sorted(sum(tested, [])) == [f"{i}.png" for i in range(6)]
    found = json.loads(Path("out/folds.json").read_text())
    both = [fold["image_dice"] for fold in found["folds"]]
    assert mean["image_dice"] == pytest.approx(np.mean(both))
    assert found["standard_deviation"]["image_dice"] == pytest.approx(np.std(both, ddof=1))
    assert "standard deviation" in capsys.readouterr().out
    runs = mlflow.search_runs(experiment_names=[unet.EXPERIMENT], output_format="list")
    assert sorted(run.info.run_name[-11:] for run in runs) == ["fold 1 of 2", "fold 2 of 2"]


def test_own_pictures_are_tested_whole_and_score_as_they_are_predicted(store, own_pictures, capsys):
    for i in range(6):  # whichever are drawn, none holds an object but one, which is larger than a tile must be
        side = 40 if i else 90
        mask = np.zeros((side, side + 8), bool)
        mask[20:70, 8:60] = not i
        picture = np.random.default_rng(i).integers(0, 99, mask.shape) + 99 * mask
        Image.fromarray(picture.astype(np.uint8)).save(f"pictures/{i}.png")
        Image.fromarray(mask).save(f"masks/{i}.png")
    for seed in range(99):
        flags = [*own_pictures.split(), "--seed", str(seed)]
        with contextlib.suppress(ValueError):  # the picture with the object has to train
            parts = unet.split_pictures(unet.parse_args(flags))[1][0]
            break
    tested = [sample.name for sample in parts["test"]]
    scores = unet.main([*flags, "--out-dir", "out"])
    said = capsys.readouterr().out
    assert "Test set, 1 picture, 1 without any object, in " in said
    rows = list(csv.DictReader(Path("out/per_image.csv").read_text().splitlines()))
    assert [(row["image"], row["width"], row["height"]) for row in rows] == [(tested[0], "48", "40")]
    assert "surface" not in rows[0] and float(rows[0]["image_dice"]) == scores["image_dice"]
    for baseline in ("all background", "best threshold, raw values"):
        assert baseline in said
    predict.main(["out/model.keras", f"pictures/{tested[0]}", "--masks", "masks", "--out-dir", "predicted"])
    (row,) = csv.DictReader(Path("predicted/predictions.csv").read_text().splitlines())
    assert float(row["dice"]) == pytest.approx(scores["image_dice"], abs=1e-6)


def test_a_check_writes_what_was_read_and_ends_without_a_run(store, own_pictures, capsys):
    assert unet.main([*own_pictures.split(), "--check", "--out-dir", "out"]) == {}
    said = capsys.readouterr().out
    assert {path.name for path in Path("out").iterdir()} == {"dataset.png", "split.json"}
    assert said.startswith("4 pictures for training, 1 for validation, 1 for the test; split.json names them.\n")
    assert "Validation takes 4 crops of 32 x 32 pixels, 0 of them without an object" in said
    assert "trained on 32 x 32 pixels in grey, validated on 32 x 32." in said and "Smaller than" not in said
    size = Path("mlflow.db").stat().st_size
    assert unet.main([*own_pictures.split(), "--check", "--folds", "2", "--out-dir", "folds"]) == {}
    assert sorted(path.name for path in Path("folds").iterdir()) == ["fold-1", "fold-2"]
    assert Path("mlflow.db").stat().st_size == size
    split = Path("out/split.json").read_text()
    unet.main([*own_pictures.split(), "--out-dir", "out"])
    trained = capsys.readouterr().out
    assert all(line in trained for line in said.splitlines()[:4]) and Path("out/split.json").read_text() == split
    with pytest.raises(SystemExit) as stop:
        unet.main([*own_pictures.split(), "--check", "--out-dir", "out"])
    assert stop.value.code == 2 and "holds the results of a training" in capsys.readouterr().err


def test_what_was_read_is_shown_before_the_training_begins(store, own_pictures, monkeypatch):
    def stop(*arguments, **more):
        assert {path.name for path in Path("out").glob("[!.]*")} == {"dataset.png", "split.json"}
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", stop)
    with pytest.raises(SystemExit) as ended:
        unet.main([*own_pictures.split(), "--out-dir", "out"])
    assert ended.value.code == 130


def test_pictures_smaller_than_a_crop_are_counted(store, own_pictures):
    flags = own_pictures.replace("--size 32", "--size 48").split()
    classes, folds, size = unet.split_pictures(unet.parse_args(flags))
    remarks = unet.own_pictures(unet.parse_args(flags), classes, folds[0], size).remarks
    small = "Smaller than 48 x 48 pixels: 6 of 6 pictures; the part outside them is not labelled, and changes "
    assert f"{small}no loss and no score." in remarks


def test_a_training_starts_from_another_ones_weights_and_refuses_another_network(store, own_pictures, capsys):
    import keras

    args = unet.parse_args(own_pictures.split())
    classes, folds, size = unet.split_pictures(args)
    source = unet.own_pictures(args, classes, folds[0], size)
    keras.utils.set_random_seed(99)  # unlike the seed of the second training
    first = unet.build(args, source)
    experiment.save_model(first, source, Path("first.keras"))  # as a training does
    flags = [*own_pictures.split(), "--start-from", "first.keras", "--learning-rate", "1e-12"]
    unet.main([*flags, "--out-dir", "second"])
    second = model_file.load_model(Path("second/model.keras")).network
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    with pytest.raises(SystemExit) as stop:
        unet.main([*flags, "--filters", "8", "--out-dir", "third"])
    assert stop.value.code == 2 and "holds another network" in capsys.readouterr().err
    assert not Path("third").exists()


@pytest.fixture
def small_picture(tmp_path, monkeypatch):
    """One picture of 256 x 512 pixels, with bright squares all over; the flags that name it."""
    monkeypatch.chdir(tmp_path)
    mask = np.kron(np.indices((16, 32)).sum(axis=0) % 2, np.ones((16, 16))) == 1
    for name, image in (("pictures", np.where(mask, 200, 50).astype(np.uint8)), ("masks", mask)):
        Path(name).mkdir()
        Image.fromarray(image).save(f"{name}/a.png")
    return "--images pictures --masks masks"


@pytest.mark.parametrize(("flags", "size"), [
    ("", 96),  # five crops lie along 512 pixels up to 102.4, and sides are divisible by 8
    ("--folds 2", 96),
    ("--folds 4", 80),  # four corners need three crops along each side: up to 85.3
    ("--size 64", 64),
])  # fmt: skip
def test_one_small_picture_is_split_by_the_largest_crops_or_as_was_asked_for(small_picture, flags, size):
    args = unet.parse_args(f"{small_picture} {flags}".split())
    classes, folds, found = unet.split_pictures(args)
    source = unet.own_pictures(args, classes, folds[0], found)
    assert found == size and source.settings["size"] == size
    assert source.sides == source.validation[0].shape[1:3] == (size, size)
    assert source.remarks[0] == "1 region for training, 1 for validation, 1 for the test; split.json names them."
    assert source.remarks[1].endswith("the test takes each region as a whole.")
    assert [test.name for test in source.test] == [test.name for test in folds[0]["test"]]


@pytest.mark.parametrize("flags", ["--size 128", "--train-size 128", "--recipe lab"])
def test_a_size_that_was_asked_for_is_refused_where_one_picture_is_too_small(small_picture, flags):
    with pytest.raises(ValueError, match="with crops of 128 pixels.*Take a smaller --size"):
        unet.split_pictures(unet.parse_args(f"{small_picture} {flags}".split()))


def test_three_pictures_are_never_split_and_keep_the_usual_size(small_picture):
    for name in ("pictures", "masks"):
        image = Image.open(f"{name}/a.png")
        image.crop((16, 0, 512, 256)).save(f"{name}/b.png")
        image.crop((32, 0, 512, 256)).save(f"{name}/c.png")
    assert unet.split_pictures(unet.parse_args(small_picture.split()))[2] == 128


def test_the_size_that_is_taken_is_said_in_one_line_and_recorded(store, quick_training, small_picture, capsys):
    flags = "--filters 1 --epochs 1 --train-images 2 --val-images 1 --precision float32 --out-dir out"
    unet.main([*small_picture.split(), *flags.split()])
    assert capsys.readouterr().out.startswith("--size 96: the largest at which these few small pictures")
    assert json.loads(Path("out/scores.json").read_text())["settings"]["size"] == "96"
