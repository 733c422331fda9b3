"""A row for each object: on masks drawn by hand, whose places, sizes and means follow from arithmetic."""

import csv

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from test_predict import save_model, threshold_network
from test_predict_scans import AFFINE, make_scan
from test_predict_scans import save_model as save_scan_model

import predict
from lab.evaluate import objects
from lab.model import prediction
from lab.system import table


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_model(threshold_network(), tmp_path_factory.mktemp("model") / "model.keras")


def draw(path, *boxes, shape=(20, 30)):
    """A dark picture with bright boxes (top, bottom, left, right), ends included."""
    values = np.full(shape, 20, np.uint8)
    for top, bottom, left, right in boxes:
        values[top : bottom + 1, left : right + 1] = 240
    Image.fromarray(values).save(path)


def read(folder):
    return table.read(folder / "objects.csv", objects.COLUMNS)


def in_16_bits(probability, shape):
    return np.full(shape, probability * 65535, np.uint16)


def test_size_centroid_box_and_border_are_those_of_the_mask():
    labels = np.zeros((20, 30), np.uint8)
    labels[2:5, 10:16] = 1  # 3 x 6
    labels[8, 29] = labels[9, 28] = 1  # touch at a corner, and the right border
    labels[12:14, 3:5] = 2
    image = np.arange(600, dtype=np.uint16).reshape(20, 30, 1)
    inner, edge, other = objects.find(labels, in_16_bits(0.75, labels.shape), image, ("cell", "wall"), voxel=0.5)
    assert [row["number"] for row in (inner, edge, other)] == [1, 2, 3]
    assert [row["class"] for row in (inner, edge, other)] == ["cell", "cell", "wall"]
    assert [row["size_pixels"] for row in (inner, edge, other)] == [18, 2, 4]
    assert (inner["x_pixels"], inner["y_pixels"], inner["area_mm2"]) == (12.5, 3, 9)
    assert (edge["x_pixels"], edge["y_pixels"]) == (28.5, 8.5)
    box = ("x_min_pixels", "x_max_pixels", "y_min_pixels", "y_max_pixels")
    assert [inner[key] for key in box] == [10, 15, 2, 4]
    assert [row["touches_border"] for row in (inner, edge, other)] == [False, True, False]
    assert inner["mean_grey"] == 3 * 30 + 12.5 and inner["confidence"] == pytest.approx(0.75, abs=1e-4)
    assert {*inner, "picture"} <= {*objects.COLUMNS} and not any(key.startswith(("z", "volume")) for key in inner)


def test_the_same_columns_hold_a_volume_with_its_third_axis_and_millimetres():
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 2:6, 0:2] = 1
    affine = np.array([[0, 0, 2.0, 10], [0, 3.0, 0, 20], [4.0, 0, 0, 30], [0, 0, 0, 1]])  # of z, y, x
    (row,) = objects.find(labels, in_16_bits(1, labels.shape), np.ones(labels.shape), ("object",), 24, affine)
    assert (row["x_pixels"], row["y_pixels"], row["z_pixels"]) == (0.5, 3.5, 1.5)
    assert (row["x_mm"], row["y_mm"], row["z_mm"]) == (10 + 2 * 0.5, 20 + 3 * 3.5, 30 + 4 * 1.5)
    assert (row["size_pixels"], row["volume_mm3"], row["touches_border"]) == (16, 16 * 24, True)
    assert {*row} <= {*objects.COLUMNS} and "area_mm2" not in row


def test_objects_have_an_area_in_mm2_where_a_microscope_names_the_pixels_size(model_path, tmp_path):
    image = np.zeros((20, 30), np.uint8)
    image[2:5, 10:16] = 240
    sides = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(tmp_path / "imagej.tif", image, imagej=True, resolution=(2, 4), metadata={"unit": "um"})
    tifffile.imwrite(tmp_path / "ome.tif", np.flipud(image), ome=True, metadata=sides)
    tifffile.imwrite(tmp_path / "printed.tif", np.fliplr(image), resolution=(72, 72), resolutionunit="INCH")
    inputs = [str(tmp_path / f"{name}.tif") for name in ("imagej", "ome", "printed")]
    assert predict.main([str(model_path), *inputs, "--out-dir", str(tmp_path / "out")]) == 0
    *known, printed = read(tmp_path / "out")
    for row, y in zip(known, (3, 16), strict=True):
        found = [float(row[key]) for key in ("area_mm2", "x_mm", "y_mm")]
        assert found == pytest.approx([18 * 0.125e-6, 12.5 * 0.5e-3, y * 0.25e-3]) and row["z_mm"] == ""
    assert (printed["area_mm2"], printed["x_mm"]) == ("", ""), "the resolution of a print says nothing of the object"


def test_slabs_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    labels = (rng.random((31, 17, 9)) < 0.15).astype(np.uint8)
    chosen, image = rng.integers(0, 65536, labels.shape, np.uint16), rng.normal(size=labels.shape)
    whole = objects.find(labels, chosen, image, ("object",))
    monkeypatch.setattr(prediction, "SLAB", 1)
    assert objects.find(labels, chosen, image, ("object",)) == whole and len(whole) > 20


def test_colours_count_by_their_mean():
    labels, image = np.ones((2, 2), np.uint8), np.broadcast_to(np.array([30, 60, 120], np.uint8), (2, 2, 3))
    assert objects.find(labels, in_16_bits(1, (2, 2)), image, ("object",))[0]["mean_grey"] == 70


