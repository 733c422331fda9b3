"""predict.py and what is served with several classes: a network whose answer is known, the class by the grey value."""

import base64
import csv
import io
import json
import sys

import keras
import nibabel
import numpy as np
import pytest
import tifffile
from keras import layers
from PIL import Image

import predict
from lab.data import grey_values, pictures
from lab.data.classes import Classes, names_in
from lab.model import model_file

SEEN = {"1%": [0.0, 1.0], "50%": [0.0, 1.0], "99%": [0.0, 1.0]}
GREYS = np.array([25, 115, 205], np.uint8)  # of background, cell and wall
PALETTE = tuple(np.random.default_rng(0).integers(0, 256, 768).tolist())
RED_GREEN = Classes(("cell", "wall"), (0, 0xFF0000, 0x00FF00), "colour")
GAPS = Classes(("cell", "wall"), (0, 10, 20))
AFFINE = np.array([[0, 0, -2.0, 10], [-1.0, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 0, 1]])  # turned and mirrored


def save_model(path, known, ndim=2, levels=(0.1, 0.45, 0.8), size=16):
    """probs = softmax of 400 (2 c g - c^2) / 2 over classes of grey c: the class whose grey is the nearest one."""
    levels = np.array(levels)
    inputs = keras.Input((None,) * ndim + (1,))
    layer = (layers.Conv2D if ndim == 2 else layers.Conv3D)(len(levels), 1, activation="softmax", name="mask")
    network = keras.Model(inputs, layer(inputs))
    layer.set_weights([400 * levels.reshape((1,) * (ndim + 1) + (-1,)), -200 * levels**2])
    settings = {**grey_values.ABSOLUTE, "size": [size] * ndim, "seen": SEEN, **known.stored()}
    model_file.save_model(network, path, settings)
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "gaps.keras", GAPS)


def draw(folder, name="a.png"):
    """A picture with two cells and a wall; its labels."""
    labels = np.zeros((40, 60), np.uint8)
    labels[4:14, 5:15] = labels[20:24, 30:34] = 1
    labels[30:36, 2:58] = 2
    Image.fromarray(GREYS[labels]).save(folder / name)
    return labels


def run(model, inputs, out, *flags):
    return predict.main([str(model), *map(str, inputs), "--out-dir", str(out), *map(str, flags)])


def table(folder):
    return list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))


