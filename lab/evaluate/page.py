"""Pages to look at: `index.html` of a folder of results, one file that opens without a server.

    page.write_training(folder / "index.html", "U-Net on circles")      # from the other files of the folder
    gallery = page.Gallery(folder / "predictions.csv", columns, overlay_of)
    gallery.update()                                                    # after each picture

Pictures are in the page itself, and a click opens their file beside it. Nothing comes from elsewhere.
"""

import base64
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from lab.evaluate import scoring
from lab.system import output_files, table

NAME = "index.html"
SIDE = 180  # pixels of a thumbnail's longer side, at most
SCORES = {  # of the table of scores: key and title
    **{"image_dice": "Dice", "image_dice_p5": "Dice, 5th percentile", "image_dice_min": "Dice, worst"},
    **{"image_iou": "IoU", "image_iou_p5": "IoU, 5th percentile", "image_iou_min": "IoU, worst"},
    **{"dice_coeff": "soft Dice, pooled", "iou_metric": "soft IoU, pooled"},
    **{"surface": "surface distance, mean", "hausdorff95": "95% Hausdorff distance"},
}
PICTURES = {
    "predictions.png": "Of the test set: typical, and worst",
    "curves.png": "Loss and Dice by epoch",
    "confusion.png": "True classes, and what was predicted for them",
    "dataset.png": "The data set",
}


# What all pages share


def write(path: Path, title: str, **parts) -> None:
    """Write a page of the `parts` that page.html names: `lead`, `warning`, `tables`, `pictures`, `facts`, `cards`."""
    import jinja2

    here = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=here, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = figure
    text = environment.get_template("page.html").render(title=title, **parts)
    with output_files.replaced(path) as aside:
        aside.write_bytes(text.encode("utf-8", "replace"))  # names of files may hold any bytes


