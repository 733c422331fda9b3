"""One MLflow run, opened and closed properly; shared by every script.

    with tracked_run("2D_UNet_Segmentation", params=vars(args), journal=args.out_dir) as run:
        run.metrics({"loss": 0.3}, step=1)

A store that cannot be used is a `TrackingError` before any training (see lab/store.py). Once training runs, no failure
of the store stops it: what the store missed waits in memory and in a file of the journal's folder, and is sent when
the store is back, or at the next start. What has not got there by the end is in `Run.missing`, and is named.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from lab import store
from lab.dead_runs import close_dead_runs, fail_half_models, is_gone, process_tags
from lab.signals import Stopped, is_stop, raise_swallowed, signals_raise, signals_wait
from lab.store import TrackingError, check_server, first_line, how_to_view, masked, note, warn

__all__ = ["Run", "Stopped", "TrackingError", "how_to_view", "masked", "open_store", "signals_raise", "tracked_run"]

WAIT_SECONDS = 30  # after a failure, how long the store is left alone
PLACES = ("database", "artifacts")  # of a store; either may fail alone
JOURNAL = "mlflow_pending_{}.jsonl"  # of one run, by its id: one line for each thing that the store has not got


def open_store(experiment: str, journal: str | Path | None = None) -> str:
    """Open the store, creating it and the experiment where needed; return the experiment's id.

    Call it before the work starts: it takes a fraction of a second (some 10 s once, for a new store). What earlier
    runs left in the folder `journal` is sent, and the runs of this machine whose process is gone are closed as KILLED.
    Raises TrackingError if the store or the experiment cannot be used.
    """
    client, experiment_id = store.open_experiment(experiment)
    try:
        if journal is not None:
            _send_journals(client, Path(journal))
        close_dead_runs(client)
    except Exception as error:  # the new run does not need it
        warn(f"MLflow could not mend what earlier runs left open ({first_line(error)}); the next start tries again.")
    return experiment_id


@contextmanager
def tracked_run(
    experiment: str,
    *,
    run_name: str | None = None,
    params: dict | None = None,
    tags: dict | None = None,
    description: str | None = None,
    parent_run_id: str | None = None,
    resume_run_id: str | None = None,
    journal: str | Path | None = None,
) -> Iterator["Run"]:
    """Open a run, yield it, and close it with the status that tells how the block ended.

    Normal end, `sys.exit(0)`: FINISHED. Exception, other exit codes: FAILED. Ctrl-C, SIGTERM, SIGHUP: KILLED.
    The exception goes on its way; SIGTERM becomes exit code 143. MLflow itself tags user, script and commit.
    Raises TrackingError if the run cannot be opened.

    Args:
        experiment: its name; it is created where needed.
        run_name, tags, description: what MLflow's interface shows.
        params: the settings, usually `vars(args)`. A resumed run keeps those that it began with.
        parent_run_id: the run under which this one is listed.
        resume_run_id: the run that goes on instead of a new one. If the store does not hold it, that is said, and a
            new run begins.
        journal: the folder of the file that keeps what the store missed, `mlflow_pending_<run id>.jsonl`.
    """
    experiment_id = open_store(experiment, journal)
    mlflow = store.import_mlflow()
    uri, file = store.locate()
    client = mlflow.MlflowClient(uri)
    first_tags = process_tags(parent_run_id)
    about = {"mlflow.note.content": description} if description else {}
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    run, status = None, "FINISHED"
    with signals_raise():
        try:
            # Within the block, subprocesses and plain `mlflow` calls, in whatever directory, mean the same store.
            # set_tracking_uri writes MLFLOW_TRACKING_URI for them; it is put back below.
            mlflow.set_tracking_uri(uri)
            with signals_wait():
                try:
                    found = _reopen(client, resume_run_id, first_tags) if resume_run_id else None
                    found = found or client.create_run(experiment_id, run_name=run_name, tags=first_tags)
                except Exception as error:
                    raise TrackingError(
                        f"MLflow cannot start a run in experiment {experiment!r} of {uri} ({first_line(error)}); "
                        "check that the store can be written to."
                    ) from None
                run = Run(client, found, uri, file, journal)
                run._queue = [entry for entry in run._queue if entry["kind"] != "end"]  # a resumed run goes on
            with signals_raise():  # what foreign code swallowed is raised here, before the status is settled
                run.tags({**about, **(tags or {})})
                run.params(params or {})
                yield run
        except BaseException as error:
            status = _status(error)
            raise
        finally:
            with signals_wait():
                if run:
                    run._close(status)
                mlflow.set_tracking_uri(environment)  # None takes the variable away


class Run:
    """An open run. No method raises because of the store: what that has not got is in `missing`."""

    def __init__(self, client, found, uri: str, file: Path | None, journal: str | Path | None):
        self.run_id = found.info.run_id
        self._client, self._uri, self._file = client, uri, file
        self._settled = set(found.data.params)  # of a resumed run: MLflow refuses another value
        self._journal = Path(journal).absolute() / JOURNAL.format(self.run_id) if journal is not None else None
        self._queue = _read_journal(self._journal)  # what the store has not got, oldest first
        self._lost: list[str] = []  # what it refused, or what cannot wait
        self._down: dict[str, float] = {}  # each of PLACES that failed: left alone until this time.monotonic()
        self._told: set[str] = set()  # which of the two the user knows to fail

    @property
    def missing(self) -> list[str]:
        """What the store has not got."""
        return self._lost + [entry["what"] for entry in self._queue]

    def metrics(self, values: dict[str, float], step: int | None = None, timestamp: int | None = None) -> None:
        """Record numbers, in one request. NaN stays NaN; MLflow stores an infinity as the largest float.

        `timestamp`, in milliseconds since 1970, is now if it is not given. A point that is recorded again with its
        former step, timestamp and value does not double.
        """
        what = f"metrics at step {step}" if step is not None else f"metrics {', '.join(values)}"
        numbers = {key: float(value) for key, value in values.items()}
        self._record("metrics", what, values=numbers, step=step or 0, timestamp=timestamp or _now())

    def params(self, values: dict[str, object]) -> None:
        """Record settings. MLflow cuts a value at 6000 characters: a longer one becomes a text artifact."""
        new = {key: value for key, value in values.items() if key not in self._settled}
        texts = {key: self._short(value, f"params/{key}.txt", 6000) for key, value in new.items()}
        if texts:
            self._record("params", f"params {', '.join(texts)}", values=texts)

    def tags(self, values: dict[str, object]) -> None:
        """Record tags. MLflow would cut a value at 8000 characters: a longer one becomes a text artifact."""
        texts = {key: self._short(value, f"tags/{key}.txt", 8000) for key, value in values.items()}
        if texts:
            self._record("tags", f"tags {', '.join(texts)}", values=texts)

    def text(self, text: str, path: str) -> None:
        """Record `text` as the artifact `path`, for instance "model/architecture.json"."""
        self._record("text", f"text {path}", text=text, path=path)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file as an artifact, in `folder` if given."""
        self._record("file", f"file {Path(path).name}", path=str(Path(path).absolute()), folder=folder)

    def dataset(self, images, masks, *, name: str, context: str, source: str, num_samples: int | None = None) -> None:
        """Record a data set's shapes, its checksum, and `source`, the call that makes it again.

        A set that is drawn while it is used is never whole in memory: give some of its samples as `images` and
        `masks`, and how many there are as `num_samples`. The shapes are then those of the whole set, the checksum is
        that of the samples, and the profile says of how many ("digest_of_samples").
        """
        import mlflow.data
        from mlflow.data.code_dataset_source import CodeDatasetSource

        # A plain string would be taken for a path; the source of a synthetic set is code.
        code = CodeDatasetSource(tags={"mlflow.source.name": source})
        dataset = mlflow.data.from_numpy(images, targets=masks, name=name, source=code).to_dict()
        if num_samples is not None:
            profile = {"num_samples": num_samples, "digest_of_samples": len(images)}
            for key, array in (("features", images), ("targets", masks)):
                profile[f"{key}_shape"] = [num_samples, *array.shape[1:]]
                profile[f"{key}_size"] = array[0].size * num_samples
                profile[f"{key}_nbytes"] = array[0].nbytes * num_samples
            dataset["profile"] = json.dumps(profile)
        tags = {"mlflow.data.context": context, "source": source}
        self._record("dataset", f"dataset {name}", dataset=dataset, tags=tags)

    def model(self, file: str | Path, register: str | None = None) -> str | None:
        """Record a model file under the name "model" (see lab/registry.py); with `register`, as `models:/NAME` too.

        Returns the version that was registered. A model that the store does not take at once is not kept for later.
        """
        from lab import registry

        raise_swallowed()
        what = "model"
        try:
            with self._signals_wait():
                check_server(self._uri, seconds=2)
                import mlflow

                # Models are logged to the active run only; end_run("RUNNING") leaves it open for what follows.
                mlflow.start_run(run_id=self.run_id, nested=True)
                try:
                    model_id = registry.log_model(Path(file))
                finally:
                    mlflow.end_run("RUNNING")
                if register:
                    what = f"model as {register}"
                    return registry.register(self._client, model_id, self.run_id, register)
        except BaseException as error:
            self._lost.append(what)
            if what == "model":
                self._queue.append({"what": "the mark of a half-logged model", "kind": "half model"})
            if not isinstance(error, Exception):
                raise
            self._down = dict.fromkeys(PLACES, 0.0)
            warn(f"MLflow could not record the {what} ({first_line(error)}); it is not kept for later.")
        return None

    def _short(self, value: object, path: str, limit: int) -> str:
        text = str(value)
        if len(text) <= limit:
            return text
        self.text(text, path)
        return f"{len(text)} characters, see the artifact {path}"

    def _record(self, kind: str, what: str, **content) -> None:
        """Send one thing, after those that wait; `what` is its name for the user."""
        raise_swallowed()
        self._queue.append({"what": what, "kind": kind, **content})
        if time.monotonic() < self._down.get(_place(kind), 0):
            self._write_journal(self._queue[-1:], append=True)
        else:
            self._flush()

    def _flush(self) -> None:
        """Send what waits, oldest first; the place that fails is left alone for a while."""
        for entry in list(self._queue) if not self._down or self._server_answers() else []:
            place = _place(entry["kind"])
            if time.monotonic() < self._down.get(place, 0):
                continue
            try:
                with self._signals_wait():
                    self._send(entry)
                    self._queue.remove(entry)
                self._down.pop(place, None)
            except Exception as error:
                self._note_failure(entry, place, error)
        for place in self._told - {_place(entry["kind"]) for entry in self._queue}:
            note(f"MLflow answers again: what its {place} missed is recorded.")
            self._told.remove(place)
        self._write_journal(self._queue)

    def _signals_wait(self):
        """A server has its own transactions, and may keep us waiting: Ctrl-C need not wait for it."""
        return signals_wait() if self._file else nullcontext()

    def _server_answers(self) -> bool:
        """A quick question after a failure, so that a dead server does not cost its time-outs again."""
        try:
            check_server(self._uri, seconds=2)
            return True
        except TrackingError:
            self._down = dict.fromkeys(PLACES, time.monotonic() + WAIT_SECONDS)
            return False

    def _note_failure(self, entry: dict, place: str, error: Exception) -> None:
        what, because = entry["what"], first_line(error)
        file_is_gone = entry["kind"] == "file" and not Path(entry["path"]).exists()
        if file_is_gone or getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
            if not self._lost:
                warn(f"MLflow could not record {what} ({because}); the script goes on without it.")
            self._queue.remove(entry)
            self._lost.append(what)
            return
        if place not in self._told:
            warn(f"MLflow could not record {what} ({because}); it is kept for later, and the script goes on.")
        self._told.add(place)
        self._down[place] = time.monotonic() + WAIT_SECONDS

    def _send(self, entry: dict) -> None:
        """Call MLflow. What is sent twice, because an answer was lost, leaves what it leaves when it is sent once."""
        from mlflow import MlflowException
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        client, run_id = self._client, self.run_id
        match entry["kind"]:
            case "metrics":
                point = entry["timestamp"], entry["step"]
                client.log_batch(run_id, metrics=[Metric(*item, *point) for item in entry["values"].items()])
            case "params":
                client.log_batch(run_id, params=[Param(*item) for item in entry["values"].items()])
            case "tags":
                client.log_batch(run_id, tags=[RunTag(*item) for item in entry["values"].items()])
            case "text":
                client.log_text(run_id, entry["text"], entry["path"])
            case "file":
                client.log_artifact(run_id, entry["path"], entry["folder"])
            case "dataset":
                tags = [InputTag(*item) for item in entry["tags"].items()]
                inputs = [DatasetInput(Dataset(**entry["dataset"]), tags)]
                try:
                    client.log_inputs(run_id, datasets=inputs)
                except MlflowException as error:
                    if "IntegrityError" not in str(error):
                        raise
                    # Another process recorded the same data set at the same moment; now MLflow finds it there.
                    client.log_inputs(run_id, datasets=inputs)
            case "half model":
                fail_half_models(client, run_id)
            case "end":
                client.set_terminated(run_id, entry["status"], entry["timestamp"])

    def _write_journal(self, entries: list[dict], append: bool = False) -> None:
        """Let the journal hold what waits; where nothing waits, there is none."""
        if self._journal is None or not (entries or self._journal.exists()):
            return
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        try:
            if append:
                with self._journal.open("a", encoding="utf-8") as file:
                    file.write(lines)
            elif entries:
                aside = self._journal.with_name(f".partial-{self._journal.name}")
                aside.write_text(lines, encoding="utf-8")
                os.replace(aside, self._journal)
            else:
                self._journal.unlink(missing_ok=True)
        except OSError as error:
            warn(f"{self._journal} cannot be written ({error.strerror}): what MLflow missed is kept in memory only.")
            self._journal = None

    def _close(self, status: str) -> None:
        end = {"what": f"the end of the run ({status})", "kind": "end", "status": status, "timestamp": _now()}
        self._queue.append(end)
        self._down = dict.fromkeys(PLACES, 0.0)  # try both again, but ask a server first whether it is there
        self._flush()
        self._tell_missing()

    def _tell_missing(self) -> None:
        missing = self.missing
        if missing:
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            kept = f" The next start sends what {self._journal} holds." if self._queue and self._journal else ""
            warn(f"not recorded in MLflow run {self.run_id}: {'; '.join(missing[:10])}{more}.{kept}")