def refusal(capsys, *arguments):
    """What predict.py says on the way to exit code 2."""
    try:
        code = run(*arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# Masks


@pytest.mark.parametrize("known", [
    GAPS,
    Classes(("cell", "wall"), (3, 255, 7)),
    Classes(("cell", "wall"), (0, 10, 20), "palette", PALETTE),
    Classes(("cell", "wall"), (0, 10, 20), "palette", PALETTE, 255),
    RED_GREEN,
    Classes(("cell", "wall"), (0, 300, 40_000)),
], ids=lambda known: f"{known.kind} {known.values} {known.ignore}")  # fmt: skip
def test_the_users_own_values_come_back(known, tmp_path):
    labels = draw(tmp_path)
    model = save_model(tmp_path / "model.keras", known)
    assert run(model, [tmp_path / "a.png"], tmp_path / "out") == 0
    values, kind, palette = pictures.read_values(tmp_path / "out/a_mask.png")
    np.testing.assert_array_equal(values, np.array(known.values)[labels])
    np.testing.assert_array_equal(pictures.read_labels(tmp_path / "out/a_mask.png", known), labels)
    stored = "colour" if known.kind == "colour" else "palette" if max(known.values) < 256 else "grey"
    assert kind == stored and palette == (known.palette or palette)


def test_a_mask_opens_in_the_classes_colours(tmp_path):
    labels = draw(tmp_path)
    for known in (GAPS, RED_GREEN, Classes(("cell", "wall"), (0, 10, 20), "palette", PALETTE)):
        model = save_model(tmp_path / "model.keras", known)
        assert run(model, [tmp_path / "a.png"], tmp_path / "out") == 0
        seen = np.asarray(Image.open(tmp_path / "out/a_mask.png").convert("RGB"))
        background = known.palette[:3] if known.palette else (0, 0, 0)
        np.testing.assert_array_equal(seen, np.array([background, *known.colours])[labels])


def test_an_overlay_has_the_classes_colours_and_their_names_below(model_path, tmp_path):
    draw(tmp_path)
    Image.fromarray(np.full((5, 7), 205, np.uint8)).save(tmp_path / "small.png")
    assert run(model_path, [tmp_path / "a.png", tmp_path / "small.png"], tmp_path / "out") == 0
    for name, height, lines in (("a", 40, {4: 0, 30: 1}), ("small", 5, {})):
        shown = np.asarray(Image.open(tmp_path / f"out/{name}_overlay.png"))
        for line, label in lines.items():
            assert shown[line, 10].tolist() == list(GAPS.colours[label])
        strip = shown[height:].reshape(-1, 3).tolist()
        assert all(list(colour) in strip for colour in GAPS.colours) and [0, 0, 0] in strip
        assert shown.shape[1] > 90, "names need room"


def test_probabilities_are_a_file_for_each_class(model_path, tmp_path):
    labels = draw(tmp_path)
    assert run(model_path, [tmp_path / "a.png"], tmp_path / "out", "--probabilities") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*probability*")) == [
        "a_probability_cell.png", "a_probability_wall.png"
    ]  # fmt: skip
    for label, name in enumerate(GAPS.names, 1):
        kept = pictures.read_picture(tmp_path / f"out/a_probability_{name}.png")[..., 0]
        assert kept.dtype == np.uint16
        np.testing.assert_array_equal(kept > 2**15, labels == label)
    assert run(model_path, [tmp_path / "a.png"], tmp_path / "out") == 0
    assert not list((tmp_path / "out").glob("*probability*")), "those of a former run are gone"


def test_the_softmaxes_of_several_models_are_averaged(tmp_path):
    """A grey between two classes: one model calls it a cell, two call it a wall."""
    Image.fromarray(np.full((16, 16), 160, np.uint8)).save(tmp_path / "a.png")
    levels = ((0.1, 0.6, 0.95), (0.1, 0.2, 0.65), (0.1, 0.25, 0.65))
    models = [save_model(tmp_path / f"{i}.keras", GAPS, levels=each) for i, each in enumerate(levels)]
    for more, value in (([], 10), (models[1:], 20)):
        flags = ["--flips", "--probabilities", *(["--models", *more] if more else [])]
        assert run(models[0], [tmp_path / "a.png"], tmp_path / "out", *flags) == 0
        assert (np.asarray(Image.open(tmp_path / "out/a_mask.png")) == value).all()
    kept = pictures.read_picture(tmp_path / "out/a_probability_wall.png")
    np.testing.assert_allclose(kept / 65535, 2 / 3, atol=0.01)


# The table


