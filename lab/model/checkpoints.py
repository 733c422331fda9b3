"""Checkpoints: the state of a training after each epoch, enough to reach the same weights, to the bit."""

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lab.system.output_files import replaced

KEPT = 2  # checkpoints: if the newest is damaged, the one before it is read


class Checkpoint:
    """The checkpoints in the output folder of a run; those of other `settings` are refused.

    A file holds the variables of model and optimizer (among them the step counter, which the schedule depends on), the
    history, and `notes` of the caller, such as the MLflow run. It is a zip archive, which has a checksum of each
    member, written aside, flushed and moved.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder
        self.settings = {name: str(value) for name, value in settings.items()}
        self.notes: dict = {}
        self.state = b""  # content of the checkpoint to resume from; empty if the run starts from the beginning
        self._warned = False

    def files(self) -> list[Path]:
        """The checkpoints in the folder, the newest first."""
        return sorted(self.folder.glob("checkpoint-*.npz"), reverse=True)

    def begin(self, resume: bool, overwrite: bool, scores: Path) -> dict | None:
        """Decide how a run begins: from the start or from a checkpoint; return the results of a finished run.

        `scores` is the file of a finished run's results, which hold its `settings`.

        Raises:
            ValueError: if there is a checkpoint and the user has given neither flag, if the settings differ, or if the
                run has ended without scores, or with a loss that is no number.
        """
        if not resume:
            if self.files() and not overwrite:
                raise ValueError(f"{self.folder} holds a stopped run: --resume goes on with it, --overwrite ends it.")
            self.delete()
            return None
        if not self.files() and scores.exists():
            finished = json.loads(scores.read_text())
            self._check_settings(scores, finished["settings"])
            if "test" not in finished or finished.get("last_epoch", {}).get("loss", 0) is None:
                reason = finished.get("failure") or "its test scores are missing."
                raise ValueError(f"The run in {self.folder} has ended: {reason} Run it again, without --resume.")
            print(f"The run in {self.folder} is finished: see {scores}.")
            return finished
        epoch = self.find()
        print(f"Going on after epoch {epoch}." if epoch else f"{self.folder} holds no checkpoint: a new run begins.")
        return None

    def find(self) -> int:
        """Read the newest sound checkpoint into `state`; return its epoch, 0 if there is none."""
        for file, state, about in _sound(self.files()):
            self._check_settings(file, about["settings"])
            self.state, self.notes = state, about["notes"]
            return about["history"]["epoch"][-1]
        return 0

    def _check_settings(self, file: Path, former: dict) -> None:
        """Raise ValueError if a run had other settings; the sentence names those that differ."""
        names = [name for name in {**former, **self.settings} if former.get(name) != self.settings.get(name)]
        if names:
            changes = ", ".join(f"{name} was {former.get(name)}, is {self.settings.get(name)}" for name in names)
            raise ValueError(f"{file} has other settings: {changes}. Give the former ones, or --overwrite.")

    def save(self, model, history: dict, timestamps: list[int]) -> None:
        """Write the state after an epoch; if that fails, warn once, and let the training go on."""
        about = {"settings": self.settings, "notes": self.notes, "history": history, "timestamps": timestamps}
        arrays: dict = {name: np.asarray(variable) for name, variable in _variables(model).items()}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        try:
            with replaced(self.folder / f"checkpoint-{history['epoch'][-1]:06}.npz") as aside:
                np.savez(aside, **arrays)
            for old in self.files()[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            if not self._warned:
                print(f"warning: no checkpoint could be written ({error}); the training goes on.", file=sys.stderr)
            self._warned = True

    def delete(self) -> None:
        """Delete all checkpoints."""
        for file in self.files():
            file.unlink(missing_ok=True)


def settings_of_then(folder: Path) -> dict:
    """The settings of the former run in a folder, stopped or finished; empty if there is none."""
    for _, _, about in _sound(Checkpoint(folder, {}).files()):
        return about["settings"]
    scores = folder / "scores.json"
    return json.loads(scores.read_text())["settings"] if scores.exists() else {}


def restore(model, state: bytes) -> tuple[dict, list[int]]:
    """Give a compiled model and its built optimizer a checkpoint's state; return history and time stamps."""
    if not state:
        return {"epoch": []}, []
    about, arrays = _unpack(state)
    for name, variable in _variables(model).items():
        variable.assign(arrays[name])
    return about["history"], about["timestamps"]


def _sound(files: list[Path]) -> Iterator[tuple[Path, bytes, dict]]:
    """The undamaged ones of some checkpoints: file, content, and its settings, notes and history."""
    for file in files:
        try:
            state = file.read_bytes()
            about, _ = _unpack(state)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"warning: {file} is damaged ({error}); the one before it is taken.", file=sys.stderr)
            continue
        yield file, state, about


def _unpack(state: bytes) -> tuple[dict, dict]:
    """A checkpoint's settings, notes and history, and its arrays."""
    with np.load(io.BytesIO(state), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("about").tobytes()), arrays


def _variables(model) -> dict:
    """The variables of model and optimizer, by names that do not depend on the process."""
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {f"{group}_{i}": variable for group, variables in groups.items() for i, variable in enumerate(variables)}