def _status(error: BaseException) -> str:
    if is_stop(error):
        return "KILLED"
    return "FINISHED" if isinstance(error, SystemExit) and error.code in (None, 0) else "FAILED"


def _place(kind: str) -> str:
    return "artifacts" if kind in ("text", "file") else "database"


def _now() -> int:
    return int(time.time() * 1000)  # milliseconds


# What earlier runs left


def _read_journal(path: Path | None) -> list[dict]:
    entries = []
    if path is not None and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):  # the last line, cut off
                entries.append(json.loads(line))
    return entries


def _send_journals(client, folder: Path) -> None:
    """Send what earlier runs could not record; a journal that is empty then goes."""
    from mlflow import MlflowException

    uri, file = store.locate()
    for path in sorted(folder.glob(JOURNAL.format("*"))):
        run_id = path.stem.rpartition("_")[2]
        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            warn(
                f"{path} keeps what MLflow run {run_id} could not record, but the store {uri} does not hold that run; "
                "set MLFLOW_TRACKING_URI to the store that does, or delete the file."
            )
            continue
        run = Run(client, found, uri, file, folder)
        has_ended = any(entry["kind"] == "end" for entry in run._queue)
        if not has_ended and not is_gone(found.data.tags):
            continue  # its process will send them
        num_waiting = len(run._queue)
        run._flush()
        run._tell_missing()
        if sent := num_waiting - len(run.missing):
            note(f"MLflow run {run_id} now holds {sent} things that it had missed.")


def _reopen(client, run_id: str, tags: dict[str, str]):
    """Let a run go on; None, and a line that says so, where the store does not hold it."""
    from mlflow import MlflowException
    from mlflow.entities import RunTag

    try:
        found = client.get_run(run_id)
        if found.info.lifecycle_stage == "active":
            client.update_run(run_id, status="RUNNING")
            client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()])
            return found
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    warn(f"MLflow run {run_id} is not in this store any more (deleted, or in another one): a new run begins.")
    return None