def test_the_table_has_figures_for_each_class_and_blanks_where_it_is_not(model_path, tmp_path):
    labels = draw(tmp_path)
    Image.fromarray(np.full((20, 20), GREYS[0])).save(tmp_path / "empty.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    true = np.array(GAPS.values, np.uint8)[labels]
    true[true == 20] = 0  # a wall is predicted where none is
    true[4:14, 5:10] = 0  # of 116 pixels of cells, 66 are left: Dice 132 / 182
    Image.fromarray(true).save(masks / "a.png")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(masks / "empty.png")
    assert run(model_path, [tmp_path / "a.png", tmp_path / "empty.png"], tmp_path / "out", "--masks", masks) == 0
    row, empty = table(tmp_path / "out")
    assert list(row)[: len(predict.COLUMNS)] == list(predict.COLUMNS)
    assert float(row["foreground/cell"]) == pytest.approx(116 / 2400) and row["objects/cell"] == "2"
    assert float(row["foreground/wall"]) == pytest.approx(336 / 2400) and row["objects/wall"] == "1"
    assert float(row["foreground"]) == pytest.approx(452 / 2400) and row["objects"] == "3"
    assert float(row["diameter/wall"]) == pytest.approx(2 * np.sqrt(336 / np.pi))
    assert float(row["dice/cell"]) == pytest.approx(132 / 182) and float(row["dice/wall"]) == pytest.approx(0, abs=1e-6)
    assert float(row["dice"]) == pytest.approx(66 / 182) and float(row["iou"]) == pytest.approx(66 / 116 / 2)
    assert [empty[key] for key in ("dice", "iou", "dice/cell", "dice/wall", "diameter/wall")] == [""] * 5
    assert empty["objects/cell"] == "0" and float(empty["foreground/cell"]) == 0
    assert "--threshold" not in empty["remark"]


def test_objects_of_two_classes_that_touch_are_two(model_path, tmp_path):
    Image.fromarray(GREYS[np.repeat([[1, 2]], 10, axis=1).repeat(10, axis=0)]).save(tmp_path / "a.png")
    assert run(model_path, [tmp_path / "a.png"], tmp_path / "out") == 0
    assert table(tmp_path / "out")[0]["objects"] == "2"


@pytest.mark.parametrize("ndim", [2, 3])
def test_true_masks_may_lie_in_a_folder_for_each_class(ndim, tmp_path, capsys):
    model = save_model(tmp_path / "model.keras", Classes(("wall", "cell"), (0, 1, 2)), ndim)
    draw(tmp_path)
    labels = np.broadcast_to(np.asarray(Image.open(tmp_path / "a.png")), (16, 40, 60)[3 - ndim :])
    if ndim == 3:
        tifffile.imwrite(tmp_path / "a.tif", labels)
    for name, grey in (("cell", 205), ("wall", 115)):  # sorted by name, unlike the model's classes
        (tmp_path / "masks" / name).mkdir(parents=True)
        mask = 255 * (labels == grey).astype(np.uint8)
        if ndim == 2:
            Image.fromarray(mask).save(tmp_path / f"masks/{name}/a.png")
        else:
            tifffile.imwrite(tmp_path / f"masks/{name}/a_mask.tif", mask)
    picture, flags = tmp_path / ("a.png" if ndim == 2 else "a.tif"), ("--masks", tmp_path / "masks")
    assert run(model, [picture], tmp_path / "out", *flags) == 0
    (row,) = table(tmp_path / "out")
    assert [float(row[key]) for key in ("dice", "dice/cell", "dice/wall")] == [1, 1, 1]
    capsys.readouterr()
    assert run(model, [picture], tmp_path / "out", *flags, "--continue") == 0
    assert "finished before" in capsys.readouterr().out
    (tmp_path / "masks/cell").rename(tmp_path / "masks/nucleus")
    assert "are named nucleus, wall; the model knows wall, cell" in refusal(
        capsys, model, [picture], tmp_path / "new", *flags
    )
    assert not (tmp_path / "new").exists()


def test_pixels_that_are_not_labelled_count_nowhere(tmp_path):
    labels = draw(tmp_path)
    known = Classes(("cell", "wall"), (0, 1, 2), ignore=255)
    model = save_model(tmp_path / "model.keras", known)
    labels[:26] = 255  # both cells
    labels[30:33] = 255  # half of the wall
    (tmp_path / "masks").mkdir()
    Image.fromarray(labels).save(tmp_path / "masks/a.png")
    assert run(model, [tmp_path / "a.png"], tmp_path / "out", "--masks", tmp_path / "masks") == 0
    (row,) = table(tmp_path / "out")
    assert (row["dice/cell"], float(row["dice/wall"]), float(row["dice"])) == ("", 1, 1)


@pytest.mark.parametrize("known, mode, value, words", [
    (GAPS, "L", 30, "a_mask.png: it holds 30, where 0, 10, 20 are the classes"),
    (RED_GREEN, "RGB", (255, 255, 0), "a_mask.png: it holds #ffff00, where #000000, #ff0000, #00ff00 are the classes"),
    (RED_GREEN, "L", 10, "a_mask.png holds numbers, unlike the masks of the training"),
])  # fmt: skip
def test_a_value_that_the_model_does_not_know_is_said_and_the_others_go_on(known, mode, value, words, tmp_path, capsys):
    for folder in ("in", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        draw(tmp_path / "in", f"{name}.png")
        Image.new("RGB" if known is RED_GREEN else "L", (60, 40)).save(tmp_path / f"masks/{name}_mask.png")
    Image.new(mode, (60, 40), value).save(tmp_path / "masks/a_mask.png")
    model = save_model(tmp_path / "model.keras", known)
    assert run(model, [tmp_path / "in"], tmp_path / "out", "--masks", tmp_path / "masks") == 1
    assert words in capsys.readouterr().err
    assert [row["picture"] for row in table(tmp_path / "out")] == ["b.png"]


def test_a_table_of_other_classes_is_left_alone(model_path, tmp_path, capsys):
    draw(tmp_path)
    one = save_model(tmp_path / "two.keras", Classes(("bone", "wall"), (0, 1, 2)))
    assert run(model_path, [tmp_path / "a.png"], tmp_path / "out") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    said = refusal(capsys, one, [tmp_path / "a.png"], tmp_path / "out")
    assert "predictions.csv is a table of other classes; name another folder" in said
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(model_path, [tmp_path / "a.png"], tmp_path / "out", "--continue") == 0
    assert "1 of 1 finished before" in capsys.readouterr().out


# Models


def test_a_threshold_is_for_one_class(model_path, tmp_path, capsys):
    draw(tmp_path)
    said = refusal(capsys, model_path, [tmp_path / "a.png"], tmp_path / "out", "--threshold", "0.4")
    assert "--threshold is for models of one class" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("other, words", [
    (Classes(("cell", "bone"), (0, 10, 20)), "bone (20)"),
    (Classes(("cell", "wall"), (0, 1, 2)), "wall (2)"),
    (Classes(("cell",), (0, 10)), "cell (10), where"),
])  # fmt: skip
def test_models_of_different_classes_are_refused(other, words, model_path, tmp_path, capsys):
    draw(tmp_path)
    levels = (0.1, 0.45, 0.8)[: other.num + 1] if other.num > 1 else (0.45,)
    second = save_model(tmp_path / "other.keras", other, levels=levels)
    said = refusal(capsys, model_path, [tmp_path / "a.png"], tmp_path / "out", "--models", second)
    assert words in said and "background (0), cell (10), wall (20)" in said and not (tmp_path / "out").exists()


# Scans


def make_scan(path, shape=(24, 20, 25)):
    labels = np.zeros(shape, np.uint8)
    labels[2:10, 2:10, 3:11] = 1
    labels[12:20, 10:18, 13:21] = 2
    image = nibabel.Nifti1Image(GREYS[labels], AFFINE)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return labels


@pytest.mark.parametrize("values, dtype", [
    ((0, 11, 17), np.uint8), ((0, 17, 300), np.uint16), ((0, 7, 614_454_277), np.uint32)
])  # fmt: skip
def test_a_scans_label_map_has_its_grid_and_the_smallest_type(values, dtype, tmp_path):
    known = Classes(("caudate", "white matter"), values)
    labels = make_scan(tmp_path / "head.nii.gz")
    model = save_model(tmp_path / "model.keras", known, ndim=3)
    masks, out = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    nibabel.Nifti1Image(np.array(values, dtype)[labels], AFFINE).to_filename(masks / "head.nii.gz")
    assert run(model, [tmp_path / "head.nii.gz"], out, "--masks", masks, "--probabilities") == 0
    mask = nibabel.load(out / "head_mask.nii.gz")
    assert mask.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), np.array(values)[labels])
    np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / "head.nii.gz").affine)
    probability = np.asanyarray(nibabel.load(out / "head_probability_white matter.nii.gz").dataobj)
    np.testing.assert_array_equal(probability > 2**15, labels == 2)
    assert names_in(out) == dict(zip(values[1:], known.names, strict=True)), "labels.txt is one of ITK-SNAP"
    (row,) = table(out)
    for name in known.names:
        assert float(row[f"volume_ml/{name}"]) == pytest.approx(512 * 3 / 1000) and row[f"dice/{name}"] == "1.0"
        assert (float(row[f"surface/{name}"]), float(row[f"hausdorff95/{name}"])) == (0, 0)
    assert float(row["volume_ml"]) == pytest.approx(1024 * 3 / 1000)
    assert (float(row["dice"]), float(row["surface"])) == (1, 0)


