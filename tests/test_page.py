"""Pages to look at: complete in themselves, escaped, the worst first, and small."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from test_predict import save_model, threshold_network

import predict
from lab.evaluate import page
from lab.system import output_files, table

EVIL = '<script>alert("x")</script>&.png'
COLUMNS = predict.COLUMNS


class Addresses(html.parser.HTMLParser):
    """Tags and addresses of a page, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.words.append(data)


def check_self_contained(path):
    found = Addresses(path)
    assert not {"link", "iframe", "object", "base", "form"} & {*found.tags} and found.tags.count("script") == 1
    assert all(address.startswith(("data:image/", "./")) for address in found.addresses)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"""url\(|@import|(src|href)\s*=\s*["']?\s*(https?:)?//""", text)
    return found


def make_training(folder, **more):
    about = {
        "last_epoch": {"epoch": 3, "loss": 0.1},
        "training_seconds": 12.3,
        "parameters": 4096,
        "settings": {"seed": "0", "images": "/data/<b>https://example.org"},
        "provenance": {"keras.version": "3"},
        "test": {"image_dice": 0.9, "image_dice_min": 0.2, "dice_coeff": 0.95},
        "baselines": {"all background": {"image_dice": 3e-9}},
        "failure": None,
    }
    output_files.write_json(folder / "scores.json", about | more)
    dice = (0.9, None, 0.2, 0.5)
    rows = [{"crop": f"{EVIL}, {i}", "image_dice": value} for i, value in enumerate(dice)]
    output_files.write_table(rows, folder / "per_image.csv")
    for name in ("curves.png", "predictions.png"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / name)
    page.write_training(folder / "index.html", "U-Net on <i>circles</i>")
    return folder / "index.html"


def make_rows(folder, num, noisy=False, **more):
    """A folder of predictions, its overlays included."""
    shape = (300, 300, 3) if noisy else (4, 4, 3)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(folder / "drawn.png")
    rows = []
    for i in range(num):
        row = {"picture": f"{i}.png", "width": "300", "height": "300", "objects": "2", "made_with": "m"}
        rows.append(row | {key: values[i] for key, values in more.items()})
        shutil.copy(folder / "drawn.png", folder / f"{i}_overlay.png")
    table.append(folder / "predictions.csv", COLUMNS, rows)
    return page.Gallery(folder / "predictions.csv", COLUMNS, lambda name: name.replace(".png", "_overlay.png"))


def test_the_page_of_a_training_is_complete_in_itself_and_escapes_what_it_shows(tmp_path):
    found = check_self_contained(make_training(tmp_path))
    assert found.tags.count("img") == 2 and not {"i", "b"} & {*found.tags}
    words = "".join(found.words)
    assert EVIL in words and "U-Net on <i>circles</i>" in words and "/data/<b>https://example.org" in words
    assert all(text in words for text in ("0.9000", "0.0000", "4,096 parameters", "keras.version", "seed"))


def test_the_table_of_images_is_worst_first_and_what_has_no_score_is_last(tmp_path):
    text = make_training(tmp_path).read_text()
    assert re.findall(r"&amp;\.png, (\d)</td>", text) == ["2", "3", "0", "1"]


def test_a_useless_network_and_one_behind_a_baseline_are_said(tmp_path):
    assert "warning" not in Addresses(make_training(tmp_path)).words
    assert "The training collapsed." in make_training(tmp_path, failure="The training collapsed.").read_text()
    behind = {"best threshold": {"image_dice": 0.99}}
    assert "is behind &#39;best threshold&#39;" in make_training(tmp_path, baselines=behind).read_text()


def test_of_several_classes_each_has_a_line_and_distances_have_their_unit(tmp_path):
    test = {"image_dice": 0.8, "surface": 1.5, "image_dice/cell": 0.7, "images/cell": 5, "image_dice/wall": 0.9}
    text = make_training(tmp_path, test=test | {"images/wall": 4}, distances="mm").read_text()
    lines = re.findall(r"<td>(the network|\u2013 \w+ \(\d\))</td><td>([\d.]+)</td>", text)
    assert lines == [("the network", "0.8000"), ("\u2013 cell (5)", "0.7000"), ("\u2013 wall (4)", "0.9000")]
    assert "surface distance, mean, mm" in text


