"""Sets of files that are exchanged as a whole, scores against other libraries, and pictures of anything."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.evaluate import plots, scoring
from lab.system import errors, output_files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Sets of files


def test_a_set_takes_the_place_of_the_former_one_as_a_whole(tmp_path):
    for name in ("scores.json", "split.json", "notes.txt"):
        (tmp_path / name).write_text("old")
    with output_files.written_aside(tmp_path, ("scores.json", "split.json")) as aside:
        (aside / "scores.json").write_text("new")
        assert (tmp_path / "scores.json").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"scores.json": "new", "notes.txt": "old"}


@pytest.mark.parametrize("folder", ["out", "sub/../out"])
def test_a_set_reaches_a_folder_that_is_named_from_where_one_is(tmp_path, monkeypatch, folder):
    """Also where `mkdtemp` answers with an absolute path, as it does from Python 3.12 on."""
    make = output_files.tempfile.mkdtemp
    monkeypatch.setattr(output_files.tempfile, "mkdtemp", lambda **options: os.path.abspath(make(**options)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with output_files.written_aside(Path(folder), ("scores.json",)) as aside:
        (aside / "scores.json").write_text("new")
    assert names(tmp_path / "out") == ["scores.json"]


def test_an_interruption_leaves_the_former_set_and_nothing_else(tmp_path):
    (tmp_path / "scores.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), output_files.written_aside(tmp_path, ("scores.json",)) as aside:
        (aside / "scores.json").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["scores.json"] and (tmp_path / "scores.json").read_text() == "old"


@pytest.mark.parametrize("moved", range(6))
def test_a_kill_while_a_set_moves_never_mixes_two_sets_and_the_next_call_finishes(tmp_path, monkeypatch, moved):
    old, new = ("a", "b", "c"), ("a", "b")
    for name in old:
        (tmp_path / name).write_text("old")
    complete = tmp_path / f"{output_files.COMPLETE}1"
    complete.mkdir()
    (complete / ".names").write_text(json.dumps(old))
    for name in new:
        (complete / name).write_text("new")
    left = iter(range(moved))

    def counted(call):
        def step(*arguments, **options):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(output_files.os, "replace", counted(output_files.os.replace))
        patch.setattr(output_files.Path, "unlink", counted(output_files.Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            output_files.move_into_place(complete, tmp_path)
    assert len({(tmp_path / name).read_text() for name in old if (tmp_path / name).exists()}) <= 1
    output_files.move_into_place(complete, tmp_path)
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {"a": "new", "b": "new"}


def test_results_go_to_a_named_second_place_where_the_folder_is_gone_for_good(tmp_path, capsys):
    (tmp_path / "out").write_text("a file now")
    with output_files.written_aside(tmp_path / "out") as aside:
        (aside / "scores.json").write_text("new")
    assert (aside / "scores.json").read_text() == "new" and str(aside) in capsys.readouterr().err


def test_a_folder_that_was_removed_meanwhile_is_made_again(tmp_path):
    with output_files.written_aside(tmp_path / "removed") as aside:
        (aside / "scores.json").touch()
    assert names(tmp_path / "removed") == ["scores.json"]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    for text in ("first", "second"):
        with output_files.replaced(path) as aside:
            assert aside.parent == tmp_path and aside.suffix == path.suffix and not aside.exists()
            aside.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    with pytest.raises(OSError, match="No space"), output_files.replaced(path) as aside:
        aside.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "second" and names(tmp_path) == ["a.json"]


def test_what_a_killed_process_left_beside_a_file_is_not_added_to(tmp_path):
    (tmp_path / f"{output_files.PARTIAL}{os.getpid()}-a").write_text("left")  # by one of the same number
    with output_files.replaced(tmp_path / "a") as aside, open(aside, "a") as file:
        file.write("new")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (OSError("\n  one\ntwo"), "one"),
        (MemoryError(), "MemoryError"),
        (RuntimeError(" \n"), "RuntimeError"),
        ("a message\nof a log", "a message"),
    ],
)
def test_the_first_line_of_an_error_is_its_first_words_or_its_type(error, line):
    assert errors.first_line(error) == line


def test_a_piece_that_fails_costs_itself_alone_and_leaves_no_half(tmp_path):
    def half(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    failures = output_files.write_pieces(tmp_path, {"a": half, "b": lambda path: path.write_text("whole")})
    assert names(tmp_path) == ["b"]
    assert failures == ["a could not be written ([Errno 28] No space left on device)."]


def test_json_holds_null_for_what_it_has_no_number_for(tmp_path):
    output_files.write_json(tmp_path / "a.json", {"loss": [np.float32(1), math.nan, math.inf], "folder": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": [1, None, None], "folder": str(tmp_path)}


# Scores


@pytest.mark.parametrize("ndim", [2, 3])
def test_scores_are_those_of_scikit_learn_image_by_image(ndim):
    from sklearn.metrics import f1_score, jaccard_score

    rng = np.random.default_rng(0)
    masks = (rng.random((7, *[16, 12, 8][:ndim], 1)) < 0.3).astype("float32")
    probs = rng.random(masks.shape).astype("float32")
    scores, rows = scoring.score(masks, probs)
    pairs = [(m.ravel(), p.ravel() >= 0.5) for m, p in zip(masks, probs, strict=True)]
    dice, iou = ([f(*pair) for pair in pairs] for f in (f1_score, jaccard_score))
    np.testing.assert_allclose([row["image_dice"] for row in rows], dice, atol=1e-5)
    np.testing.assert_allclose([row["image_iou"] for row in rows], iou, atol=1e-5)
    assert scores["image_dice"] == pytest.approx(np.mean(dice), abs=1e-5)
    assert scores["image_dice_p5"] == pytest.approx(np.percentile(dice, 5), abs=1e-5)
    assert scores["image_iou_min"] == pytest.approx(min(iou), abs=1e-5)


def test_probabilities_that_are_no_numbers_count_as_nothing_found():
    masks = np.ones((1, 4, 4, 1), "float32")
    scores, _ = scoring.score(masks, np.full_like(masks, np.nan))
    assert scores["image_dice"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("masks", "probs", "words"),
    [
        (np.full((2, 8, 8, 1), 255.0), np.zeros((2, 8, 8, 1)), "exactly 0 or 1"),
        (np.zeros((2, 8, 8, 1)), np.full((2, 8, 8, 1), 2.0), "in .0, 1."),
        (np.zeros((2, 8, 8, 1)), np.zeros((2, 4, 8, 1)), "same shape"),
    ],
)
def test_arrays_that_cannot_be_scored_are_refused(masks, probs, words):
    with pytest.raises(ValueError, match=words):
        scoring.score(masks, probs)


@pytest.mark.parametrize("brighter", [True, False])
def test_the_threshold_finds_bright_and_dark_objects_alike(brighter):
    masks = np.zeros((3, 8, 8, 1), "float32")
    masks[:, 2:5, 3:6] = 1
    images = np.where(masks == brighter, 0.7, 0.2).astype("float32")
    found = scoring.baselines((images, masks), (images, masks))["best global threshold"]
    assert found["brighter"] == brighter and found["image_dice"] == pytest.approx(1)
    assert 0.2 <= found["threshold"] <= 0.7


@pytest.mark.parametrize("channels", [1, 3])
def test_the_threshold_is_the_best_of_all_that_are_tried_one_by_one(channels):
    """Grey values on the thresholds themselves too."""
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 101, (4, 12, 9, channels)) / 100).astype("float32")
    masks = (images.mean(axis=-1, keepdims=True) + rng.normal(0, 0.2, (4, 12, 9, 1)) > 0.6).astype("float32")
    sides = [(i / 100, brighter) for brighter in (True, False) for i in range(101)]
    tried = np.concatenate([scoring.above(images, *side) for side in sides])
    rows = scoring.rows_of_images(np.tile(masks, (len(sides), 1, 1, 1)), tried)
    means = np.reshape([row["image_dice"] for row in rows], (len(sides), len(masks))).mean(axis=1)
    dice = dict(zip(sides, means, strict=True))
    side, value = scoring.best_threshold(images, masks)
    assert side == max(dice, key=dice.get) and value == pytest.approx(max(dice.values()), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "probs", "words"),
    [(0.1, 0.0, "all background"), (0.1, 1.0, "all foreground"), (math.nan, 0.5, "NaN"), (0.1, math.nan, "NaN")],
)
def test_a_training_that_ended_in_nothing_is_said_in_words(loss, probs, words):
    masks = np.zeros((2, 8, 8, 1))
    masks[:, 2:4] = 1
    found = scoring.confusion(masks, np.full_like(masks, probs))
    assert words in scoring.describe_failure({"loss": [loss]}, found, not math.isnan(probs))
    assert scoring.describe_failure({"loss": [0.1]}, scoring.confusion(masks, masks)) is None


@pytest.mark.parametrize(
    ("settings", "num_seen", "advised", "spared"),
    [
        ({"loss": "dice+ce"}, 4, ["Try training longer (--epochs)", "--smooth 1e-6"], ["dice+ce"]),
        ({"loss": "dice+ce"}, 3840, ["Try a lower --learning-rate"], ["longer", "dice+ce"]),
        ({"loss": "pooled-dice"}, 3840, ["--loss dice+ce", "--smooth 1e-6"], ["longer"]),
        ({"loss": "dice", "smooth": 1e-6}, 3840, ["--loss dice+ce"], ["--smooth"]),
    ],
)
def test_the_advice_after_a_failure_is_not_what_was_done_already(settings, num_seen, advised, spared):
    masks = np.ones((2, 8, 8, 1))
    found = scoring.confusion(masks, np.zeros_like(masks))
    said = scoring.describe_failure({"loss": [0.1]}, found, settings=settings, num_seen=num_seen)
    assert all(words in said for words in advised) and not any(words in said for words in spared)


# Pictures


def history(**values):
    names = ("loss", "dice_coeff", "iou_metric", "image_dice", "image_iou")
    return {"epoch": [1, 2], **{prefix + name: [0.5, 0.9] for name in names for prefix in ("", "val_")}, **values}


@pytest.mark.parametrize("loss", [[0.7, 0.1], [math.nan, math.nan], [0.0, 0.0], [1e30, math.inf]])
def test_curves_are_drawn_whatever_the_numbers(tmp_path, loss):
    scores = {"val_image_dice": loss, "val_dice_coeff": loss, "image_dice": loss, "dice_coeff": loss}
    plots.plot_curves(history(loss=loss, val_loss=loss, **scores), tmp_path / "curves.png")
    assert np.asarray(Image.open(tmp_path / "curves.png")).std() > 10


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num", [1, 2, 5])
def test_predictions_are_drawn_for_few_images_and_many_grey_and_colour(tmp_path, num, channels):
    rng = np.random.default_rng(0)
    masks = (rng.random((num, 12, 20, 1)) < 0.3).astype("float32")
    rows = [("a", rng.random((12, 20, channels)), mask, rng.random(mask.shape)) for mask in masks]
    plots.plot_predictions(rows, tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 10


def test_examples_are_two_typical_results_and_the_two_worst():
    dice = np.linspace(0, 1, 21)[::-1]
    assert plots.choose_examples(dice) == [("typical", 7), ("typical", 13), ("worst", 20), ("worst", 19)]


def test_a_name_that_is_no_utf_8_is_kept_byte_by_byte(tmp_path):
    output_files.write_table([{"volume": os.fsdecode(b"t\xe9te.nii"), "dice": 1}], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b"volume,dice\r\nt\xe9te.nii,1\r\n"


def test_the_best_windows_of_grey_values_hold_what_they_were_chosen_for():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 20, 20))
    images = np.array([10, 20, 30])[labels][..., None] + rng.integers(-2, 3, (4, 20, 20, 1))
    masks = (labels[..., None] == np.arange(3)).astype(np.float32)
    windows = scoring.best_windows(images, masks)
    assert windows == [(18.0, 22.0, 1.0), (28.0, 32.0, 1.0)]
    np.testing.assert_array_equal(scoring.in_windows(images, windows), masks)
