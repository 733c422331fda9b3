"""predict.py on scans, with a network whose answer is known: a convolution of one voxel that finds what is bright."""

import csv

import keras
import nibabel
import numpy as np
import pytest
import tifffile
from keras import layers
from PIL import Image

import predict
from lab.data import grey_values
from lab.model import model_file, prediction

SEEN = {"1%": [0.0, 1.0], "50%": [0.0, 1.0], "99%": [0.0, 1.0]}
AFFINE = np.array([[0, 0, -2.0, 10], [-1.0, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 0, 1]])  # turned and mirrored


def save_model(path, **settings):
    inputs = keras.Input((None, None, None, 1))
    layer = layers.Conv3D(1, 1, activation="sigmoid")
    network = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.full((1, 1, 1, 1, 1), 200.0), np.array([-100.0])])
    model_file.save_model(network, path, {**grey_values.STRETCHED, "size": [16, 16, 16], "seen": SEEN, **settings})
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "model.keras")


def make_scan(path, shape=(30, 20, 25), affine=AFFINE):
    """A dark scan with two bright boxes of 512 voxels; returns where they are."""
    truth = np.zeros(shape, bool)
    truth[2:10, 2:10, 3:11] = truth[12:20, 10:18, 13:21] = True
    array = (np.where(truth, 900, 100) + np.random.default_rng(0).integers(-20, 20, shape)).astype(np.int16)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return truth


def table(folder):
    return list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))


def test_a_mask_has_the_scans_axes_affine_and_header(model_path, tmp_path):
    truth = make_scan(tmp_path / "head.nii.gz")
    masks, out = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    nibabel.Nifti1Image(truth.astype(np.uint8), AFFINE).to_filename(masks / "head_mask.nii.gz")
    flags = ["--out-dir", str(out), "--masks", str(masks), "--probabilities"]
    assert predict.main([str(model_path), str(tmp_path / "head.nii.gz"), *flags]) == 0
    mask = nibabel.load(out / "head_mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), truth)
    np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / "head.nii.gz").affine)
    probability = np.asanyarray(nibabel.load(out / "head_probability.nii.gz").dataobj)
    np.testing.assert_array_equal(probability > 2**15, truth)
    (row,) = table(out)
    assert (row["width"], row["height"], row["depth"]) == ("25", "30", "20")
    assert int(row["objects"]) == 2
    assert float(row["volume_ml"]) == pytest.approx(1024 * 3 / 1000)
    assert float(row["diameter"]) == pytest.approx((6 * 512 * 3 / np.pi) ** (1 / 3))
    assert (float(row["dice"]), float(row["surface"]), float(row["hausdorff95"])) == (1, 0, 0)
    with Image.open(out / "head_overlay.png") as overlay:
        assert overlay.mode == "RGB"


def test_of_a_tilted_gantry_volume_diameter_and_distances_follow_the_affine(model_path, tmp_path, capsys):
    tilted = np.diag([1.0, 1.0, 2.0, 1.0])
    tilted[1, 2] = 2 * np.sin(np.radians(20))  # each slice slides by this
    tilted[2, 2] = 2 * np.cos(np.radians(20))
    truth = make_scan(tmp_path / "head.nii", affine=tilted)
    (tmp_path / "masks").mkdir()
    shifted = np.roll(truth, 1, axis=2).astype(np.uint8)
    nibabel.Nifti1Image(shifted, tilted).to_filename(tmp_path / "masks" / "head.nii")
    flags = ["--out-dir", str(tmp_path / "out"), "--masks", str(tmp_path / "masks")]
    assert predict.main([str(model_path), str(tmp_path / "head.nii"), *flags]) == 0
    (row,) = table(tmp_path / "out")
    voxel = 2 * np.cos(np.radians(20))
    assert float(row["volume_ml"]) == pytest.approx(1024 * voxel / 1000)
    assert float(row["diameter"]) == pytest.approx((6 * 512 * voxel / np.pi) ** (1 / 3))
    nearest = np.hypot(voxel, 2 * np.sin(np.radians(20)) - 1)  # one slice on and one row back
    assert float(row["hausdorff95"]) == pytest.approx(nearest)
    assert "not at right angles" in row["remark"] and "not at right angles" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["unit", "affine"])
def test_without_a_unit_or_an_affine_there_are_no_millilitres(lacking, model_path, tmp_path, capsys):
    make_scan(tmp_path / "head.nii")
    image = nibabel.load(tmp_path / "head.nii")
    image.header.set_xyzt_units("mm" if lacking == "affine" else "unknown")
    image.set_sform(AFFINE, code=1 if lacking == "unit" else 0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "less.nii")
    assert predict.main([str(model_path), str(tmp_path / "less.nii"), "--out-dir", str(tmp_path / "out")]) == 0
    (row,) = table(tmp_path / "out")
    assert (row["volume_ml"], row["objects"]) == ("", "2")
    assert f"names no {lacking}: volume_ml stays empty" in row["remark"]
    assert row["remark"] in capsys.readouterr().err


