"""What a network sees of grey values: nothing that may be an object is lost, and equal tissue stays equal."""

import math

import nibabel
import numpy as np
import pytest
from PIL import Image

import data_synth
import unet_segmentation
import volume_segmentation
from lab.data import grey_values, patches
from lab.data.grey_values import GreyRange
from lab.data.sample import Sample
from lab.evaluate import scoring
from lab.model import prediction


def prepared(picture, settings=grey_values.STRETCHED):
    return grey_values.range_of(picture, settings).prepare(picture)


# Beyond the range


def test_prepared_values_follow_the_formula():
    found = GreyRange(np.array([40]), np.array([150])).prepare(np.array([[40, 95, 150, 210, 260, -70]]).T)[:, 0]
    expected = [0, 0.5, 1, 1 + math.log(170 / 110), 1 + math.log(2), -math.log(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("values, low, high", [
    (np.arange(2**16), 1000, 1235),  # a micrograph that uses 235 of 65,536 levels, beside which anything may lie
    (np.r_[np.arange(300), 299_000, 299_001], 0, 299),  # hot pixels a thousand times brighter than the rest
    (np.arange(-1024, 3072), -10, 80),  # CT, where the window is the brain's
    (np.arange(-1024, 3072), -1000, 900),
])  # fmt: skip
def test_order_stays_and_neighbours_stay_apart(values, low, high):
    found = GreyRange(np.array([low]), np.array([high])).prepare(values[:, None])[:, 0]
    assert np.all(np.diff(found) > 0) and np.isfinite(found).all() and np.abs(found).max() < 10


def test_model_files_of_version_2_clip_as_they_did():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    low, high = np.percentile(image, [1, 99]).astype(np.float32)
    expected = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1)
    np.testing.assert_array_equal(prepared(image, {"stretch": [1, 99], "beyond": "clip"}), expected)


def test_varied_patches_keep_what_is_brighter_than_the_rest():
    image = np.full((9, 9, 3), 0.6, np.float32)
    image[4, 4], image[2, 2] = 1.8, -0.7
    rng = np.random.default_rng(0)
    for _ in range(50):
        found, mask = patches.vary(image, image[..., 0] > 1, rng, brightness=0.4)
        assert np.isfinite(found).all()
        for channel in np.moveaxis(found, -1, 0):
            assert mask[np.unravel_index(channel.argmax(), mask.shape)]
            assert np.ptp(channel) > 1, "clipped"


# The range of one picture


def blobs():
    """Soft blobs between 20 and 235, with a little noise: (90, 120, 1), as an 8-bit camera sees it."""
    rows, columns = np.indices((90, 120))
    soft = np.sin(rows / 9) * np.cos(columns / 13) * 100 + 127
    return np.round(soft + np.random.default_rng(0).normal(0, 3, soft.shape)).clip(0, 255).astype(np.uint8)[..., None]


@pytest.mark.parametrize("container", [
    lambda p: p.astype(np.uint16),  # 16 bits of which 8 are used
    lambda p: p.astype(np.uint16) * 257,
    lambda p: p.astype(np.uint16) * 7 + 1000,  # another exposure, another offset
    lambda p: p.astype(np.float32) / 255,
    lambda p: p.astype(np.float32) / 65535,
])  # fmt: skip
@pytest.mark.parametrize("picture", [blobs(), blobs() // 20, blobs() // 100], ids=["", "12 levels", "3 levels"])
def test_a_picture_is_the_same_to_the_network_in_every_type(container, picture):
    np.testing.assert_allclose(prepared(container(picture)), prepared(picture), atol=2e-5)
    assert -0.75 < prepared(picture).min() <= 0 and 1 <= prepared(picture).max() < 1.1


@pytest.mark.parametrize("container", [np.uint8, np.uint16, np.float32])
def test_a_flat_picture_stays_flat(container):
    flat = np.full((100, 100, 1), 90)
    assert not prepared(flat.astype(container)).any()
    rng = np.random.default_rng(0)
    for noise in (rng.integers(-1, 2, flat.shape), rng.normal(0, 3, flat.shape), rng.random(flat.shape) < 0.02):
        assert prepared((flat + noise).round().astype(container)).std() < 0.08, "noise alone was blown up"


@pytest.mark.parametrize("dtype, ground, objects", [
    (np.uint8, 255, 40), (np.uint16, 65535, 0), (np.uint16, 1000, 4000), (np.int16, -1024, 300), (np.float32, -1000, 9),
])  # fmt: skip
def test_few_objects_on_a_ground_of_one_value_stand_out(dtype, ground, objects):
    picture = np.full((200, 200, 1), ground, dtype)
    picture[::20, ::20] = objects  # a quarter of a percent
    shown = prepared(picture)
    assert np.isfinite(shown).all() and abs(shown[0, 0, 0] - shown[1, 1, 0]) > 0.1


def test_noise_does_not_hide_objects_that_stand_out_of_it():
    """Contrast and noise of the lab's own circles: the range is stretched as if nothing were said about noise."""
    images, _ = data_synth.make_circles(20, 128, seed=0, radius=(15, 25))
    for image in images:
        found = grey_values.range_of(image, grey_values.STRETCHED)
        np.testing.assert_allclose([found.low[0], found.high[0]], np.percentile(image, [1, 99]), atol=1e-6)


def test_each_channel_is_stretched_by_itself():
    colours = np.concatenate([blobs(), blobs() // 2, 255 - blobs()], axis=-1)
    for channel in range(3):
        np.testing.assert_array_equal(prepared(colours)[..., [channel]], prepared(colours[..., [channel]]))


def test_a_volume_is_stretched_by_the_same_rule():
    volume = np.stack([blobs()] * 20)
    np.testing.assert_allclose(prepared(volume)[7], prepared(blobs()), atol=1e-6)


# Surroundings


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_empty_surroundings_do_not_decide_the_range(share):
    """The same tissue has the same values, however much of the scan is empty; from a quarter on, as in nnU-Net."""
    tissue = np.stack([blobs()] * 20) // 2 + 100
    scan = np.where(np.arange(120)[:, None] < 120 * share, np.uint8(0), tissue)
    whole, part = (grey_values.range_of(image, grey_values.STRETCHED) for image in (tissue, scan))
    np.testing.assert_allclose([part.low, part.high], [whole.low, whole.high], atol=12)
    clipped = grey_values.range_of(scan, {"stretch": [1, 99], "beyond": "clip"})
    assert clipped.low == 0


def test_surroundings_of_a_colour_picture_are_one_colour():
    rng = np.random.default_rng(0)
    pixels = rng.integers(50, 200, (1000, 3))
    pixels[:400] = 255, 255, 255
    assert len(grey_values.without_surroundings(pixels, 0.25)) == 600
    pixels[:400, 0] = rng.integers(0, 255, 400)  # equal in two channels, not in the third
    assert len(grey_values.without_surroundings(pixels, 0.25)) == 1000


@pytest.mark.parametrize("ground", [0, 90, 255])
def test_a_picture_of_one_value_but_for_an_object_shows_it(ground):
    picture = np.full((200, 200, 1), ground, np.uint8)
    picture[50:55, 50:55] = 200
    found = prepared(picture)
    assert abs(found[52, 52, 0] - found[0, 0, 0]) > 0.1


# One range for the folder, or one for each


def sample(image, mask):
    image = image[..., None]
    return Sample("a", image, mask, grey_values.range_of(image, grey_values.STRETCHED))


def scene(rng, objects=1, gain=1.0, offset=0.0, side=96):
    """Ground 60, noise 8, discs of 150, and one of 210, which is the object: (side, side), 16 bits."""
    image, mask, rows, columns = 60 + rng.normal(0, 8, (side, side)), None, *np.indices((side, side))
    in_a_row = side // 12 - 1
    for i in rng.permutation(objects):
        disc = np.hypot(rows - 9 - 12 * (i // in_a_row), columns - 9 - 12 * (i % in_a_row)) <= 4
        image[disc] += 90 if i else 150
        mask = mask if i else disc
    return (gain * image + offset).round().clip(0).astype(np.uint16), mask


def settle(images, wanted="auto"):
    parts = {"training": [sample(*image) for image in images], "validation": [], "test": []}
    return grey_values.settle(parts, wanted)


def test_pictures_of_one_camera_keep_their_absolute_values():
    """They hold more or fewer bright things, so that their own percentiles mean another grey value in each."""
    rng = np.random.default_rng(0)
    settings, parts, said = settle([scene(rng, objects) for objects in (1, 4, 12, 30, 40)])
    assert "window" in settings and "one range for the folder" in said
    assert len({id(each.grey_range) for each in parts["training"]}) == 1
    figures = [float(word) for word in said.split("contrast:")[1].split() if word[0].isdigit()]
    assert 10 * figures[0] < figures[1], said


def test_pictures_of_two_scanners_get_a_range_each():
    rng = np.random.default_rng(0)
    settings, parts, said = settle([scene(rng, 20, *look) for look in [(1, 0), (9, 700)] * 3])
    assert "window" not in settings and "a range for each picture" in said
    both = [each.prepare(each.image)[each.labels].mean() for each in parts["training"]]
    assert np.ptp(both) < 0.1, "the two scanners' objects look alike to the network"


@pytest.mark.parametrize("wanted", ["folder", "picture"])
def test_a_flag_overrules_what_was_measured(wanted):
    rng = np.random.default_rng(0)
    for images in ([scene(rng, 20, *look) for look in [(1, 0), (9, 700)]], [scene(rng, n) for n in (1, 30)]):
        assert ("window" in settle(images, wanted)[0]) == (wanted == "folder")


def test_one_picture_gets_a_range_of_its_own():
    assert "window" not in settle([scene(np.random.default_rng(0))])[0]


def test_the_folders_range_is_that_of_each_channel():
    rng = np.random.default_rng(0)
    colours = []
    for objects in (1, 30):
        image, mask = scene(rng, objects)
        image = np.stack([image, 3 * image, 1000 - image], axis=-1)
        colours.append(Sample("a", image, mask, grey_values.range_of(image, grey_values.STRETCHED)))
    low, high = grey_values.settle({"training": colours}, "folder")[0]["window"]
    np.testing.assert_allclose(low[1], 3 * low[0], rtol=0.02)
    np.testing.assert_allclose(low[2], 1000 - high[0], rtol=0.02)


def test_signed_grey_values_share_a_range_around_the_objects():
    rng = np.random.default_rng(0)
    scans = []
    for _ in range(2):
        mask = np.zeros((20, 20, 20), bool)
        mask[5:10, 5:10, 5:10] = True
        image = np.where(mask, rng.uniform(20, 50, mask.shape), rng.uniform(-1000, 1000, mask.shape))
        scans.append(sample(image.astype(np.int16), mask))
    found = grey_values.folder_range(scans)
    np.testing.assert_allclose([found.low[0], found.high[0]], [-10, 80], atol=2)
    positive = [sample(each.image[..., 0] + 2000, each.labels) for each in scans]
    assert grey_values.folder_range(positive).low < 1100


# From the folder to the model file and back


def write_folder(folder, images):
    for name in ("pictures", "masks"):
        (folder / name).mkdir(parents=True)
    for i, (image, mask) in enumerate(images):
        Image.fromarray(image).save(folder / "pictures" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{i}.png")
    return ["--images", str(folder / "pictures"), "--masks", str(folder / "masks"), "--out-dir", str(folder / "out")]


@pytest.mark.parametrize("look", [
    lambda image: image.astype(np.uint8), lambda image: (255 - image).astype(np.uint8), lambda image: 40 * image + 900,
], ids=["bright", "dark", "16 bits"])  # fmt: skip
def test_a_small_object_is_told_from_clutter_that_is_less_bright(look):
    """The objects are 0.07% of the pixels, brighter than 99%: clipped there, they are as bright as the clutter."""
    rng = np.random.default_rng(1)
    images = [scene(rng, 26, side=256) for _ in range(4)]
    _, parts, _ = settle([(look(image), mask) for image, mask in images])
    masks = np.stack([mask[..., None] for _, mask in images]).astype(np.float32)
    seen = np.stack([each.prepare(each.image) for each in parts["training"]])
    assert scoring.best_threshold(seen, masks, absolute=False)[1] > 0.99
    clipped = np.clip(seen, 0, 1)
    assert scoring.best_threshold(clipped, masks, absolute=False)[1] < 0.2


SHORT = "--size 64 --filters 8 --epochs 10 --train-images 96 --learning-rate 1e-2 --precision float32"


@pytest.mark.slow
def test_a_network_finds_bright_objects_among_clutter(store, quick_training, tmp_path, capsys):
    rng = np.random.default_rng(1)
    images = [scene(rng, 26, side=192) for _ in range(9)]
    flags = write_folder(tmp_path, [(image.astype(np.uint8), mask) for image, mask in images])
    found = unet_segmentation.main([*flags, *SHORT.split()])
    console = capsys.readouterr().out
    assert found["image_dice"] > 0.95, console
    assert "best threshold, raw values" in console and "Grey values: one range for the folder" in console


TINY_SCANS = "--patch 8 --filters 2 --epochs 1 --train-patches 2 --grey-range folder"


def test_the_folders_range_travels_in_the_model_file(store, quick_training, tmp_path):
    """A scan is prepared as in training, also where its own percentiles would say something else."""
    (tmp_path / "scans").mkdir(), (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        image, mask = np.zeros((16, 16, 16), np.uint8), np.zeros((16, 16, 16), np.uint8)
        image[:, : 4 + 2 * i] = rng.integers(60, 120, (16, 4 + 2 * i, 16))
        mask[4:8, :4], image[4:8, :4] = 1, 200
        for folder, array in (("scans", image), ("masks", mask)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / folder / f"{i}.nii")
    flags = [f"--{name}={tmp_path / folder}" for name, folder in FOLDERS.items()]
    volume_segmentation.main([*flags, *TINY_SCANS.split()])
    (model,) = prediction.load_models([tmp_path / "out" / "model.keras"])
    (low,), (high,) = model.preprocessing["window"]
    assert 55 <= low <= 65 and high == 200 and model.preprocessing["beyond"] == "log"
    (prepare,) = prediction.prepare_pictures([model], np.array([0, 0, 5, 9], np.uint8).reshape(4, 1, 1, 1))
    np.testing.assert_allclose(prepare(np.array([[low], [high]])), [[0], [1]], atol=1e-6)


FOLDERS = {"images": "scans", "masks": "masks", "out-dir": "out"}


# What is said


def test_strange_grey_values_are_said():
    rng = np.random.default_rng(0)
    training = rng.uniform(0.2, 0.4, (5, 16, 16, 1))
    seen = grey_values.describe_training(training, grey_values.ABSOLUTE)["seen"]
    assert grey_values.describe_strangeness(training[0], seen) is None
    assert "outside those of the training (darkest 1%: 0.70, in training 0.20 to" in grey_values.describe_strangeness(
        training[0] + 0.5, seen
    )


def test_another_exposure_is_said_where_the_folder_has_one_range():
    rng = np.random.default_rng(0)
    settings, parts, _ = settle([scene(rng, objects) for objects in (1, 4, 12, 30, 40)])
    training = np.stack([each.prepare(each.image) for each in parts["training"]])
    seen = grey_values.describe_training(training, settings)["seen"]
    usual, dark = (scene(rng, 20, gain)[0][..., None] for gain in (1, 0.4))
    assert grey_values.describe_strangeness(prepared(usual, settings), seen) is None
    assert "another exposure" in grey_values.describe_strangeness(prepared(dark, settings), seen)


def test_a_network_behind_a_baseline_is_said():
    rows = {"all background": {"image_dice": 0.1}, "best threshold": {"image_dice": 0.5}}
    said = scoring.describe_behind({"image_dice": 0.3}, rows)
    assert "(Dice 0.3000) is behind 'best threshold' (0.5000)" in said
    assert scoring.describe_behind({"image_dice": 0.49}, rows) is None
    told = {"likeliest sphere": {"image_dice": 0.99}, **rows}  # knows the shape
    assert scoring.describe_behind({"image_dice": 0.5}, told) is None


def test_what_lies_beyond_the_range_is_drawn_too():
    shown = grey_values.shown_range(np.array([-0.5, 0, 1, 1.5])).prepare(np.array([[-0.5, 0, 1, 1.5]]).T)[:, 0]
    np.testing.assert_allclose(shown, [0, 0.25, 0.75, 1])
    hot = grey_values.shown_range(np.array([0, 1, 7.9])).prepare(np.array([[0, 1, 7.9]]).T)[:, 0]
    np.testing.assert_allclose(hot, [0, 0.5, 1])