def figure(value) -> str:
    """A number as one reads it, 0.9876, 12.35 or 4096; other values as they are, nothing for None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "" if value is None else "".join(letter if letter.isprintable() else "?" for letter in str(value))
    if isinstance(value, bool) or not math.isfinite(number) or re.fullmatch(r"-?\d+", str(value)):
        return str(value)
    size = abs(number)
    if 1e-7 < size < 1e-3 or size >= 1e9:
        return f"{number:.4g}"
    return f"{number:.{4 if size < 10 else 2 if size < 1000 else 0}f}"


def table_of(heading: str, rows: Iterable[dict], titles: dict[str, str] | None = None, note: str = "") -> dict:
    """A table for `write`: of `titles`, key and title, the columns that a row has; by default all."""
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = keys if titles is None else [key for key in titles if key in keys]
    columns = [(titles or {}).get(key, key) for key in keys]
    cells = [[row.get(key) for key in keys] for row in rows]
    return {"heading": heading, "columns": columns, "rows": cells, "note": note}


def worst_first(rows: Sequence[dict], key: str) -> list[dict]:
    """Rows by a score, the lowest first; those without one last."""
    return sorted(rows, key=lambda row: float(row[key]) if row.get(key) not in (None, "") else float("inf"))


def link(name: str) -> str:
    """The address of a file beside the page: no name is taken for another place."""
    return "./" + quote(os.fsencode(name))


def picture(path: Path, caption: str) -> tuple[str, str, str]:
    """A PNG file beside the page, for `write`: its address, itself, and what is said of it."""
    return link(path.name), embedded(path.read_bytes(), "png"), caption


def embedded(data: bytes, kind: str) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# A training


def write_training(path: Path, title: str) -> None:
    """The page of a training, from the files beside it: scores, pictures, the table of images, settings."""
    folder = path.parent
    about = json.loads((folder / "scores.json").read_text())
    lead, tables, warning = [], [], "It has no scores."
    if "test" in about:
        test = about["test"]
        lead = [f"Mean Dice of the test set: {test['image_dice']:.4f}."]
        warning = about["failure"] or scoring.describe_behind(test, about["baselines"]) or ""
        names = [key.removeprefix("images/") for key in test if key.startswith("images/")]
        rows = {**about["baselines"], **scoring.with_classes("the network", test, names)}
        note = "A class's name is followed by the number of images that it counts in." if names else ""
        tables = [scores_of(rows, about.get("distances", ""), note)]
    for name, what in (("per_image.csv", "Test images"), ("per_volume.csv", "Test volumes")):
        if (folder / name).exists():
            rows = table.read(folder / name, table.header(folder / name))
            note = f"All {len(rows)}, from {name}. A click on a title sorts. No score: nothing there, nothing found."
            tables.append(table_of(f"{what}, worst first", worst_first(rows, "image_dice"), note=note))
    tables.append(table_of("Last epoch", [about["last_epoch"]]))
    write(
        path,
        title,
        lead=[*lead, f"{about['parameters']:,} parameters, trained in {about['training_seconds']:.0f} s."],
        warning=warning[:1].upper() + warning[1:],
        tables=tables,
        pictures=[picture(folder / name, text) for name, text in PICTURES.items() if (folder / name).exists()],
        facts={"Settings": about["settings"], "Made with": about["provenance"]},
    )


def scores_of(rows: dict[str, dict], unit: str = "", note: str = "") -> dict:
    """A table of scores by name; `unit` is that of distances."""
    titles = {key: f"{title}, {unit}" if "distance" in title else title for key, title in SCORES.items()}
    named = ({"": name.replace("  ", "\u2013 "), **scores} for name, scores in rows.items())
    return table_of("Test scores", named, {"": "", **titles}, note)


# Predictions


class Gallery:
    """The page of a table of predictions, rewritten while the table grows: a thumbnail and the figures of each row."""

    def __init__(self, path: Path, columns: tuple[str, ...], overlay_of: Callable[[str], str]):
        self.path, self.columns, self.overlay_of = path, columns, overlay_of
        self.page, self.due = path.with_name(NAME), 0.0
        self.thumbnails: dict[tuple[str, str], str] = {}  # by the overlay's address and time: each is made once
        if self.page.exists():
            drawn = r'<a href="([^"]*)"><img data-made="(\d+)" src="(data:[^"]*)"'
            text = self.page.read_text(encoding="utf-8", errors="replace")
            self.thumbnails = {(href, made): src for href, made, src in re.findall(drawn, text)}

    def update(self) -> None:
        """Rewrite the page, but not so often that it would take more than a twentieth of the time."""
        if time.monotonic() >= self.due:
            self.write()

    def write(self) -> None:
        """Rewrite the page from the table; what prevents it is told, and the predictions go on."""
        started = time.monotonic()
        failures: list[str] = []
        if self.path.exists():
            output_files.attempt(NAME, self._write, failures)
        for failure in failures:
            print(f"WARNING: {failure}", file=sys.stderr)
        now = time.monotonic()
        self.due = now + max(5, 20 * (now - started))

    def _write(self) -> None:
        rows = worst_first(table.read(self.path, self.columns), "dice")
        hidden = {"picture", "width", "height", "depth", "file", "made_with", "remark"}
        hidden |= {"scale"} if all(row["scale"] in ("", "1.0") for row in rows) else set()
        keys = [key for key in self.columns if key not in hidden and any(row[key] for row in rows)]
        made = ", ".join(dict.fromkeys(row["made_with"] for row in rows))
        beside = [name for name in (self.path.name, "objects.csv", "labels.txt") if self.path.with_name(name).exists()]
        num = sum(int(row["objects"]) for row in rows)
        write(
            self.page,
            f"Predictions in {self.path.parent.resolve().name}",
            lead=[f"{len(rows):,} pictures, {num:,} objects.", f"Made with {made}."],
            beside=[(link(name), name) for name in beside],
            keys=keys,
            wide=any(row["depth"] for row in rows),
            by="dice" if "dice" in keys else "",
            cards=[self._card(row, keys) for row in rows],
        )

    def _card(self, row: dict, keys: list[str]) -> dict:
        overlay = self.path.with_name(self.overlay_of(row["picture"]))
        href, made = link(overlay.name), str(overlay.stat().st_mtime_ns if overlay.exists() else 0)
        if (href, made) not in self.thumbnails:
            self.thumbnails[href, made] = thumbnail(overlay)
        values = ["".join(filter(str.isprintable, row["picture"])), *(row[key] for key in keys)]
        return {"row": row, "values": values, "href": href, "made": made, "thumbnail": self.thumbnails[href, made]}


def thumbnail(path: Path) -> str:
    """A picture of at most SIDE x SIDE pixels, as an address that holds it; nothing of a file that cannot be read."""
    from PIL import Image

    data = io.BytesIO()
    try:
        with Image.open(path) as overlay:
            overlay.thumbnail((SIDE, SIDE), reducing_gap=2)
            overlay.convert("RGB").save(data, "JPEG", quality=60)
    except OSError:
        return ""
    return embedded(data.getvalue(), "jpeg")
