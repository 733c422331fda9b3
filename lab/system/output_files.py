"""The files of a script: written aside, moved together, in a folder that no other script uses at the same time.

with output_folder(path) as folder, written_aside(folder, NAMES) as aside:
    failures = write_pieces(aside, {"scores.json": lambda path: write_json(path, scores), ...})
"""

import contextlib
import csv
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.system.errors import first_line

PARTIAL, COMPLETE = ".partial-", ".complete-"  # folders of results that are being written, or moved into place


@contextlib.contextmanager
def written_aside(folder: Path, names=()) -> Iterator[Path]:
    """Yield a folder to write a set of files in; if the block ends without error, they move into `folder` together.

    `names` are all the files that such a set may have: those of a former set are deleted. If `folder` is gone or cannot
    be written to, the files stay in a temporary folder of the system, which a warning names.
    """
    beside = True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{os.getpid()}-", dir=folder))
    except OSError as error:
        aside, beside = Path(tempfile.mkdtemp(prefix="results-")), False
        print(f"warning: {folder} cannot be written ({error.strerror}); the results go to {aside}.", file=sys.stderr)
    try:
        yield aside
        if beside:
            for file in aside.iterdir():
                _flush(file)
            (aside / ".names").write_text(json.dumps(list(names)))
            complete = aside.rename(folder / aside.name.replace(PARTIAL, COMPLETE))  # from here on a kill loses nothing
            move_into_place(complete, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file to; if the block ends without error, that file replaces `path`."""
    aside = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        aside.unlink(missing_ok=True)
        yield aside
        _flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def move_into_place(complete: Path, folder: Path) -> None:
    """Replace the set of files in `folder` by those in `complete`; after a kill, the next call finishes the move."""
    names = complete / ".names"
    if names.exists():  # first the former set is deleted, then the new one comes: they never mix
        for name in json.loads(names.read_text()):
            (folder / name).unlink(missing_ok=True)
        names.unlink()
    for file in complete.iterdir():
        os.replace(file, folder / file.name)
    shutil.rmtree(complete, ignore_errors=True)


def _flush(file: Path) -> None:
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


def write_pieces(folder: Path, pieces: dict[str, Callable[[Path], object]]) -> list[str]:
    """Write each file with its function; return a sentence for each that failed, and delete its parts."""
    failures = []
    for name, write in pieces.items():
        try:
            write(folder / name)
        except Exception as error:  # any error of a plot or a disk: the other files are still written
            (folder / name).unlink(missing_ok=True)
            failures.append(f"{name} could not be written ({first_line(error)}).")
    return failures


def attempt(what: str, call: Callable[[], object], failures: list[str]):
    """The result of a call; None if it failed, with a sentence added to `failures`."""
    try:
        return call()
    except Exception as error:  # as above
        failures.append(f"{what} failed ({first_line(error)}).")


def write_json(path: Path, value) -> None:
    """Write JSON that every program can read: NaN and infinities, which JSON does not have, become null."""
    path.write_text(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of NumPy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(rows: list[dict], path: Path) -> None:
    """Write rows of a table as CSV; a column for each key that occurs."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # names may hold any bytes
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)


@contextlib.contextmanager
def output_folder(path: Path, reads=()) -> Iterator[Path]:
    """Create the folder for all files of a script, and lock it against other scripts during the block.

    Raises:
        ValueError: if it cannot be written to, is full, holds one of the files or folders that are read (`reads`), or
            another script works in it.
    """
    import filelock

    if path.resolve() in {(p if p.is_dir() else p.parent).resolve() for p in reads if p is not None}:
        raise ValueError(f"--out-dir {path} holds the input; name another folder: nothing is overwritten.")
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    lock = filelock.FileLock(path / ".lock")
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            _settle(path)
            _try_to_write(path)
        except filelock.Timeout:
            raise ValueError(f"another script writes to {path}; wait for its end, or name another folder.") from None
        except OSError as error:
            raise ValueError(f"--out-dir {path} cannot be written ({error.strerror}): name another folder.") from None
        yield path
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                (path / ".lock").unlink(missing_ok=True)
            lock.release()
        for folder in new:  # the innermost first: empty ones are deleted
            with contextlib.suppress(OSError):
                folder.rmdir()


def _try_to_write(folder: Path) -> None:
    """Raise OSError if a file cannot be written, also on a full disk."""
    probe = folder / f"{PARTIAL}{os.getpid()}"
    try:
        probe.write_bytes(bytes(65536))
        _flush(probe)
    finally:
        probe.unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Move the complete sets of a killed process into place, delete incomplete ones. The caller holds the lock."""
    for left in sorted(folder.glob(f"{COMPLETE}*")):
        move_into_place(left, folder)
    for left in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
