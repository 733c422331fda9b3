"""Pictures of one class and of several: what their pixels say."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion

from lab.data import grey_values
from lab.data.classes import COLOURS, NOT_LABELLED, Classes
from lab.data.sample import Sample, to_masks
from lab.evaluate import drawing, plots, views

WHERE = r"a\.png\nx (\d+)-(\d+) y (\d+)-(\d+)"
RANGE = grey_values.GreyRange(np.zeros(1), np.ones(1))


def several(num, **changed):
    classes = Classes(tuple(f"tissue {k}" for k in range(1, num + 1)), tuple(range(0, 10 * num + 1, 10)))
    return dataclasses.replace(classes, **changed)


def stripes_of_classes(num, sides=(40, 60)):
    """Labels (*sides) with all classes side by side, and a margin of background."""
    labels = np.zeros(sides, np.uint8)
    labels[..., 2:-2, :] = (np.arange(sides[-1]) * (num + 1) // sides[-1]).astype(np.uint8)
    return labels


def drawn(path):
    return np.asarray(Image.open(path).convert("RGB"))


def holds(picture, colour):
    return (np.abs(picture.astype(int) - np.asarray(colour)).max(axis=-1) <= 1).any()


# Overlays


@pytest.mark.parametrize("channels", [1, 3])
def test_one_class_is_tinted_by_a_quarter_and_outlined(channels):
    rng = np.random.default_rng(0)
    image, mask = rng.random((30, 50, channels), np.float32), rng.random((30, 50)) < 0.7
    line = np.array([230, 159, 0] if channels == 1 else [50, 255, 50], np.float32)
    expected = np.broadcast_to(image * np.float32(255), (30, 50, 3)).copy()
    expected[mask] += 0.25 * (line - expected[mask])
    expected[mask & ~binary_erosion(mask, np.ones((3, 3)), border_value=1)] = line
    for labels in (mask, mask.astype(np.uint8)):
        np.testing.assert_array_equal(drawing.overlay(image, labels), expected.astype(np.uint8))


@pytest.mark.parametrize("num", [2, 8, 29])
def test_each_class_is_outlined_in_its_colour(num):
    labels = stripes_of_classes(num, (40, 200))
    shown = drawing.overlay(np.full((40, 200, 1), 0.5, np.float32), labels, colours=several(num).colours)
    assert shown.shape == (40, 200, 3) and shown.dtype == np.uint8
    for k, colour in enumerate(several(num).colours, 1):
        assert (shown[labels == k] == colour).all(axis=-1).any()
    assert (shown[labels == 0] == 127).all()


def test_dark_colours_are_seen_on_black_and_bright_ones_stay_as_they_are():
    dark = np.array([[0, 0, 0], [128, 0, 0], [0, 0, 128]])
    assert (drawing.on_black(dark) @ [0.299, 0.587, 0.114] > drawing.DARKEST - 1).all()
    bright = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS]
    np.testing.assert_array_equal(drawing.on_black(bright), bright)


def test_no_two_colours_of_classes_are_nearly_equal():
    """By their distance in CIELAB, where a distance of 2 can just be seen."""
    rgb = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    x, y, z = np.cbrt(xyz / [0.9505, 1, 1.089]).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
    assert np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(len(lab), 1)].min() > 16


def test_what_is_not_labelled_is_striped_and_has_no_class():
    labels = np.full((48, 48), NOT_LABELLED, np.uint8)
    shown = drawing.overlay(np.zeros((48, 48, 1), np.float32), labels)
    assert set(np.unique(shown)) == {0, drawing.STRIPE}
    assert (shown > 0).mean() == pytest.approx(1 / 3, abs=0.02)


# Errors


def test_wrong_pixels_have_the_colour_of_what_was_predicted():
    true, found = np.array([[0, 0, 1, 1, 1]], np.uint8), np.array([[0, 2, 1, 2, 0]], np.uint8)
    colours = [(230, 159, 0), (86, 180, 233)]
    right, white = [drawing.RIGHT] * 3, [255] * 3
    assert drawing.error_colours(true, found, colours).tolist() == [
        [[0] * 3, [*colours[1]], right, [*colours[1]], white]
    ]


def test_what_is_not_labelled_is_no_error():
    true, found = np.full((12, 12), NOT_LABELLED, np.uint8), np.arange(144, dtype=np.uint8).reshape(12, 12) % 3
    shown = drawing.error_colours(true, found, several(2).colours)
    assert set(np.unique(shown)) == {0, drawing.STRIPE}


# Figures


@pytest.mark.parametrize(("num", "channels"), [(1, 1), (3, 3), (20, 1)])
def test_predictions_show_each_class_in_its_colour(num, channels, tmp_path):
    labels = stripes_of_classes(num)[None]
    labels[:, :8, :20] = NOT_LABELLED
    masks, images = to_masks(labels, num), np.random.default_rng(0).random((1, 40, 60, channels))
    found = (labels == 1)[..., None] * 1.0 if num == 1 else to_masks(np.roll(labels, 3, axis=2) % NOT_LABELLED, num)
    rows = [("typical: $x$ \u5f71\u50cf.png\nDice 0.5", images[0], masks[0], found[0])]
    plots.plot_predictions(rows, tmp_path / "a.png", several(num))
    for colour in several(num).colours if num > 1 else ():
        assert holds(drawn(tmp_path / "a.png"), colour)


@pytest.mark.parametrize(("sides", "place"), [
    ((256, 200), None),  # drawn whole
    ((600, 700), (320, 40)),
    ((600, 700), (5, 690)),
    ((100, 300), (50, 10)),
    ((600, 700), None),
])  # fmt: skip
@pytest.mark.parametrize("num", [1, 3])
def test_of_a_large_picture_the_part_around_the_object_is_drawn_and_named(sides, place, num):
    labels = np.zeros(sides, np.uint8)
    if place:
        labels[place] = num
    masks, image = to_masks(labels[None], num)[0], np.random.default_rng(0).random((*sides, 1))
    title, part, mask, probs = plots.window("a.png", image, masks, masks)
    assert part.shape[:2] == mask.shape[:2] == tuple(np.minimum(sides, 256))
    np.testing.assert_array_equal(mask, probs)
    assert mask[..., -1].sum() == (place is not None)
    if max(sides) > 256:
        x, last_x, y, last_y = (int(number) for number in re.fullmatch(WHERE, title).groups())
        np.testing.assert_array_equal(part, image[y : last_y + 1, x : last_x + 1])
    else:
        assert title == "a.png"


@pytest.mark.parametrize("num", [2, 15, 33])
def test_a_confusion_matrix_is_drawn_for_few_and_many_classes(num, tmp_path):
    found = np.random.default_rng(0).integers(1, 1000, (num, num))
    found[1] = 0
    plots.plot_confusion(found, [f"a class of a long name {k}" for k in range(num)], tmp_path / "a.png")
    assert drawn(tmp_path / "a.png").std() > 10


@pytest.mark.parametrize("num", [2, 9])
def test_curves_of_classes_are_drawn_behind_the_mean(num, tmp_path):
    names = ("loss", "dice_coeff", "iou_metric", "image_dice", "image_iou")
    history = {"epoch": [1, 2], **{prefix + name: [0.5, 0.9] for name in names for prefix in ("", "val_")}}
    plots.plot_curves(history, tmp_path / "mean.png")
    for k in range(num):
        history |= {f"{prefix}{name}/tissue {k}": [np.nan, 0.8] for name in names[3:] for prefix in ("", "val_")}
    history |= {f"val_{name}/tissue 1": [0.6, 0.7] for name in names[3:]}
    plots.plot_curves(history, tmp_path / "classes.png", Classes(tuple(f"tissue {k}" for k in range(num))))
    plots.plot_curves(history, tmp_path / "own.png", Classes(("tissue 1",), (0, 0x00CC00), "colour"))
    assert holds(drawn(tmp_path / "own.png"), [0, 0xCC, 0])
    blue = [int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)]  # of the second class, and of no line of the mean
    assert holds(drawn(tmp_path / "classes.png"), blue) and not holds(drawn(tmp_path / "mean.png"), blue)


@pytest.mark.parametrize("sides", [(40, 60), (16, 40, 30)])
@pytest.mark.parametrize("num", [1, 3])
def test_the_page_of_a_data_set_shows_the_colours_of_the_masks(sides, num, tmp_path):
    classes = several(
        num, kind="palette", palette=tuple(i * 7 % 256 for i in range(768)), values=tuple(range(30, 31 + 40 * num, 40))
    )
    labels = stripes_of_classes(num, sides)
    labels[..., :6, :6] = NOT_LABELLED
    image = np.random.default_rng(0).random((*sides, 1), np.float32)
    samples = [Sample(name, image, labels, RANGE) for name in ("b $", "a \u5f71.nii")]
    (plots if len(sides) == 2 else views).plot_dataset(samples, tmp_path / "a.png", classes=classes)
    for colour in drawing.on_black(classes.colours) if num > 1 else ():
        assert holds(drawn(tmp_path / "a.png"), colour)


def test_volumes_show_what_was_predicted_wrongly_in_the_classes_colours(tmp_path):
    labels = stripes_of_classes(3, (16, 40, 30))
    sample = Sample("a", np.zeros((16, 40, 30, 1), np.float32), labels, RANGE, (3.0, 1.0, 1.0))
    for name, found in (("right", labels), ("wrong", np.where(labels == 1, 2, labels))):
        views.plot_volumes([("a", sample, found)], tmp_path / f"{name}.png", several(3))
    translucent = 0.6 * np.array(several(3).colours[1])
    assert holds(drawn(tmp_path / "wrong.png"), translucent) and not holds(drawn(tmp_path / "right.png"), translucent)


# Scans


@pytest.mark.parametrize("spacing", [None, (2.5, 1.0, 1.0), (1.0, 0.4, 0.4)])
@pytest.mark.parametrize("sides", [(8, 12, 10), (20, 16, 100), (4, 320, 300)])
def test_a_montage_is_large_enough_to_read_and_has_the_proportions_of_the_body(sides, spacing):
    labels = stripes_of_classes(2, sides)
    image = np.zeros((*sides, 1), np.float32)
    shown = views.montage(image, labels, spacing, RANGE.prepare, several(2).colours, oriented=True)
    assert shown.dtype == np.uint8 and max(shown.shape) >= 300 and max(shown.shape) < 4000
    for colour in several(2).colours:
        assert (shown == colour).all(axis=-1).any()
    depth, height, width = np.multiply(sides, spacing or (1, 1, 1))
    across = shown.shape[1] - 12  # three panels, each with a margin
    if across > 600:  # else captions are wider than slices
        assert across / (shown.shape[0] - 20) == pytest.approx((2 * width + height) / max(height, depth), rel=0.1)


def test_left_and_right_are_marked_where_they_are_known_only():
    image, labels = np.zeros((16, 16, 16, 1), np.float32), np.zeros((16, 16, 16), bool)
    known, unknown = (views.montage(image, labels, None, RANGE.prepare, oriented=known) for known in (True, False))
    assert known.shape == unknown.shape
    assert not unknown[20:].any()
    panel = known[20:, :304]
    assert panel[:, :20].any() and panel[:, 280:].any() and not panel[:, 20:280].any()


# Names


def test_a_letter_that_matplotlibs_own_font_lacks_comes_from_another_font():
    letter = "\u214a"  # a property line: in STIX, which comes with Matplotlib
    families, missing = drawing.fonts_with(f"a{letter}")
    assert families[0] == "DejaVu Sans" and len(families) == 2 and not missing
    assert drawing.legible(f"a{letter}") == f"a{letter}"
    assert drawing.fonts_with("abc")[0] == ["DejaVu Sans"]


def test_a_letter_that_no_font_has_is_a_question_mark(monkeypatch):
    from matplotlib import font_manager

    own = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    drawing.fonts_with.cache_clear()
    assert (
        drawing.legible("\u5f71 \u0441\u043d\u0438\u043c\u043e\u043a \udce9")
        == "? \u0441\u043d\u0438\u043c\u043e\u043a ?"
    )
    drawing.fonts_with.cache_clear()


def test_a_long_name_loses_its_middle():
    assert drawing.legible("left ventricle, number 7", 10) == "left\u2026ber 7"
