"""The network, and the script run small from end to end."""

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

import unet_segmentation as unet

SMALL = ["--size", "32", "--radius", "2", "6", "--filters", "4", "--val-images", "4", "--test-images", "6"]
BAD = [
    ("--size 100", "divisible"),
    ("--radius 8 80", "does not fit"),
    ("--epochs 0", "at least 1"),
    ("--train-images -1", "at least 1"),
    ("--val-images 0", "at least 1"),
    ("--batch-size 0", "at least 1"),
    ("--filters 0", "at least 1"),
    ("--circles 2 1", "in this order"),
    ("--noise -1", "noise"),
    ("--contrast 0", "above 0"),
    ("--learning-rate 0", "above 0"),
    ("--learning-rate nan", "above 0"),
    ("--seed -1", "seed"),
    ("--loss x", "invalid choice"),
]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, migrated_database):
    """One run of the script on 32x32 images, in a store of its own: (folder, scores, run, console)."""
    import contextlib
    import io

    import mlflow

    folder, console = tmp_path_factory.mktemp("small"), io.StringIO()
    shutil.copy(migrated_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(console):
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        flags = "--epochs 3 --train-images 18 --batch-size 4 --precision float32 --run-name small"  # 18 = 4 * 4 + 2
        scores = unet.main([*SMALL, *flags.split(), "--out-dir", "out"])
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


def test_ordinary_images_are_not_called_strange(tmp_path):
    args = unet.parse_args(["--out-dir", str(tmp_path)])
    seen = unet.pictures.describe_training(unet.seen_in_training(args), unet.preprocessing(args))["seen"]
    images, _ = unet.make_data(args, 200, unet.TEST)
    assert [i for i in range(200) if unet.pictures.describe_strangeness(images[i], seen)] == []


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


IMAGES, MASKS = np.full((2, 8, 8, 1), 0.5), np.zeros((2, 8, 8, 1))


@pytest.mark.parametrize(
    ("images", "masks", "words"),
    [
        (IMAGES, MASKS + 255, "exactly 0 or 1"),
        (IMAGES * np.nan, MASKS, "replace NaN"),
        (IMAGES * 255, MASKS, "Divide 8-bit images by 255"),
        (IMAGES[..., 0], MASKS[..., 0], "rank 4"),
        (IMAGES, MASKS[:, :4], "do not belong together"),
    ],
)
def test_arrays_that_cannot_be_scored_are_refused(images, masks, words):
    with pytest.raises(ValueError, match=words):
        unet.lab_results.check_arrays(images, masks)


def test_a_batch_larger_than_the_training_set_is_the_set():
    args = unet.parse_args([*SMALL, "--train-images", "3", "--batch-size", "8"])
    batches = unet.training_batches(args)
    (first, _), (second, _) = next(batches), next(batches)
    assert first.shape == second.shape == (3, 16, 16, 1) and (first != second).any()


@pytest.mark.parametrize(
    ("flags", "side"),
    [
        ("", 64),
        ("--radius 12 12", 64),
        ("--radius 25 25", 128),  # pi * 25^2 pixels are more than a quarter of 64^2: no room
        ("--size 40 --radius 2 6", 24),  # half, up to the next multiple of 8
        ("--size 40 --radius 1 12", 40),  # 2 * 12 + 1 pixels do not fit into 24
        ("--no-small-images", 128),
        ("--recipe report", 128),
        ("--circles 0 1", 128),
        ("--varied", 128),
    ],
)
def test_training_images_have_half_the_side_where_one_circle_has_room(flags, side, tmp_path):
    args = unet.parse_args([*flags.split(), "--train-images", "4", "--out-dir", str(tmp_path)])
    assert unet.training_side(args) == side
    images, masks = next(unet.training_batches(args))
    assert images.shape == masks.shape == (4, side, side, 1)
    assert unet.make_data(args, 1, unet.TEST)[0].shape == (1, args.size, args.size, 1)


def test_fixed_images_come_back_in_every_epoch_in_another_order():
    args = unet.parse_args([*SMALL, "--train-images", "6", "--batch-size", "6", "--fixed-images"])
    batches = unet.training_batches(args)
    first, second = (next(batches)[0] for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(np.sort(first.sum(axis=(1, 2, 3))), np.sort(second.sum(axis=(1, 2, 3))))


def test_scores_are_those_of_scikit_learn_image_by_image():
    from sklearn.metrics import f1_score, jaccard_score

    rng = np.random.default_rng(0)
    masks = (rng.random((7, 16, 16, 1)) < 0.3).astype("float32")
    probs = rng.random((7, 16, 16, 1)).astype("float32")
    scores, rows = unet.lab_results.score(masks, probs)
    pairs = [(m.ravel(), p.ravel() >= 0.5) for m, p in zip(masks, probs, strict=True)]
    dice, iou = ([f(*pair) for pair in pairs] for f in (f1_score, jaccard_score))
    np.testing.assert_allclose([row["image_dice"] for row in rows], dice, atol=1e-5)
    np.testing.assert_allclose([row["image_iou"] for row in rows], iou, atol=1e-5)
    assert scores["image_dice"] == pytest.approx(np.mean(dice), abs=1e-5)
    assert scores["image_dice_p5"] == pytest.approx(np.percentile(dice, 5), abs=1e-5)
    assert scores["image_iou_min"] == pytest.approx(min(iou), abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "probs", "words"),
    [(0.1, 0.0, "all background"), (0.1, 1.0, "all foreground"), (float("nan"), 0.5, "NaN")],
)
def test_a_collapsed_training_is_said_in_words(loss, probs, words):
    masks = np.zeros((2, 8, 8, 1))
    masks[:, 2:4] = 1
    assert words in unet.lab_results.describe_failure({"loss": [loss]}, masks, np.full_like(masks, probs))
    assert unet.lab_results.describe_failure({"loss": [0.1]}, masks, masks) is None


def test_a_run_writes_its_files(small_run):
    folder, scores, _, console = small_run
    files = {path.name for path in (folder / "out").iterdir()}
    assert files == {"curves.png", "history.json", "model.keras", "per_image.csv", "predictions.png", "scores.json"}
    results = json.loads((folder / "out" / "scores.json").read_text())
    assert results["test"] == scores
    assert results["baselines"]["all background"]["image_dice"] == pytest.approx(0, abs=1e-5)
    assert all(name in console for name in ("all background", "best global threshold", "U-Net, epoch", "mlflow ui"))
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
    assert run.data.params["seed"] == "0" and run.data.params["loss"] == "dice+bce"
    assert {"keras.version", "tensorflow.version", "device"} <= set(run.data.tags)
    assert {tag.value for data in run.inputs.dataset_inputs for tag in data.tags} >= {"training", "validation", "test"}
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"curves.png", "predictions.png", "scores.json", "history.json", "per_image.csv"} <= artifacts