@pytest.mark.parametrize("name", [EVIL.replace("/", ""), "a#b?c%.png", "\udce9t\udce9.png", "javascript:x.png"])
def test_names_of_any_kind_are_shown_and_lead_to_their_file(name, tmp_path, monkeypatch):
    model = save_model(threshold_network(), tmp_path / "model.keras")
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((20, 20), 240, np.uint8)).save(tmp_path / "in" / name)
    assert predict.main([str(model), str(tmp_path / "in"), "--out-dir", str(tmp_path / "out")]) == 0
    found = check_self_contained(tmp_path / "out/index.html")
    assert name.replace("\udce9", "?") in "".join(found.words)
    addresses = [address for address in found.addresses if "overlay" in address]
    assert addresses == [page.link(name.replace(".png", "_overlay.png"))] and ":" not in addresses[0]


def test_a_gallery_of_300_noisy_pictures_is_below_five_megabytes(tmp_path):
    gallery = make_rows(tmp_path, 300, noisy=True)
    gallery.write()
    found = check_self_contained(tmp_path / "index.html")
    assert found.tags.count("article") == found.tags.count("img") == 300
    assert (tmp_path / "index.html").stat().st_size < 5e6  # noise is the worst that a JPEG can meet


def test_a_gallery_with_scores_is_worst_first(tmp_path):
    make_rows(tmp_path, 3, dice=("0.9", "", "0.4")).write()
    text = (tmp_path / "index.html").read_text()
    assert re.findall(r"<h3>(\d)", text) == ["2", "0", "1"] and "<option selected>dice" in text


def test_thumbnails_are_made_once_also_by_a_later_process(tmp_path, monkeypatch):
    made = []
    thumbnail = page.thumbnail
    monkeypatch.setattr(page, "thumbnail", lambda path: made.append(path.name) or thumbnail(path))
    gallery = make_rows(tmp_path, 3)
    gallery.write()
    gallery.write()
    page.Gallery(gallery.path, COLUMNS, gallery.overlay_of).write()
    assert made == ["0_overlay.png", "1_overlay.png", "2_overlay.png"]
    Image.fromarray(np.ones((9, 9), np.uint8)).save(tmp_path / "1_overlay.png")
    (tmp_path / "2_overlay.png").unlink()
    page.Gallery(gallery.path, COLUMNS, gallery.overlay_of).write()
    assert made[3:] == ["1_overlay.png", "2_overlay.png"], "of changed files alone"


def test_a_page_is_rewritten_now_and_then_and_its_failure_stops_nothing(tmp_path, monkeypatch, capsys):
    written = []
    gallery = make_rows(tmp_path, 1)
    monkeypatch.setattr(gallery, "_write", lambda: written.append(1) or 1 / 0)
    gallery.update()
    gallery.update()
    assert written == [1]
    gallery.due = 0
    gallery.update()
    assert written == [1, 1] and "WARNING: index.html failed (division by zero)" in capsys.readouterr().err


def test_a_continued_gallery_and_that_of_a_shard_hold_all_rows_of_their_table(tmp_path):
    model = save_model(threshold_network(), tmp_path / "model.keras")
    (tmp_path / "in").mkdir()
    for i in range(4):
        Image.fromarray(np.full((20, 20), 240, np.uint8)).save(tmp_path / f"in/{i}.png")
    command = [str(model), "--out-dir", str(tmp_path / "out"), "--continue"]
    assert predict.main([*command, str(tmp_path / "in/0.png")]) == 0
    assert predict.main([*command, str(tmp_path / "in")]) == 0
    shown = re.findall(r"<h3>(\d)", (tmp_path / "out/index.html").read_text())
    assert sorted(shown) == ["0", "1", "2", "3"]
    assert predict.main([*command, str(tmp_path / "in"), "--shard", "2/2"]) == 0
    assert re.findall(r"<h3>(\d)", (tmp_path / "out/shard-2-of-2/index.html").read_text()) == ["1", "3"]


@pytest.mark.parametrize("value, shown", [
    (None, ""), ("", ""), (0.98765, "0.9877"), ("24.4", "24.40"), (3e-9, "0.0000"), ("1e-06", "1e-06"), (7, "7"),
    ("12", "12"), (12345.6, "12346"), (True, "True"), ("nan", "nan"), ("a\nb", "a?b"), (float("inf"), "inf"),
])  # fmt: skip
def test_numbers_are_shown_as_one_reads_them(value, shown):
    assert page.figure(value) == shown


def test_values_that_are_sorted_by_are_those_of_the_row(tmp_path):
    make_rows(tmp_path, 2, confidence=("0.75", "0.5")).write()
    text = (tmp_path / "index.html").read_text()
    keys = re.findall(r"<option>(\w+)", text)
    cards = [json.loads(values.replace("&#34;", '"')) for values in re.findall(r'data-values="([^"]*)"', text)]
    assert [dict(zip(keys, card, strict=True))["confidence"] for card in cards] == ["0.75", "0.5"]
