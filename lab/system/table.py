"""A table that grows by a row as soon as the row's files are there: no row is ever without its files.

    finished = table.begin(folder / "predictions.csv", COLUMNS, {"a.png": ["a_mask.png"]}, lambda row: False)
    table.append(folder / "predictions.csv", COLUMNS, [{"picture": "a.png", "objects": 3}])

The first column is the name of a row. File names that are no UTF-8 are kept byte by byte.
"""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

from lab.system.output_files import replaced


def begin(path: Path, columns: tuple, files: dict[str, list[str]], is_finished: Callable[[dict], bool]) -> set[str]:
    """Delete rows of a table and their files, because they will be made again; return the names of those that stay.

    Args:
        path: the table; it need not exist.
        columns: its columns; if the table has others, no row stays.
        files: name of a row to make -> the files that it may have, in the table's folder. Rows of other names stay.
        is_finished: whether a row of these names can stay, with its files.
    """
    rows = [row for row in read(path, columns) if row[columns[0]] not in files or is_finished(row)]
    finished = {row[columns[0]] for row in rows} & files.keys()
    if path.exists():  # first the rows go, then the files
        with replaced(path) as aside:
            append(aside, columns, rows)
    for name in files.keys() - finished:
        for file in files[name]:
            (path.parent / file).unlink(missing_ok=True)
    return finished


def header(path: Path) -> tuple[str, ...]:
    """The columns of a table; () if it does not exist."""
    if not path.exists():
        return ()
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return tuple(next(csv.reader(file), ()))


def read(path: Path, columns: tuple) -> list[dict]:
    """The rows of a table, without an incomplete last line; no rows if its columns are others."""
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return list(rows) if tuple(rows.fieldnames or ()) == columns else []


def append(path: Path, columns: tuple, rows: list[dict]) -> None:
    """Add rows to a table, in a single call, and flush it to the disk; the header comes with the first rows."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if not path.exists():
        writer.writeheader()
    writer.writerows(rows)
    with open(path, "ab", buffering=0) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
        os.fsync(file.fileno())