def test_the_tracked_model_and_the_saved_one_are_the_same(small_run):
    import keras
    import mlflow.keras

    folder, _, run, _ = small_run
    saved = keras.models.load_model(folder / "out" / "model.keras")
    tracked = mlflow.keras.load_model(f"runs:/{run.info.run_id}/model")
    assert saved.input_shape == (None, 32, 32, 1)  # of --size, though trained on images of 16x16
    assert unet.model_file.read_preprocessing(folder / "out" / "model.keras")["size"] == [32, 32]
    image = np.random.default_rng(0).random((1, 32, 32, 1), "float32")
    np.testing.assert_allclose(saved.predict(image, verbose=0), tracked.predict(image, verbose=0), rtol=1e-6)


def test_the_saved_model_loads_in_a_fresh_process_that_knows_nothing_of_the_lab(small_run):
    code = "import keras; m = keras.models.load_model('out/model.keras'); print(m.count_params())"
    done = subprocess.run([sys.executable, "-c", code], cwd=small_run[0], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [str(unet.build_unet((32, 32, 1), filters=4).count_params())], done.stderr


def test_a_store_that_breaks_during_training_leaves_complete_files_and_a_warning(store, monkeypatch, capsys):
    train = unet.train

    def train_and_break(*arguments):
        history = train(*arguments)
        for file in Path().glob("mlflow.db*"):
            file.write_bytes(b"broken")
        return history

    monkeypatch.setattr(unet, "train", train_and_break)
    unet.main([*SMALL, "--epochs", "1", "--train-images", "4", "--precision", "float32", "--out-dir", "out"])
    assert len(list(Path("out").iterdir())) == 6
    assert "not recorded in MLflow run" in capsys.readouterr().err


SAME_TWICE = """
import json, keras, unet_segmentation as unet
from lab import backend
backend.make_deterministic()
args = unet.parse_args("--size 32 --radius 3 8 --filters 4 --epochs 2 --train-images 10 --val-images 4".split())
def run():
    keras.utils.set_random_seed(args.seed)
    return unet.train(unet.build_unet((32, 32, 1), 4, depth=1), args, unet.make_data(args, 4, unet.VALIDATION))
print(json.dumps([run(), run()]))
"""


def test_the_same_seed_gives_the_same_bits(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(unet.__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", SAME_TWICE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first == second


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_training_is_killed_and_leaves_no_file(store):
    import mlflow

    script = [sys.executable, "-u", unet.__file__, *SMALL, "--epochs", "1000", "--out-dir", "out"]
    # A shell's background job ignores Ctrl-C, and so would its children.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=hear
    )
    try:
        for line in process.stdout:
            if "Epoch 2/" in line:
                process.send_signal(signal.SIGINT)
                break
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert list(Path("out").iterdir()) == []
    runs = mlflow.search_runs(experiment_names=[unet.EXPERIMENT], output_format="list")
    assert [run.info.status for run in runs] == ["KILLED"]
