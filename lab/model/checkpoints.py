"""Checkpoints: the state of a training after each epoch, from which it goes on to the same bits."""

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lab.system.output_files import replaced

KEPT = 2  # checkpoints: should the newest be damaged, the one before it serves


class Checkpoint:
    """The state of a training after each epoch, in `folder`: enough to go on to the same weights, to the bit.

    A file holds the variables of model and optimizer (its step counter, and with it the schedule, is among them), the
    history, and whatever the caller keeps in `notes`, such as the MLflow run. It is a zip archive, which has a checksum
    of each member, written aside, flushed and moved; the newest two are kept. What decides the batches is the epoch.

    Args:
        folder: of the run's output.
        settings: what the training depends on; a checkpoint of other settings is refused.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder
        self.settings = {name: str(value) for name, value in settings.items()}
        self.notes: dict = {}
        self.state = b""  # of the file to go on from; nothing: from the beginning
        self._warned = False

    def files(self) -> list[Path]:
        """The checkpoints in the folder, the newest first."""
        return sorted(self.folder.glob("checkpoint-*.npz"), reverse=True)

    def begin(self, resume: bool, overwrite: bool, scores: Path) -> dict | None:
        """Decide how a run begins where another may have been stopped; return the results of a finished one.

        Args:
            resume: go on with the run that lies in the folder.
            overwrite: delete its checkpoints.
            scores: the file of a finished run's results, which hold its `settings`.

        Raises:
            ValueError: if there is a checkpoint and the user has said neither, if the settings differ, or if the run
                has ended without scores, or with a loss that is no number.
        """
        if self.files() and not resume and not overwrite:
            raise ValueError(
                f"{self.folder} holds the checkpoint of a run that was stopped: go on with it by --resume, or begin "
                "anew by --overwrite."
            )
        if not resume:
            self.delete()
            return None
        if not self.files() and scores.exists():
            finished = json.loads(scores.read_text())
            self._check_settings(scores, finished["settings"])
            if "test" not in finished or finished.get("last_epoch", {}).get("loss", 0) is None:
                reason = finished.get("failure") or "its test scores are missing."
                raise ValueError(f"The run in {self.folder} has ended: {reason} Run it anew, without --resume.")
            print(f"The run in {self.folder} is finished: see {scores}.")
            return finished
        epoch = self.find()
        print(f"Going on after epoch {epoch}." if epoch else f"{self.folder} holds no checkpoint: the run begins anew.")
        return None

    def find(self) -> int:
        """Read the newest sound checkpoint into `state`; return its epoch, 0 if there is none.

        Raises:
            ValueError: if it was made with other settings: those that differ are named.
        """
        for file, state, about in _sound(self.files()):
            self._check_settings(file, about["settings"])
            self.state, self.notes = state, about["notes"]
            return about["history"]["epoch"][-1]
        return 0

    def _check_settings(self, file: Path, former: dict) -> None:
        names = [name for name in {**former, **self.settings} if former.get(name) != self.settings.get(name)]
        if names:
            changes = ", ".join(f"{name} was {former.get(name)}, is {self.settings.get(name)}" for name in names)
            raise ValueError(
                f"{file} was made with other settings: {changes}. Give those of then to go on, or --overwrite to begin "
                "anew."
            )

    def save(self, model, history: dict, timestamps: list[int]) -> None:
        """Write the state after an epoch; what goes wrong is said once, and the training goes on."""
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
        """Delete all checkpoints: the results stand, or a new run begins."""
        for file in self.files():
            file.unlink(missing_ok=True)


def settings_of_then(folder: Path) -> dict:
    """The settings of the run that lies in a folder, stopped or finished: nothing if there is none."""
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
    """Of some checkpoints those that are whole: the file, its content, what it says of itself."""
    for file in files:
        try:
            state = file.read_bytes()
            about, _ = _unpack(state)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"warning: {file} is damaged ({error}); the one before it is taken.", file=sys.stderr)
            continue
        yield file, state, about


def _unpack(state: bytes) -> tuple[dict, dict]:
    """What a checkpoint says of itself, and its arrays."""
    with np.load(io.BytesIO(state), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("about").tobytes()), arrays


def _variables(model) -> dict:
    """The variables of model and optimizer, by names that do not depend on the process."""
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {f"{group}_{i}": variable for group, found in groups.items() for i, variable in enumerate(found)}