def test_a_tiff_stack_gets_a_label_map(tmp_path):
    labels = make_scan(tmp_path / "unused.nii")
    tifffile.imwrite(tmp_path / "a.tif", GREYS[labels], photometric="minisblack")
    model = save_model(tmp_path / "model.keras", Classes(("cell", "wall"), (0, 10, 300)), ndim=3)
    assert run(model, [tmp_path / "a.tif"], tmp_path / "out") == 0
    mask = tifffile.imread(tmp_path / "out/a_mask.tif")
    assert mask.dtype == np.uint16
    np.testing.assert_array_equal(mask, np.array([0, 10, 300])[labels])


def test_an_unknown_value_in_a_scans_true_mask_is_said(tmp_path, capsys):
    labels = make_scan(tmp_path / "head.nii.gz")
    (tmp_path / "masks").mkdir()
    nibabel.Nifti1Image(labels, AFFINE).to_filename(tmp_path / "masks/head.nii.gz")
    model = save_model(tmp_path / "model.keras", GAPS, ndim=3)
    said = refusal(capsys, model, [tmp_path / "head.nii.gz"], tmp_path / "out", "--masks", tmp_path / "masks")
    assert "masks/head.nii.gz: it holds 1, where 0, 10, 20 are the classes" in said


# What is served