def test_counts_and_areas_are_those_of_predictions_csv(model_path, tmp_path):
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in/a.png", (2, 4, 3, 9), (10, 19, 20, 29))
    draw(tmp_path / "in/empty.png")
    draw(tmp_path / "in/one.png", (5, 5, 5, 5))
    assert predict.main([str(model_path), str(tmp_path / "in"), "--out-dir", str(tmp_path / "out")]) == 0
    rows = read(tmp_path / "out")
    assert [(row["picture"], row["number"], row["size_pixels"]) for row in rows] == [
        ("a.png", "1", "21"), ("a.png", "2", "100"), ("one.png", "1", "1")
    ]  # fmt: skip
    assert rows[0]["mean_grey"] == "240.0" and float(rows[0]["confidence"]) > 0.99 and rows[0]["area_mm2"] == ""
    for row in csv.DictReader((tmp_path / "out/predictions.csv").read_text().splitlines()):
        own = [int(one["size_pixels"]) for one in rows if one["picture"] == row["picture"]]
        assert len(own) == int(row["objects"]) and sum(own) == round(float(row["foreground"]) * 600)
        assert not own or float(row["diameter"]) == pytest.approx(np.sqrt(4 * np.median(own) / np.pi))


def test_volumes_and_places_are_those_of_the_scan_and_stay_blank_without_a_unit(tmp_path):
    model = save_scan_model(tmp_path / "model.keras")
    make_scan(tmp_path / "head.nii")
    assert predict.main([str(model), str(tmp_path / "head.nii"), "--out-dir", str(tmp_path / "out")]) == 0
    rows = read(tmp_path / "out")
    assert [float(row["volume_mm3"]) for row in rows] == [512 * 3] * 2 and rows[0]["area_mm2"] == ""
    centres = sorted(tuple(AFFINE @ [*place, 1])[:3] for place in ((5.5, 5.5, 6.5), (15.5, 13.5, 16.5)))
    found = sorted(tuple(float(row[f"{axis}_mm"]) for axis in "xyz") for row in rows)
    np.testing.assert_allclose(found, centres, rtol=1e-5)
    image = nibabel.load(tmp_path / "head.nii")
    image.header.set_xyzt_units("unknown")
    nibabel.save(image, tmp_path / "less.nii")
    assert predict.main([str(model), str(tmp_path / "less.nii"), "--out-dir", str(tmp_path / "less")]) == 0
    blank = [(row["volume_mm3"], row["x_mm"], row["size_pixels"]) for row in read(tmp_path / "less")]
    assert blank == [("", "", "512")] * 2


def test_a_pictures_rows_are_replaced_and_those_of_others_stay(model_path, tmp_path):
    draw(tmp_path / "a.png", (2, 4, 3, 9), (10, 12, 3, 9))
    draw(tmp_path / "b.png", (2, 4, 3, 9))
    flags = ["--out-dir", str(tmp_path / "out")]
    assert predict.main([str(model_path), str(tmp_path / "a.png"), str(tmp_path / "b.png"), *flags]) == 0
    draw(tmp_path / "a.png", (5, 5, 5, 6))
    assert predict.main([str(model_path), str(tmp_path / "a.png"), *flags]) == 0
    assert [(row["picture"], row["size_pixels"]) for row in read(tmp_path / "out")] == [("b.png", "21"), ("a.png", "2")]


@pytest.mark.parametrize("left", [b"", b"a.png,object,1,", None])
def test_continue_predicts_again_what_lacks_a_row_of_its_objects(left, model_path, tmp_path, capsys):
    """As after a kill in the midst of a line, or in a folder of before there was such a table."""
    draw(tmp_path / "a.png", (2, 4, 3, 9))
    draw(tmp_path / "b.png")
    command = [str(model_path), str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--out-dir", str(tmp_path / "out")]
    assert predict.main(command) == 0
    whole = (tmp_path / "out/objects.csv").read_bytes()
    if left is None:
        (tmp_path / "out/objects.csv").unlink()
    else:
        (tmp_path / "out/objects.csv").write_bytes(whole.splitlines(True)[0] + left)
    assert predict.main([*command, "--continue"]) == 0
    assert (tmp_path / "out/objects.csv").read_bytes() == whole
    assert "1 of 2 finished before" in capsys.readouterr().out


def test_numbers_are_drawn_at_the_objects_and_nowhere_else(model_path, tmp_path, capsys):
    draw(tmp_path / "a.png", (10, 29, 10, 29), (60, 79, 60, 79), shape=(90, 90))
    overlays = []
    for flags in ([], ["--numbers"]):
        predict.main([str(model_path), str(tmp_path / "a.png"), "--out-dir", str(tmp_path / "out"), *flags])
        overlays.append(np.asarray(Image.open(tmp_path / "out/a_overlay.png"), int))
    lines, columns = np.nonzero((overlays[0] != overlays[1]).any(axis=-1))
    assert {*lines} <= {*range(10, 30), *range(60, 80)} and {*columns} <= {*range(10, 30), *range(60, 80)}
    assert lines.min() < 30 and lines.max() > 60
    make_scan(tmp_path / "head.nii")
    model = save_scan_model(tmp_path / "model.keras")
    with pytest.raises(SystemExit):
        predict.main([str(model), str(tmp_path / "head.nii"), "--numbers", "--out-dir", str(tmp_path / "scan")])
    assert "--numbers is for pictures" in capsys.readouterr().err
