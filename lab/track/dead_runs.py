"""The process of an MLflow run: tags that name it, and closing runs whose process has ended."""

import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path

from lab.track.store import note


def process_tags(parent_run_id: str | None) -> dict[str, str]:
    """User, script and commit as MLflow finds them, and the process: a later one can check whether it has ended."""
    import psutil
    from mlflow.tracking.context import registry

    process = psutil.Process()
    tags = {"process.host": host(), "process.id": process.pid, "process.started": process.create_time()}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    return {key: str(value) for key, value in registry.resolve_tags(tags).items()}


def host() -> str:
    """This machine's name; on Linux also a digest of its id, and its space of process numbers.

    The digest keeps the id private. Each container has its own process numbers.
    """
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(hashlib.sha256(Path("/etc/machine-id").read_bytes()).hexdigest()[:8])
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def is_gone(tags: dict[str, str]) -> bool:
    """Whether a run's process, on this machine, has ended; another process may have its number now."""
    import psutil

    try:
        process = psutil.Process(int(tags["process.id"]))
        same = abs(process.create_time() - float(tags["process.started"])) < 2  # seconds: clocks are set now and then
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, KeyError, ValueError):
        return False  # unknown


def close_dead_runs(client) -> None:
    """Close the runs of this machine that say RUNNING and whose process has ended, in every experiment of the store."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, f"status = 'RUNNING' AND tags.`process.host` = '{host()}'"):
        run_id = run.info.run_id
        # The status is read again after the process has ended: the run may have ended well since the search.
        if not is_gone(run.data.tags) or client.get_run(run_id).info.status != "RUNNING":
            continue
        fail_half_models(client, run_id)
        points = [point for key in run.data.metrics for point in client.get_metric_history(run_id, key)]
        last_sign = max((point.timestamp for point in points), default=run.info.start_time)
        client.set_terminated(run_id, "KILLED", last_sign)
        note(f"MLflow run {run.info.run_name} ({run_id}) said RUNNING, but its process is gone: now it says KILLED.")


def models_of(client, run_id: str) -> list:
    """The models that a run has logged, finished or not."""
    experiment_id = client.get_run(run_id).info.experiment_id
    return client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")


def fail_half_models(client, run_id: str) -> None:
    """Mark as FAILED the models of a run that were never finished."""
    for model in models_of(client, run_id):
        if model.status == "PENDING":
            client.finalize_logged_model(model.model_id, "FAILED")
