"""Scans from disk: orientation, parts, folders with their faults, resampling; surface distances."""

import gzip
import itertools
import math
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from lab.data import grey_values, scans, volumes
from lab.data.sample import Sample
from lab.evaluate import views

SHAPE = (4, 5, 6)  # (i, j, k) in the file
TURNS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]  # file axis a runs along world axis axes[a], forwards or backwards: all 48 orientations


def make_affine(axes=(0, 1, 2), signs=(1, 1, 1), spacing=(0.5, 1.0, 2.0)):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign, step) in enumerate(zip(axes, signs, spacing, strict=True)):
        affine[axis, column] = sign * step
    affine[:3, 3] = 10, -20, 30
    return affine


def noise(shape=SHAPE, dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def write_nifti(path, array, affine=None, **header):
    image = nibabel.Nifti1Image(array, make_affine() if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(exist_ok=True)
    image.to_filename(path)
    return path


# Orientation


def test_of_sheared_axes_the_volume_is_the_determinant(tmp_path):
    affine = make_affine((2, 0, 1), (1, -1, 1))
    affine[0, 2] = 0.7  # file axis 2 leans over
    write_nifti(tmp_path / "a" / "a.nii", noise(), affine)
    write_nifti(tmp_path / "b" / "a.nii", (noise() > 50).astype(np.uint8), affine)
    scan = scans.open_scan(tmp_path / "a" / "a.nii")
    assert scan.sheared and scan.voxel == pytest.approx(0.5 * 1.0 * 2.0)
    assert math.prod(scan.spacing) == pytest.approx(0.5 * 1.0 * math.hypot(2.0, 0.7))
    ((sample,), _) = volumes.read_folder(tmp_path / "a", tmp_path / "b", spacing=(1, 1, 1))
    assert np.linalg.norm(sample.steps, axis=0) == pytest.approx(sample.spacing)
    write_nifti(tmp_path / "c.nii", noise())
    straight = scans.open_scan(tmp_path / "c.nii")
    assert not straight.sheared and straight.steps == straight.spacing and straight.voxel == 1.0


@pytest.mark.parametrize("axes, signs", TURNS)
def test_a_marked_corner_comes_back_where_it_was_in_every_orientation(axes, signs, tmp_path):
    affine = make_affine(axes, signs)
    array = noise()
    corner = (3, 0, 5)
    array[corner] = 1000
    suffix = ".nii" if signs[0] > 0 else ".nii.gz"
    path = write_nifti(tmp_path / f"scan{suffix}", array, affine, descrip=b"made for a test")

    scan = scans.open_scan(path)
    (found,) = np.argwhere(scan.voxels == 1000)
    np.testing.assert_allclose(scan.affine @ [*found, 1], affine @ [*corner, 1], atol=1e-4)
    # depth runs upwards, height to the front, width to the right
    np.testing.assert_allclose(scan.affine[:3, :3], np.fliplr(np.diag(scan.spacing[::-1])), atol=1e-5)

    scans.write(scan.voxels == 1000, scan, tmp_path / f"mask{suffix}")
    mask = nibabel.load(tmp_path / f"mask{suffix}")
    expected = np.zeros(SHAPE)
    expected[corner] = 1
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), expected)
    np.testing.assert_array_equal(mask.affine, nibabel.load(path).affine)
    assert mask.header["descrip"] == b"made for a test"
    assert mask.get_data_dtype() == np.uint8


def test_nifti_axes_in_memory_are_k_j_i(tmp_path):
    array = noise()
    scan = scans.open_scan(write_nifti(tmp_path / "scan.nii", array))
    np.testing.assert_array_equal(scan.voxels, array.T)
    assert scan.spacing == (2.0, 1.0, 0.5)


def test_codes_and_a_trailing_axis_of_one_survive(tmp_path):
    image = nibabel.Nifti2Image(noise()[..., None], make_affine())
    image.set_qform(make_affine(), code=1)
    image.set_sform(make_affine(), code=4)
    image.to_filename(tmp_path / "scan.nii.gz")
    scan = scans.open_scan(tmp_path / "scan.nii.gz")
    scans.write(scan.voxels > 50, scan, tmp_path / "mask.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert isinstance(mask, nibabel.Nifti2Image)
    assert mask.shape == (*SHAPE, 1)
    assert (int(mask.header["qform_code"]), int(mask.header["sform_code"])) == (1, 4)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj)[..., 0], noise() > 50)


