"""Send to MLflow the records that a script could not send, because the store failed.

    python -m lab.track.send outputs/unet

A script goes on when its store fails. Records that it could not send wait in its output folder, in the file
`mlflow_unsent_<run id>.json`; it names pictures and models by their paths, and does not copy them. At its end the
script sends all of them. If the store still fails then, the next start of a script in that folder sends them, or this
command does: run it in the same directory and with the same MLFLOW_TRACKING_URI as the script. Records that are sent
twice, because an answer of the store got lost, do not double.
"""

import argparse
import hashlib
import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

from lab.system.output_files import replaced
from lab.system.signals import signals_wait
from lab.track import store
from lab.track.dead_runs import close_dead_runs
from lab.track.store import TrackingError, first_line, note, warn

FILE = "mlflow_unsent_{}.json"  # of one run, by its id
ARTIFACTS = ("text", "file", "model")  # kinds of items that go to the artifact store, which may fail alone


class Gone(Exception):
    """A file that waits to be sent is gone, or a later run has written another one in its place."""


class Unsent:
    """The items of one run that MLflow does not have yet, in the order of the script.

    An item is a dictionary: its `kind`, its name for the user (`what`), and the values for `_send_item`. As long as
    there are items, a file in `folder` holds them.
    """

    def __init__(self, run_id: str, folder: str | Path):
        self.run_id, self.folder = run_id, folder
        self.file = Path(folder).absolute() / FILE.format(run_id)
        self.items = json.loads(self.file.read_text(encoding="utf-8"))["items"] if self.file.exists() else []
        self.refused: list[str] = []  # names of items that the store refused for good
        self._has_warned = False  # that the file cannot be written

    @property
    def missing(self) -> list[str]:
        """The names of all items that the store does not have."""
        return self.refused + [item["what"] for item in self.items]

    def file_item(self, path: str | Path) -> dict:
        """The entries of an item that name a file: its path in the folder, which may be moved, and its digest."""
        path, here = Path(path).absolute(), self.file.parent
        return {"path": str(path.relative_to(here) if path.is_relative_to(here) else path), "sha256": _digest(path)}

    def send(self, client) -> str | None:
        """Send all items. An item leaves the list when it is sent, or when the store refuses it for good.

        The items of the artifact store come last: if only that one fails, the numbers and the end of the run arrive.

        Returns:
            The version of a model, if the last item registered one.

        Raises:
            Exception: of any kind, if the store fails; the items that were not sent stay in the list.
        """
        version = None
        for item in sorted(self.items, key=lambda item: item["kind"] in ARTIFACTS):
            try:
                # A SQLite transaction that is interrupted would keep its lock. A server has its own transactions, and
                # may keep us waiting: Ctrl-C need not wait for it.
                with signals_wait() if client.tracking_uri.startswith("sqlite:") else nullcontext():
                    version = self._send_item(client, item)
                    self.items.remove(item)
            except Exception as error:
                if not isinstance(error, Gone) and getattr(error, "error_code", None) != "INVALID_PARAMETER_VALUE":
                    raise
                if not self.refused:
                    warn(f"MLflow could not record {item['what']} ({first_line(error)}); it is left out.")
                self.items.remove(item)
                self.refused.append(item["what"])
        return version

    def _send_item(self, client, item: dict) -> str | None:
        """Call MLflow for one item; return the version of a model that it registered."""
        from mlflow import MlflowException
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        run_id = self.run_id
        match item["kind"]:
            case "metrics":  # a point doubles only if its time stamp, step or value differs
                point = item["timestamp"], item["step"]
                client.log_batch(run_id, metrics=[Metric(*pair, *point) for pair in item["values"].items()])
            case "params":
                client.log_batch(run_id, params=[Param(*pair) for pair in item["values"].items()])
            case "tags":
                client.log_batch(run_id, tags=[RunTag(*pair) for pair in item["values"].items()])
            case "dataset":
                tags = [InputTag(*pair) for pair in item["tags"].items()]
                inputs = [DatasetInput(Dataset(**item["dataset"]), tags)]
                try:
                    client.log_inputs(run_id, datasets=inputs)
                except MlflowException as error:
                    if "IntegrityError" not in str(error):
                        raise
                    # Another process recorded the same data set at the same moment; now MLflow finds it there.
                    client.log_inputs(run_id, datasets=inputs)
            case "end":
                client.set_terminated(run_id, item["status"], item["timestamp"])
            case "text":
                client.log_text(run_id, item["text"], item["path"])
            case "file":
                client.log_artifact(run_id, str(self._find_file(item)))
            case "model":
                from lab.track import registry

                model_id = registry.log_model(client, run_id, self._find_file(item), item["sha256"])
                return registry.register(client, model_id, run_id, item["register"]) if item["register"] else None
        return None

    def _find_file(self, item: dict) -> Path:
        """The file of an item. Raises `Gone` if it is not as it was."""
        path = Path(self.file.parent, item["path"])
        if not path.is_file() or _digest(path) != item["sha256"]:
            raise Gone(f"{path} is gone, or another file lies there")
        return path

    def write(self) -> None:
        """Write the items to the file; delete the file if there are none."""
        content = json.dumps({"run_id": self.run_id, "items": self.items}, indent=1)
        try:
            with signals_wait():
                if self.items:
                    with replaced(self.file) as aside:
                        aside.write_text(content, encoding="utf-8")
                else:
                    self.file.unlink(missing_ok=True)
        except OSError as error:
            if not self._has_warned:
                warn(f"{self.file} cannot be written ({error.strerror}): records for MLflow are kept in memory only.")
            self._has_warned = True

    def tell_missing(self, because: str = "") -> None:
        """Print the items that the store does not have, and the command that sends them."""
        if self.missing:
            names = "; ".join(self.missing[:10])
            others = f" and {len(self.missing) - 10} more" if len(self.missing) > 10 else ""
            is_kept = self.items and self.file.exists()
            later = f" Send it later: python -m lab.track.send {shlex.quote(str(self.folder))}" if is_kept else ""
            warn(f"not recorded in MLflow run {self.run_id}: {names}{others}{because}.{later}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def send_left(client, folder: Path) -> bool:
    """Send the items that earlier runs left in a folder, and say so; return whether all were sent."""
    complete = True
    for file in sorted(folder.glob(FILE.format("*"))):
        unsent = Unsent(file.stem.rpartition("_")[2], folder)
        try:
            client.get_run(unsent.run_id)
            unsent.send(client)
            if unsent.refused:
                unsent.tell_missing()
            else:
                note(f"MLflow run {unsent.run_id} now has what it had missed.")
        except Exception as error:  # another run in the folder may succeed
            complete, why = False, first_line(error)
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                why = f"{client.tracking_uri} does not hold the run; set MLFLOW_TRACKING_URI, or delete the file"
            warn(f"{file} still keeps what MLflow run {unsent.run_id} misses ({why}).")
        unsent.write()
    return complete


def main(argv=None) -> None:
    """Send the items that wait in a folder; exit code 1 if some still wait."""
    parser = argparse.ArgumentParser(prog="python -m lab.track.send", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="the output folder of a script")
    folder = parser.parse_args(argv).folder
    if not any(folder.glob(FILE.format("*"))):
        print(f"Nothing waits in {folder}.")
        return
    try:
        client, _ = store.open_existing()
        complete = send_left(client, folder)
        if complete:
            close_dead_runs(client)
    except TrackingError as error:
        sys.exit(f"{parser.prog}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
