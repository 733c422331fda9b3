"""A folder of masks for each class: merged for pictures and for scans, by the same rules."""

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from lab.data import picture_folders, scans, volumes

AFFINE = np.diag([-0.5, 1.0, 2.0, 1.0])  # i runs to the left, so that it is turned in memory
LABELS = np.kron(np.array([[0, 1, 1], [2, 2, 0], [0, 0, 2]], np.uint8), np.ones((8, 8), np.uint8))
BODIES = np.stack([LABELS, LABELS, LABELS.T, LABELS * 0]).astype(np.uint8)  # (D, H, W)
CLASSES = {1: "nucleus", 2: "cell"}  # the folders are sorted: cell becomes 1, nucleus 2
SORTED = np.array([0, 2, 1], np.uint8)


def write(path, array):
    """A picture, or a scan (D, H, W) as it lies in memory when it is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        nibabel.Nifti1Image(array.T[::-1], AFFINE).to_filename(path)
    return path


def read(images, masks, **options):
    folder = picture_folders if next(images.iterdir()).suffix == ".png" else volumes
    return folder.read_folder(images, masks, **options)


@pytest.fixture(params=[".png", ".tif", ".nii.gz"])
def folders(request, tmp_path):
    """Three pictures or scans, and in two folders their masks: 255 for the object."""
    labels, rng = LABELS if request.param == ".png" else BODIES, np.random.default_rng(0)
    for stem in "abc":
        write(tmp_path / "images" / f"{stem}{request.param}", rng.integers(0, 255, labels.shape, np.uint8))
        for label, name in CLASSES.items():
            write(tmp_path / "masks" / name / f"{stem}_mask{request.param}", np.uint8(255) * (labels == label))
    return tmp_path / "images", tmp_path / "masks", request.param, labels


def test_the_folders_name_the_classes_and_their_masks_are_merged(folders, monkeypatch):
    images, masks, _, labels = folders
    monkeypatch.setattr(scans, "SLAB", 600)  # of 576 voxels: each slice by itself
    samples, known = read(images, masks)
    assert known.names == ("cell", "nucleus") and known.values == (0, 1, 2)
    for sample in samples:
        assert sample.labels.dtype == np.uint8
        np.testing.assert_array_equal(sample.labels, SORTED[labels])
    assert read(images, masks, names=["cell", "nucleus"])[1] == known
    with pytest.raises(ValueError, match="the folders of masks name the classes cell, nucleus; leave --classes out"):
        read(images, masks, names=["nucleus", "cell"])


def test_a_class_may_lack_the_mask_of_an_image_and_an_image_may_not_lack_all(folders):
    images, masks, suffix, labels = folders
    (masks / "cell" / f"b_mask{suffix}").unlink()
    samples, _ = read(images, masks)
    np.testing.assert_array_equal(samples[1].labels, 2 * (labels == 1))
    (masks / "nucleus" / f"b_mask{suffix}").unlink()
    with pytest.raises(ValueError, match=f"images/b{suffix} has no mask in .*masks"):
        read(images, masks)


def test_an_overlap_names_both_files_and_the_first_place(folders):
    images, masks, suffix, labels = folders
    write(masks / "cell" / f"b_mask{suffix}", np.full(labels.shape, 255, np.uint8))
    place = "the pixel x 8, y 0" if suffix == ".png" else "the voxel x 8, y 0, z 0"
    words = rf"cell/b_mask{suffix} and .*nucleus/b_mask{suffix} both claim {place}:"
    with pytest.raises(ValueError, match=words):
        read(images, masks)


def test_the_place_of_an_overlap_is_counted_from_the_first_slab(folders, monkeypatch):
    images, masks, suffix, labels = folders
    monkeypatch.setattr(scans, "SLAB", 24 * 8)
    other = (labels == 2).astype(np.uint8)
    place = (2, 9, 1) if labels.ndim == 3 else (9, 20)
    nucleus = (labels == 1).astype(np.uint8)
    other[place] = nucleus[place] = 1
    write(masks / "cell" / f"a_mask{suffix}", other)
    write(masks / "nucleus" / f"a_mask{suffix}", nucleus)
    told = "x 1, y 9, z 2" if labels.ndim == 3 else "x 20, y 9"
    with pytest.raises(ValueError, match=told):
        read(images, masks)


def test_what_is_wrong_with_the_mask_of_a_class_is_told_with_its_file(folders):
    images, masks, suffix, labels = folders
    write(masks / "cell" / f"a_mask{suffix}", (labels[..., 1:] == 2).astype(np.uint8))
    write(masks / "nucleus" / f"b_mask{suffix}", (np.arange(labels.size) % 9).reshape(labels.shape).astype(np.uint8))
    with pytest.raises(ValueError) as caught:
        read(images, masks)
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "cell/a_mask" in lines[0] and "23 x 24" in lines[0]
    assert "nucleus/b_mask" in lines[1] and "is no mask of one object" in lines[1]
    for path in masks.rglob(f"*{suffix}"):
        write(path, 0 * labels)
    with pytest.raises(ValueError, match=f"all masks in {masks} are empty"):
        read(images, masks)


def test_the_mask_of_a_class_must_lie_on_the_scans_grid(tmp_path):
    write(tmp_path / "images" / "a.nii", np.arange(BODIES.size).reshape(BODIES.shape).astype(np.int16))
    write(tmp_path / "masks" / "cell" / "a.nii", (BODIES == 2).astype(np.uint8))
    shifted = nibabel.Nifti1Image((BODIES == 1).astype(np.uint8).T, np.diag([0.5, 1.0, 2.0, 1.0]))
    (tmp_path / "masks" / "nucleus").mkdir()
    shifted.to_filename(tmp_path / "masks" / "nucleus" / "a.nii")
    with pytest.raises(ValueError, match=r"nucleus/a.nii lies up to [\d.]+ mm beside its scan"):
        volumes.read_folder(tmp_path / "images", tmp_path / "masks")


def test_an_empty_folder_of_a_class_is_told(folders):
    images, masks, *_ = folders
    (masks / "wall").mkdir()
    with pytest.raises(ValueError, match="the folder .*masks/wall holds no"):
        read(images, masks)