@pytest.mark.parametrize(
    "seen, told",
    [
        (None, False),  # a model file of before
        ([[1.5, 1.0, 2.0]] * 2, False),
        ([[1.4, 1.0, 2.1]] * 2, False),  # by less than a tenth
        ([[1.5, 1.0, 1.0]] * 2, True),
        ([[1.0, 0.5, 1.0], [3.0, 2.0, 2.5]], False),
        ([[3.0, 1.0, 2.0], [4.0, 2.0, 2.5]], True),
    ],
)
def test_another_spacing_than_in_training_is_told(seen, told, tmp_path):
    model = save_model(tmp_path / "model.keras", spacings_seen=seen)
    make_scan(tmp_path / "head.nii")  # 1.5 x 1 x 2 mm: depth, height, width
    assert predict.main([str(model), str(tmp_path / "head.nii"), "--out-dir", str(tmp_path / "out")]) == 0
    assert ("Its voxels are 2 x 1 x 1.5 mm, in training they were" in table(tmp_path / "out")[0]["remark"]) == told


def test_a_scan_is_predicted_on_the_models_grid_and_its_mask_on_its_own(tmp_path):
    model = save_model(tmp_path / "model.keras", spacing=[1.0, 1.0, 1.0])
    truth = make_scan(tmp_path / "head.nii")
    assert predict.main([str(model), str(tmp_path / "head.nii"), "--out-dir", str(tmp_path / "out")]) == 0
    mask = np.asanyarray(nibabel.load(tmp_path / "out" / "head_mask.nii").dataobj)
    assert mask.shape == truth.shape
    assert np.count_nonzero(mask != truth) < 0.1 * truth.sum()


def test_tiff_stacks_in_a_folder_get_tiff_masks(model_path, tmp_path):
    folder = tmp_path / "stacks"
    folder.mkdir()
    array = np.full((12, 20, 24), 10, np.uint8)
    array[3:9, 5:12, 6:18] = 200
    for name in ("a.tif", "b.tiff"):
        tifffile.imwrite(folder / name, array, photometric="minisblack")
    assert predict.main([str(model_path), str(folder), "--out-dir", str(tmp_path / "out")]) == 0
    for name in ("a_mask.tif", "b_mask.tiff"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / name), (array > 100) * 255)
    assert all(row["volume_ml"] == "" for row in table(tmp_path / "out"))


def test_slabs_leave_no_seam(model_path, monkeypatch, tmp_path):
    monkeypatch.setitem(prediction.LIMITS, 3, (16, 4))
    truth = make_scan(tmp_path / "head.nii", (40, 37, 33))
    predict.main([str(model_path), str(tmp_path / "head.nii"), "--out-dir", str(tmp_path / "out")])
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(tmp_path / "out" / "head_mask.nii").dataobj), truth)


def test_a_scan_finished_before_is_left_alone(model_path, tmp_path, capsys):
    make_scan(tmp_path / "head.nii.gz")
    flags = [str(model_path), str(tmp_path / "head.nii.gz"), "--out-dir", str(tmp_path / "out")]
    predict.main(flags)
    predict.main([*flags, "--continue"])
    assert "1 of 1 finished before" in capsys.readouterr().out
    assert len(table(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    "name, words",
    [
        ("a.png", "is no scan"),
        ("nan.nii.gz", "NaN"),
        ("4d.nii.gz", "4 axes"),
        ("absent.nii.gz", "does not exist"),
    ],
)
def test_what_is_no_scan_is_told_and_the_others_go_on(model_path, tmp_path, name, words, capsys):
    make_scan(tmp_path / "head.nii.gz")
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    nibabel.Nifti1Image(np.full((9, 9, 9), np.nan, np.float32), AFFINE).to_filename(tmp_path / "nan.nii.gz")
    nibabel.Nifti1Image(np.ones((9, 9, 9, 2), np.float32), AFFINE).to_filename(tmp_path / "4d.nii.gz")
    files = [str(tmp_path / name), str(tmp_path / "head.nii.gz")]
    assert predict.main([str(model_path), *files, "--out-dir", str(tmp_path / "out")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("predict.py")]
    assert words in line and name in line
    assert [row["picture"] for row in table(tmp_path / "out")] == ["head.nii.gz"]


def test_a_model_of_pictures_refuses_scans(tmp_path, capsys):
    inputs = keras.Input((None, None, 1))
    network = keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(inputs))
    model_file.save_model(network, tmp_path / "2d.keras", {**grey_values.STRETCHED, "size": [16, 16], "seen": SEEN})
    make_scan(tmp_path / "head.nii.gz")
    with pytest.raises(SystemExit) as ended:
        predict.main([str(tmp_path / "2d.keras"), str(tmp_path / "head.nii.gz"), "--out-dir", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "is a scan, the model" in capsys.readouterr().err
