"""One MLflow run, opened and closed properly; shared by every script.

    open_store("2D_UNet_Segmentation", args.out_dir)
    with tracked_run("2D_UNet_Segmentation", params=vars(args), folder=args.out_dir) as run:
        run.metrics({"loss": 0.3}, step=1)

A store that cannot be used raises `TrackingError` before any training (see lab/track/store.py). Later failures of the
store do not stop the training. After the first failure nothing more is sent until the end of the run. Records that the
store does not have then are named, and wait in the output folder until they are sent (see lab/track/send.py).
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.system.signals import is_stop, raise_swallowed, signals_raise, signals_wait
from lab.track import store
from lab.track.dead_runs import close_dead_runs, process_tags
from lab.track.send import Unsent, send_left
from lab.track.store import TrackingError, check_server, first_line, how_to_view, note, warn

__all__ = ["Run", "TrackingError", "how_to_view", "open_store", "tracked_run"]


def open_store(experiment: str, folder: str | Path | None = None) -> str:
    """Open the store, creating it and the experiment where needed; return the experiment's id.

    Call it before the work starts: it takes a fraction of a second (about 10 s once, for a new store). Records that
    earlier runs left in `folder` are sent, and runs of this machine whose process has ended are closed as KILLED.
    Raises TrackingError if the store or the experiment cannot be used.
    """
    client, experiment_id = store.open_experiment(experiment)
    try:
        if folder is not None:
            send_left(client, Path(folder))
        close_dead_runs(client)
    except Exception as error:  # the new run does not need it
        warn(f"MLflow could not complete earlier runs ({first_line(error)}); the next start tries again.")
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
    folder: str | Path = ".",
) -> Iterator["Run"]:
    """Open a run, yield it, and close it with the status that tells how the block ended.

    Normal end, `sys.exit(0)`: FINISHED. Exception, other exit codes: FAILED. Ctrl-C, SIGTERM, SIGHUP: KILLED.
    The exception is passed on; SIGTERM becomes exit code 143. MLflow itself tags user, script and commit.
    Within the block, subprocesses and plain `mlflow` calls use the same store, in any directory.
    Raises TrackingError if the run cannot be opened.

    Args:
        experiment: its name; it is created where needed.
        run_name, tags, description, parent_run_id: for MLflow's interface, which lists the run under its parent.
        params: the settings, usually `vars(args)`. A resumed run keeps those that it began with.
        resume_run_id: the run that goes on instead of a new one. If the store does not hold it, a warning says so, and
            a new run begins.
        folder: the output folder, where a file keeps records that could not be sent.
    """
    experiment_id = open_store(experiment)
    uri, file = store.locate()
    client = store.import_mlflow().MlflowClient(uri)
    first_tags = process_tags(parent_run_id)
    if description:
        first_tags["mlflow.note.content"] = description
    run, status = None, "FINISHED"
    with store.as_default(uri), signals_raise():
        try:
            with signals_wait():
                with store.explained(uri, file):
                    entity = _reopen(client, resume_run_id, first_tags) if resume_run_id else None
                    entity = entity or client.create_run(experiment_id, run_name=run_name, tags=first_tags)
                run = Run(client, entity, folder)
            with signals_raise():  # an exception that foreign code swallowed is raised here, before the status is set
                run.tags(tags or {})
                run.params(params or {})
                yield run
        except BaseException as error:
            ends_well = isinstance(error, SystemExit) and error.code in (None, 0)
            status = "KILLED" if is_stop(error) else "FINISHED" if ends_well else "FAILED"
            raise
        finally:
            with signals_wait():
                if run:
                    run._close(status)


class Run:
    """An open run. No method raises because the store fails: `missing` names the records that the store lacks."""

    def __init__(self, client, entity, folder: str | Path):
        self.run_id = entity.info.run_id
        self._client = client
        self._unsent = Unsent(self.run_id, folder)
        # A resumed run has no end yet, and will record its files again. Its params stay: MLflow refuses other values.
        again = ("end", "file", "model")
        self._unsent.items = [item for item in self._unsent.items if item["kind"] not in again]
        waiting = [item["values"] for item in self._unsent.items if item["kind"] == "params"]
        self._settled = set(entity.data.params).union(*waiting)

    @property
    def missing(self) -> list[str]:
        """The names of all records that the store does not have."""
        return self._unsent.missing

    def metrics(self, values: dict[str, float], step: int | None = None, timestamp: int | None = None) -> None:
        """Record numbers, in one request. NaN stays NaN; MLflow stores an infinity as the largest float.

        `timestamp` is in milliseconds since 1970, by default now. A point that is recorded again with the same step,
        timestamp and value does not double.
        """
        what = f"metrics at step {step}" if step is not None else f"metrics {', '.join(values)}"
        numbers = {key: float(value) for key, value in values.items()}
        self._record("metrics", what, values=numbers, step=step or 0, timestamp=timestamp or _now())

    def params(self, values: dict[str, object]) -> None:
        """Record settings. MLflow cuts a value at 6000 characters."""
        texts = {key: str(value) for key, value in values.items() if key not in self._settled}
        if texts:
            self._record("params", f"params {', '.join(texts)}", values=texts)

    def tags(self, values: dict[str, object]) -> None:
        """Record tags. MLflow cuts a value at 8000 characters."""
        texts = {key: str(value) for key, value in values.items()}
        if texts:
            self._record("tags", f"tags {', '.join(texts)}", values=texts)

    def text(self, text: str, path: str) -> None:
        """Record `text` as the artifact `path`, for instance "model/architecture.json"."""
        self._record("text", f"text {path}", text=text, path=path)

    def artifact(self, path: str | Path) -> None:
        """Record a file as an artifact."""
        self._record("file", f"file {Path(path).name}", **self._unsent.file_item(path))

    def dataset(self, images, masks, *, num_samples: int, name: str, context: str, source: str) -> None:
        """Record a data set's shapes, its checksum, and `source`, the call that makes it again.

        A set of `num_samples` need not be in memory: `images` and `masks` may be some of its samples. The shapes are
        those of the whole set, the checksum is that of the given samples, and the profile has their number
        ("digest_of_samples").
        """
        import mlflow.data
        from mlflow.data.code_dataset_source import CodeDatasetSource

        # A plain string would be taken for a path; the source of a synthetic set is code.
        code = CodeDatasetSource(tags={"mlflow.source.name": source})
        dataset = mlflow.data.from_numpy(images, targets=masks, name=name, source=code).to_dict()
        profile: dict = {"num_samples": num_samples, "digest_of_samples": len(images)}
        for key, array in (("features", images), ("targets", masks)):
            profile[f"{key}_shape"] = [num_samples, *array.shape[1:]]
            profile[f"{key}_size"] = array[0].size * num_samples
            profile[f"{key}_nbytes"] = array[0].nbytes * num_samples
        dataset["profile"] = json.dumps(profile)
        tags = {"mlflow.data.context": context, "source": source}
        self._record("dataset", f"dataset {name}", dataset=dataset, tags=tags)

    def model(self, file: str | Path, register: str | None = None) -> str | None:
        """Record a model file as "model" (see lab/track/registry.py); with `register`, as `models:/NAME` too.

        Returns the version that was registered; None if none was, or if the model has to be sent later.
        """
        what = f"model as {register}" if register else "model"
        return self._record("model", what, register=register, **self._unsent.file_item(file))

    def _record(self, kind: str, what: str, **content) -> str | None:
        """Send one item, or keep it if others wait already; `what` is its name for the user."""
        raise_swallowed()
        others_wait = bool(self._unsent.items)
        self._unsent.items.append({"kind": kind, "what": what, **content})
        try:
            if not others_wait:
                return self._unsent.send(self._client)
        except Exception as error:
            warn(f"MLflow could not record {what} ({first_line(error)}); the script goes on, and sends it at the end.")
        finally:
            self._unsent.write()
        return None

    def _close(self, status: str) -> None:
        """Send the end of the run and the waiting items; print the items that could not be sent."""
        has_failed = bool(self._unsent.items)
        end = {"kind": "end", "what": f"the end of the run ({status})", "status": status, "timestamp": _now()}
        self._unsent.items.append(end)
        because = ""
        try:
            if has_failed:
                check_server(self._client.tracking_uri, seconds=2)  # a dead server would cost its time-outs again
            self._unsent.send(self._client)
            if has_failed:
                note("MLflow answers again: the missing records are sent.")
        except Exception as error:
            because = f" ({first_line(error)})"
        self._unsent.write()
        self._unsent.tell_missing(because)


def _now() -> int:
    return int(time.time() * 1000)  # milliseconds


def _reopen(client, run_id: str, tags: dict[str, str]):
    """Let a run go on; None, with a warning, if the store does not hold it."""
    from mlflow import MlflowException
    from mlflow.entities import RunTag

    try:
        entity = client.get_run(run_id)
        if entity.info.lifecycle_stage == "active":
            client.update_run(run_id, status="RUNNING")
            client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()])
            return entity
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    warn(f"MLflow run {run_id} is not in this store (deleted, or in another one): a new run begins.")
    return None