@pytest.fixture
def served(monkeypatch):
    from lab.track.served_model import ServedModel

    def load(path):
        model, context = ServedModel(), type("Context", (), {"artifacts": {"model": str(path)}})
        model.load_context(context)
        return model

    monkeypatch.setattr(sys, "path", [*sys.path])
    return load


def decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_file_is_answered_with_the_label_png_the_values_and_the_figures(model_path, served, tmp_path):
    labels = draw(tmp_path)
    assert run(model_path, [tmp_path / "a.png"], tmp_path / "out", "--probabilities") == 0
    text = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    answer = json.loads(json.dumps(served(model_path).predict(None, np.array(text, object))))
    mask, written = decoded(answer["mask"]), Image.open(tmp_path / "out/a_mask.png")
    assert mask.mode == "P" and mask.getpalette() == written.getpalette()
    np.testing.assert_array_equal(np.asarray(mask), np.asarray(written))
    for name in GAPS.names:
        expected = np.asarray(Image.open(tmp_path / f"out/a_probability_{name}.png"))
        np.testing.assert_array_equal(np.asarray(decoded(answer["probability"][name])), expected)
    assert answer["values"] == {"cell": 10, "wall": 20}
    assert answer["figures"]["cell"] == {"foreground": pytest.approx((labels == 1).mean()), "objects": 2}


def test_an_array_is_answered_with_values_and_a_channel_for_each_class(model_path, served, tmp_path):
    from mlflow import MlflowException
    from mlflow.pyfunc.scoring_server import predictions_to_json

    labels = draw(tmp_path)
    model = served(model_path)
    answer = model.predict(None, np.stack([GREYS[labels]] * 2)[..., None])
    np.testing.assert_array_equal(answer["mask"], np.stack([np.array(GAPS.values)[labels]] * 2))
    assert answer["probability"].shape == (2, 40, 60, 3) and answer["mask"].dtype == np.uint8
    text = io.StringIO()
    predictions_to_json(answer, text)
    sent = json.loads(text.getvalue())["predictions"]
    assert sent["values"] == {"cell": 10, "wall": 20} and sent["figures"][1]["wall"]["objects"] == 1
    with pytest.raises(MlflowException, match="a threshold is for models of one class"):
        model.predict(None, GREYS[labels], {"threshold": 0.4})