def test_lengths_in_micrometres_become_millimetres(tmp_path):
    image = nibabel.Nifti1Image(noise(), make_affine(spacing=(500, 1000, 2000)))
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "scan.nii")
    assert scans.open_scan(tmp_path / "scan.nii").spacing == pytest.approx((2.0, 1.0, 0.5))


# Reading by parts


def mapped_file(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_voxels_stay_on_disk_in_their_own_type(suffix, tmp_path):
    scan = scans.open_scan(write_nifti(tmp_path / f"scan{suffix}", noise(), make_affine((2, 0, 1), (-1, 1, -1))))
    assert mapped_file(scan.voxels) is not None
    assert scan.voxels.dtype == np.int16


def test_stored_values_are_scaled_as_the_header_says(tmp_path):
    image = nibabel.Nifti1Image(noise(), make_affine())
    image.header.set_slope_inter(2.0, -1024.0)
    image.to_filename(tmp_path / "scan.nii.gz")
    scan = scans.open_scan(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(scan.voxels, nibabel.load(tmp_path / "scan.nii.gz").get_fdata().T)
    assert mapped_file(scan.voxels) is not None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_stacks_of_8_16_and_32_bits(dtype, compression, tmp_path):
    array = noise(dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, photometric="minisblack")
    scan = scans.open_scan(tmp_path / "a.tif")
    np.testing.assert_array_equal(scan.voxels, array)
    assert scan.spacing is None
    assert mapped_file(scan.voxels) is not None


def test_imagej_and_ome_say_the_spacing(tmp_path):
    array = noise(dtype=np.uint16)
    imagej = {"spacing": 0.5, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, resolution=(1 / 0.2, 1 / 0.25), metadata=imagej)
    sizes = {f"PhysicalSize{axis}": step for axis, step in (("X", 200), ("Y", 250), ("Z", 500))}
    units = {f"PhysicalSize{axis}Unit": "nm" for axis in "XYZ"}
    tifffile.imwrite(tmp_path / "b.ome.tif", array, metadata={"axes": "ZYX", **sizes, **units})
    for name in ("a.tif", "b.ome.tif"):
        scan = scans.open_scan(tmp_path / name)
        assert scan.spacing == pytest.approx((0.5e-3, 0.25e-3, 0.2e-3))
        np.testing.assert_array_equal(scan.voxels, array)


def test_a_tiff_mask_is_written_with_the_scans_spacing(tmp_path):
    metadata = {"spacing": 0.5, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.tif", noise(dtype=np.uint8), imagej=True, resolution=(5, 4), metadata=metadata)
    scan = scans.open_scan(tmp_path / "a.tif")
    scans.write(scan.voxels > 50, scan, tmp_path / "a_mask.tif")
    mask = scans.read_mask(tmp_path / "a_mask.tif")
    np.testing.assert_array_equal(mask.voxels, noise(dtype=np.uint8) > 50)
    assert mask.spacing == pytest.approx(scan.spacing)


# What cannot be read


def bad_file(kind, folder):
    path = folder / "bad.nii.gz"
    if kind == "2D":
        return write_nifti(path, noise((4, 5)))
    if kind == "slice":
        return write_nifti(path, noise((4, 5, 1)))
    if kind == "4D":
        return write_nifti(path, noise((4, 5, 6, 3)))
    if kind == "colour":
        colour = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        return write_nifti(path, colour)
    if kind == "complex":
        return write_nifti(path, noise(dtype=np.complex64))
    if kind.startswith("spacing"):
        image = nibabel.Nifti1Image(noise(), None)
        image.header["sform_code"] = 2
        for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
            image.header[name] = np.diag([1, 1, 0 if kind == "spacing 0" else np.nan])[row].tolist() + [0]
        image.to_filename(path)
    if kind == "text":
        path.write_text("this is no scan")
    if kind == "empty":
        path.touch()
    if kind == "cut gz":
        whole = write_nifti(path, np.random.default_rng(0).random((20, 20, 20))).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    if kind == "checksum":
        whole = bytearray(write_nifti(path, np.random.default_rng(0).random((20, 20, 20))).read_bytes())
        whole[-8] ^= 1  # of the CRC
        path.write_bytes(whole)
    if kind == "cut":
        whole = gzip.decompress(write_nifti(path, noise()).read_bytes())
        path = folder / "bad.nii"
        path.write_bytes(whole[:-10])
    if kind == "tiff time":
        path = folder / "bad.tif"
        tifffile.imwrite(path, noise(dtype=np.uint8), imagej=True, metadata={"axes": "TYX"})
    if kind == "tiff channels":
        path = folder / "bad.tif"
        tifffile.imwrite(path, noise((4, 2, 5, 6), np.uint8), imagej=True, metadata={"axes": "ZCYX"})
    if kind == "tiff page":
        path = folder / "bad.tif"
        tifffile.imwrite(path, noise((5, 6), np.uint8))
    if kind == "tiff colours":
        path = folder / "bad.tif"
        tifffile.imwrite(path, noise((5, 6, 3), np.uint8), photometric="rgb")
    if kind == "tiff cut":
        path = folder / "bad.tif"
        tifffile.imwrite(path, noise((20, 30, 40), np.uint16))
        path.write_bytes(path.read_bytes()[:30000])
    if kind == "tiff pages cut":
        path = folder / "bad.tif"
        pages = [Image.fromarray(page) for page in noise((20, 30, 40), np.uint8)]
        pages[0].save(path, save_all=True, append_images=pages[1:])
        path.write_bytes(path.read_bytes()[:12000])
    if kind == "tiff text":
        path = folder / "bad.tif"
        path.write_text("this is no scan")
    if kind == "png":
        path = folder / "bad.png"
        path.touch()
    return path


@pytest.mark.parametrize(
    "kind, words",
    [
        ("missing", "does not exist"),
        ("2D", "2 axes.*a volume of three was expected"),
        ("slice", "single slice"),
        ("4D", "4 axes.*split it"),
        ("colour", "colours"),
        ("complex", "complex"),
        ("spacing 0", "spacing of 0 x 1 x 1 mm"),
        ("spacing nan", "spacing of nan x 1 x 1 mm"),
        ("text", "cannot be read"),
        ("empty", "cannot be read"),
        ("cut gz", "truncated"),
        ("checksum", "damaged .CRC.*; copy it again"),
        ("cut", "truncated"),
        ("tiff time", "TYX.*ZYX was expected"),
        ("tiff channels", "ZCYX.*ZYX was expected"),
        ("tiff page", "YX .5 x 6., where ZYX was expected"),
        ("tiff colours", "YXS.*ZYX was expected"),
        ("tiff cut", "cut off"),
        ("tiff pages cut", "cut off"),
        ("tiff text", "cannot be read"),
        ("png", "is no scan"),
    ],
)
def test_what_is_no_volume_is_refused_in_one_sentence(kind, words, tmp_path):
    path = bad_file(kind, tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        scans.look_through(scans.open_scan(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


# Folders


@pytest.fixture
def folders(tmp_path):
    images, masks = tmp_path / "scans", tmp_path / "truth"
    images.mkdir()
    masks.mkdir()
    for number in range(3):
        write_nifti(images / f"{number}.nii.gz", noise(seed=number))
        write_nifti(masks / f"{number}_mask.nii.gz", (noise(seed=number) > 50).astype(np.uint8) * 255)
    return images, masks


def test_a_folder_is_read_with_its_masks(folders):
    samples, _ = volumes.read_folder(*folders)
    assert [sample.name for sample in samples] == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.image, noise(seed=number).T[..., None])
        np.testing.assert_array_equal(sample.labels, noise(seed=number).T > 50)
        assert sample.labels.dtype == np.uint8


def test_a_mask_stored_in_another_orientation_is_laid_right(folders):
    images, masks = folders
    scan = nibabel.load(images / "0.nii.gz")
    mask = nibabel.Nifti1Image((np.asanyarray(scan.dataobj) > 50).astype(np.uint8), scan.affine)
    mask.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])).to_filename(masks / "0_mask.nii.gz")
    sample = volumes.read_folder(*folders)[0][0]
    np.testing.assert_array_equal(sample.labels, sample.image[..., 0] > 50)


def test_all_that_is_wrong_with_a_folder_is_told_at_once(folders):
    images, masks = folders
    write_nifti(images / "alone.nii.gz", noise(seed=10))
    write_nifti(masks / "unused.nii.gz", noise(seed=11))
    ones = np.ones(SHAPE, np.uint8)

    def pair(name, scan, mask, affine=None):
        write_nifti(images / f"{name}.nii.gz", scan)
        write_nifti(masks / f"{name}.nii.gz", mask, affine)

    pair("shape", noise(seed=12), ones[:, :, 1:])
    pair("affine", noise(seed=13), ones, make_affine(spacing=(1, 1, 1)))
    pair("flat", ones * 7, ones)
    strange = noise(seed=15, dtype=np.float32)
    strange[0, 0, 0], strange[1, 1, 1] = np.nan, np.inf
    pair("nan", strange, noise(seed=14).astype(np.uint8))
    pair("twin", noise(seed=2), ones)
    tifffile.imwrite(images / "0.tif", noise(dtype=np.uint8), photometric="minisblack")
    expected = [
        r"alone.nii.gz has no mask",
        r"unused.nii.gz has no scan",
        r"shape.nii.gz has 4 x 5 x 5 voxels, its scan 4 x 5 x 6",
        r"affine.nii.gz lies up to [\d.]+ mm beside its scan",
        r"flat.nii.gz is constant: every voxel is 7",
        r"nan.nii.gz holds 2 voxels of NaN or infinity",
        r"masks hold \d+ values .*nan.nii.gz: .* and \d+ more.*at most 32 classes",
        r"twin.nii.gz shows the same as 2.nii.gz",
        r"0.tif and 0.nii.gz have the same name",
    ]
    with pytest.raises(ValueError) as caught:
        volumes.read_folder(*folders)
    first, *lines = str(caught.value).splitlines()
    for words in expected:
        assert any(re.search(words, line) for line in lines), (words, lines)


def test_a_folder_without_any_object_is_refused(folders):
    images, masks = folders
    for number in range(3):
        write_nifti(masks / f"{number}_mask.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match="all masks.*are empty"):
        volumes.read_folder(images, masks)


def test_a_link_to_nothing_is_no_scan_and_is_told(folders):
    images, masks = folders
    (images / "3.nii.gz").symlink_to(images / "not fetched.nii.gz")
    (masks / "3.nii.gz").symlink_to(masks / "not fetched.nii.gz")
    with pytest.raises(ValueError, match="2 things are wrong.*\n.*scans/3.nii.gz does not exist.*\n.*truth/3.nii.gz"):
        volumes.read_folder(images, masks)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(ValueError, match="a.nii is no file, but a folder, a pipe or a device"):
        scans.open_scan(tmp_path / "a.nii")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_scans_that_were_resampled_keep_two_files_open_each(folders, monkeypatch):
    opened, to_grid = [], volumes._to_grid

    def watched(*arguments):
        opened.append(len(os.listdir("/proc/self/fd")))
        return to_grid(*arguments)

    monkeypatch.setattr(volumes, "_to_grid", watched)
    volumes.read_folder(*folders, spacing=(2, 2, 2))
    assert np.diff(opened).max() <= 2  # what is resampled, and its mask: not the scan that it was made of


def test_dicom_slices_are_told_how_to_become_nifti(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(10))
    with pytest.raises(ValueError, match="dcm2niix"):
        scans.find_scans(tmp_path)
    (tmp_path / "IM0001").unlink()
    with pytest.raises(ValueError, match="holds no scan"):
        scans.find_scans(tmp_path)


def test_thick_slices_and_different_spacings_are_said(folders):
    images, masks = folders
    assert len(volumes.describe_grids(volumes.read_folder(*folders)[0])) == 1  # 0.5 x 1 x 2 mm is thick
    affine = make_affine(spacing=(1, 1, 1))
    write_nifti(images / "0.nii.gz", noise(), affine)
    write_nifti(masks / "0_mask.nii.gz", noise() // 50, affine)
    thick, different = volumes.describe_grids(volumes.read_folder(*folders)[0])
    assert thick.startswith("Slices are thick in 2 of 3 scans (1.nii.gz: 0.5 x 1 x 2 mm)")
    assert "--spacing 2 1 0.5" in different


# Resampling


def test_linear_resampling_keeps_a_ramp(tmp_path):
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32)[:, None, None], (12, 8, 6))
    result = volumes.resample(ramp, (24, 4, 6))
    inner = np.broadcast_to(((np.arange(24) + 0.5) / 2 - 0.5)[1:-1, None, None], (22, 4, 6))
    np.testing.assert_allclose(result[1:-1], inner, rtol=1e-6)


@pytest.mark.parametrize("shape", [(7, 9, 11), (30, 5, 20), (13, 17, 12)])
def test_resampling_does_not_depend_on_the_slabs(shape, monkeypatch):
    array = np.random.default_rng(0).random((13, 17, 12), np.float32)
    whole, mask = volumes.resample(array, shape), volumes.resample(array > 0.5, shape, labels=True)
    monkeypatch.setattr(scans, "SLAB", 100)
    np.testing.assert_allclose(volumes.resample(array, shape), whole, rtol=1e-5)
    np.testing.assert_array_equal(volumes.resample(array > 0.5, shape, labels=True), mask)


def test_a_mask_resampled_there_and_back_is_the_same_where_the_grid_is_finer():
    mask = np.random.default_rng(0).random((9, 10, 11)) > 0.5
    fine = volumes.resample(mask, (27, 30, 33), labels=True)
    np.testing.assert_array_equal(fine, mask.repeat(3, 0).repeat(3, 1).repeat(3, 2))
    np.testing.assert_array_equal(volumes.resample(fine, mask.shape, labels=True), mask)


def test_scans_are_brought_to_one_spacing(folders):
    images, masks = folders
    samples, _ = volumes.read_folder(images, masks, spacing=(1.0, 1.0, 1.0))
    assert samples[0].labels.shape == (12, 5, 2)
    assert samples[0].spacing == (1.0, 1.0, 1.0)
    tifffile.imwrite(images / "t.tif", noise(dtype=np.uint8), photometric="minisblack")
    tifffile.imwrite(masks / "t.tif", (noise() > 50).astype(np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match="t.tif does not say its spacing"):
        volumes.read_folder(images, masks, spacing=(1.0, 1.0, 1.0))


def test_a_prediction_on_another_grid_goes_back_to_the_files(tmp_path):
    distance = np.linalg.norm(np.indices((20, 24, 28)) - np.array([10, 12, 14]).reshape(3, 1, 1, 1), axis=0)
    ball = (distance <= 8).astype(np.uint8)
    scan = scans.open_scan(write_nifti(tmp_path / "a.nii", ball.T, np.diag([1.0, 1, 1, 1])))
    grid = volumes.grid_shape(scan, (0.5, 0.5, 0.5))
    assert grid == (40, 48, 56)
    probs = volumes.resample(scan.voxels.astype(np.float32), grid)
    found = np.concatenate(list(volumes.onto_own_grid(iter([probs[:7, ..., None], probs[7:, ..., None]]), scan, grid)))
    mask = found[..., 0] >= 0.5
    assert mask.shape == (20, 24, 28)
    assert np.count_nonzero(mask != ball) < 0.02 * ball.sum()


# Views


def test_the_three_views_pass_through_the_object():
    mask = np.zeros((10, 20, 30), bool)
    mask[2:5, 4:7, 20:23] = True
    found = views.three_views(mask, (3.0, 1.0, 1.0))
    assert list(found) == ["axial", "coronal", "sagittal"]
    for (region, _), shape in zip(found.values(), [(20, 30), (10, 30), (10, 20)], strict=True):
        assert mask[region].shape == shape
        assert np.count_nonzero(mask[region]) == 9
    assert [height for _, height in found.values()] == [1.0, 3.0, 3.0]
    assert np.argwhere(mask[found["axial"][0]])[:, 0].min() == 20 - 7  # the front is up
    told = [
        [views.describe_slice(across, index, mask.shape, oriented) for across, (index, _) in enumerate(found.values())]
        for oriented in (True, False)
    ]
    assert told[0] == ["axial 4 of 10", "coronal 6 of 20", "sagittal 22 of 30"]
    assert told[1] == ["depth 4 of 10", "height 6 of 20", "width 22 of 30"]


def test_a_scan_with_a_name_of_any_bytes_has_its_picture(tmp_path):
    absolute = grey_values.GreyRange(np.array([0]), np.array([63]))
    sample = Sample("a", np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1), np.ones((4, 4, 4), bool), absolute)
    views.plot_volumes([(os.fsdecode(b"t\xe9te.nii") + "\n2% foreground", sample, None)], tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] > 100
