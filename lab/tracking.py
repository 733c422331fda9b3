"""One MLflow run, opened and closed properly; shared by every script.

    with tracked_run("2D_UNet_Segmentation", params=vars(args)) as run:
        run.metrics({"loss": 0.3}, step=1)

The store is MLflow's own default, `mlflow.db` and `./mlruns` in the current directory, unless
MLFLOW_TRACKING_URI says otherwise. A store that cannot be used is a `TrackingError` before any training; once
training runs, no failure of the store stops it: what could not be recorded is listed in `Run.missing` and
named in a warning at the end.
"""

import getpass
import logging
import os
import platform
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

OPENING_SECONDS = 120  # how long to wait for another process that is creating the store; that takes 6 to 10 s
RECHECK_SECONDS = 30  # after a failure, how often to ask whether the store is back
SETTINGS = {  # environment variables, where the user has not set them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a dead server costs 4 minutes per call with MLflow's defaults
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
}


class TrackingError(RuntimeError):
    """The MLflow store cannot be used; the message says what came, what was expected and how to mend it."""


class Stopped(SystemExit):
    """SIGTERM or SIGHUP as an exception, so that `finally` blocks run; exit code 128 + signal number."""


def open_store(experiment: str) -> str:
    """Open the store, creating it and the experiment where needed; return the experiment's id.

    Call it before the work starts: it takes a fraction of a second (some 10 s once, for a new store).
    Raises TrackingError if the store or the experiment cannot be used.
    """
    mlflow = _import_mlflow()
    uri, file = _store()
    if experiment == "Default":
        raise TrackingError(
            "The experiment must have a name of its own, not 'Default': MLflow keeps that one for runs "
            "without an experiment, and its artifacts may lie elsewhere."
        )
    try:
        if file is None:
            _check_server(uri)
            return _experiment_id(mlflow.MlflowClient(uri), experiment, file)
        with _opening_lock(file):
            _check_database(file)
            return _experiment_id(mlflow.MlflowClient(uri), experiment, file)
    except TrackingError:
        raise
    except Exception as error:
        mend = (
            f"move {file.name} away, and a new one is created"
            if file
            else "check MLFLOW_TRACKING_URI, or unset it to use mlflow.db in the current directory"
        )
        raise TrackingError(f"MLflow cannot use the store {_shown(uri)} ({_first_line(error)}); {mend}.") from error


@contextmanager
def tracked_run(
    experiment: str,
    *,
    run_name: str | None = None,
    params: dict | None = None,
    tags: dict | None = None,
    description: str | None = None,
    parent_run_id: str | None = None,
) -> Iterator["Run"]:
    """Open a run, yield it, and close it with the status that tells how the block ended.

    Normal end, `sys.exit(0)`: FINISHED. Exception, other exit codes: FAILED. Ctrl-C, SIGTERM, SIGHUP: KILLED.
    The exception goes on its way; SIGTERM becomes exit code 143. `params` is usually `vars(args)`.
    Raises TrackingError if the run cannot be opened.
    """
    mlflow = _import_mlflow()
    experiment_id = open_store(experiment)
    uri, file = _store()
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    handlers = _raise_on_signals()
    try:
        # Within the block, subprocesses and plain `mlflow` calls, in whatever directory, mean the same store.
        # set_tracking_uri writes MLFLOW_TRACKING_URI for them; it is put back below.
        mlflow.set_tracking_uri(uri)
        try:
            parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
            client = mlflow.MlflowClient(uri)
            run_id = client.create_run(experiment_id, run_name=run_name, tags=parent).info.run_id
        except Exception as error:
            raise TrackingError(
                f"MLflow cannot start a run in experiment {experiment!r} of {_shown(uri)} "
                f"({_first_line(error)}); check that the store can be written to."
            ) from error
        run = Run(client, run_id, uri, file)
        status = "FINISHED"
        try:
            note = {"mlflow.note.content": description} if description else {}
            run.tags({**_source_tags(), **provenance(), **note, **(tags or {})})
            run.params(params or {})
            yield run
        except BaseException as error:
            status = _status(error)
            raise
        finally:
            run._close(status)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        mlflow.set_tracking_uri(environment)  # None takes the variable away


class Run:
    """An open run. No method raises because of the store: what it could not record is added to `missing`."""

    def __init__(self, client, run_id: str, uri: str, file: Path | None):
        self.run_id = run_id
        self.missing: list[str] = []
        self._client, self._uri, self._file = client, uri, file
        self._failed = False  # the last call failed
        self._next_check = 0.0  # time.monotonic() before which a store that does not answer is not asked again

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Record numbers, in one request. NaN stays NaN; MLflow stores an infinity as the largest float."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step or 0) for key, value in values.items()]
        what = f"metrics at step {step}" if step is not None else f"metrics {', '.join(values)}"
        self._record(what, lambda: self._client.log_batch(self.run_id, metrics=metrics))

    def params(self, values: dict[str, object]) -> None:
        """Record settings. MLflow cuts a value at 6000 characters: a longer one becomes a text artifact."""
        from mlflow.entities import Param

        params = [Param(key, self._short(value, f"params/{key}.txt", 6000)) for key, value in values.items()]
        self._record(f"params {', '.join(values)}", lambda: self._client.log_batch(self.run_id, params=params))

    def tags(self, values: dict[str, object]) -> None:
        """Record tags. MLflow would cut a value at 8000 characters: a longer one becomes a text artifact."""
        from mlflow.entities import RunTag

        tags = [RunTag(key, self._short(value, f"tags/{key}.txt", 8000)) for key, value in values.items()]
        self._record(f"tags {', '.join(values)}", lambda: self._client.log_batch(self.run_id, tags=tags))

    def text(self, text: str, path: str) -> None:
        """Record `text` as the artifact `path`, for instance "model/architecture.json"."""
        self._record(f"text {path}", lambda: self._client.log_text(self.run_id, text, path))

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file as an artifact, in `folder` if given."""
        self._record(f"file {Path(path).name}", lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def dataset(self, images, masks, *, name: str, context: str, source: str) -> None:
        """Record shape and checksum of a data set; `source` is the call that makes it again."""

        def record():
            import mlflow.data
            from mlflow.data.code_dataset_source import CodeDatasetSource
            from mlflow.entities import Dataset, DatasetInput, InputTag

            # A plain string would be taken for a path; the source of a synthetic set is code.
            code = CodeDatasetSource(tags={"mlflow.source.name": source})
            dataset = Dataset(**mlflow.data.from_numpy(images, targets=masks, name=name, source=code).to_dict())
            tags = [InputTag("mlflow.data.context", context), InputTag("source", source)]
            inputs = [DatasetInput(dataset, tags)]
            try:
                self._client.log_inputs(self.run_id, datasets=inputs)
            except mlflow.MlflowException as error:
                if "IntegrityError" not in str(error):
                    raise
                # Another process recorded the same data set at the same moment; now MLflow finds it there.
                self._client.log_inputs(self.run_id, datasets=inputs)

        self._record(f"dataset {name}", record)

    def model(self, model, *, example) -> None:
        """Record a Keras model with its signature, which is inferred from `example`, a batch of inputs.

        `mlflow.keras.load_model(f"runs:/{run_id}/model")` loads it again.
        """

        def record():
            import keras
            import mlflow.keras

            names = dict.fromkeys((keras.backend.backend(), "keras", "numpy"))
            versions = [f"{name}=={sys.modules[name].__version__}" for name in names]
            signature = mlflow.models.infer_signature(example, model.predict(example, verbose=0))
            # log_model works on the active run only; end_run("RUNNING") leaves it open for what follows.
            mlflow.start_run(run_id=self.run_id, nested=True)
            try:
                mlflow.keras.log_model(model, name="model", signature=signature, pip_requirements=versions)
            finally:
                mlflow.end_run("RUNNING")

        self._record("model", record)

    def _record(self, what: str, record: Callable[[], object]) -> None:
        """Call `record`; where the store fails, note `what` in `missing` and let the training go on."""
        if self._failed and not self._store_answers():
            self.missing.append(what)
            return
        try:
            record()
            self._failed = False
        except Exception as error:
            if not self.missing:
                _warn(f"MLflow could not record {what} ({_first_line(error)}); the script goes on without it.")
            self._failed = True
            self.missing.append(what)

    def _store_answers(self) -> bool:
        """A quick question after a failure, so that a dead store does not cost a time-out per epoch."""
        if time.monotonic() < self._next_check:
            return False
        try:
            if self._file is None:
                _check_server(self._uri, seconds=2)
            else:
                address = f"{self._file.as_uri()}?mode=rw"
                with closing(sqlite3.connect(address, uri=True, timeout=1, isolation_level=None)) as database:
                    database.execute("BEGIN IMMEDIATE")
            return True
        except (TrackingError, sqlite3.Error):
            self._next_check = time.monotonic() + RECHECK_SECONDS
            return False

    def _close(self, status: str) -> None:
        what, interrupt = f"the end of the run ({status})", None
        self._next_check = 0.0
        # In a thread, for Ctrl-C strikes the main one only: an interrupted transaction would keep its lock.
        ended = threading.Event()  # not Thread.join, which takes the thread for ended once it is interrupted

        def end():
            self._record(what, lambda: self._client.set_terminated(self.run_id, status))
            ended.set()

        threading.Thread(target=end, daemon=True).start()
        for _ in range(2):  # the first Ctrl-C while closing waits for the end, the second does not
            try:
                ended.wait()
                break
            except (KeyboardInterrupt, Stopped) as error:
                interrupt = error
        else:
            self.missing.append(what)
        if self.missing:
            more = f" and {len(self.missing) - 10} more" if len(self.missing) > 10 else ""
            _warn(f"not recorded in MLflow run {self.run_id}: {'; '.join(self.missing[:10])}{more}.")
        if interrupt and status == "FINISHED":  # else the block's own exception is on its way
            raise interrupt

    def _short(self, value: object, path: str, limit: int) -> str:
        text = str(value)
        if len(text) <= limit:
            return text
        self.text(text, path)
        return f"{len(text)} characters, see the artifact {path}"


def how_to_view() -> str:
    """The line to paste to see the runs: a command for the current directory, or the server's address."""
    _import_mlflow()
    uri, file = _store()
    if uri.startswith(("http://", "https://")):
        return _shown(uri)
    # `mlflow ui` does not read MLFLOW_TRACKING_URI, and an old ./mlruns/<number>/meta.yaml diverts it.
    diverted = "MLFLOW_BACKEND_STORE_URI" in os.environ or any(Path("mlruns").glob("[0-9]*/meta.yaml"))
    if file == Path("mlflow.db").absolute() and not diverted:
        return "mlflow ui"
    address = f'"{_shown(uri)}"' if os.name == "nt" else shlex.quote(_shown(uri))
    return f"mlflow ui --backend-store-uri {address}"


def _import_mlflow():
    """Import MLflow: 2 s, so not at the top of this file, and the settings must come first."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # These two log every failure, with a traceback or once per attempt; `_warn` says it in one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow


def _store() -> tuple[str, Path | None]:
    """The store's URI, absolute, and its SQLite file if it is one.

    The default is said, never left to MLflow: an old ./mlruns/<number>/meta.yaml would change it.
    """
    from sqlalchemy.engine import URL, make_url

    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    name = make_url(uri).database if uri.startswith("sqlite:") else None
    if name in (None, "", ":memory:"):
        return uri, None
    file = Path(name).absolute()
    if not Path(name).is_absolute():
        uri = f"sqlite:///{file.as_posix()}"
        if make_url(uri).database != file.as_posix():  # a % or ? in the path needs escaping
            uri = URL.create("sqlite", database=file.as_posix()).render_as_string()
    return uri, file


def _check_server(uri: str, seconds: float = 5) -> None:
    """Ask a server whether it is there before MLflow does, with its patience; ask no other store."""
    if not uri.startswith(("http://", "https://")):
        return
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import (
        http_request,
    )  # MLflow's own, for its certificates, proxies and passwords

    mend = "start it, correct MLFLOW_TRACKING_URI, or unset that to use mlflow.db in the current directory"
    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/health",
            "GET",
            timeout=seconds,
            max_retries=0,
            raise_on_status=False,
        )
    except Exception as error:
        raise TrackingError(f"No MLflow server answers at {_shown(uri)} within {seconds} s; {mend}.") from error
    # A gate that asks for a password (401, 403) hides /health; the first real call then carries the user's.
    if answer.status_code not in (401, 403) and (answer.status_code != 200 or answer.text.strip() != "OK"):
        raise TrackingError(
            f"{_shown(uri)} is not a working MLflow server: it answered /health with status "
            f"{answer.status_code} where 200 and 'OK' were expected; {mend}."
        )


@contextmanager
def _opening_lock(file: Path) -> Iterator[None]:
    """Let one process at a time open the store: two that create it at once would break it for good.

    SQLite's own lock, on an empty file that stays: it works on every system and ends with its holder.
    """
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise TrackingError(
            f"The MLflow store {file} cannot be written: its folder is missing or read-only; "
            "run in a folder that you can write to, or correct MLFLOW_TRACKING_URI."
        )
    deadline = time.monotonic() + OPENING_SECONDS
    # One second at a time, because SQLite does not notice Ctrl-C while it waits.
    with closing(sqlite3.connect(f"{file}.lock", timeout=1, isolation_level=None)) as lock:
        while True:
            try:
                lock.execute("BEGIN EXCLUSIVE")
                break
            except sqlite3.Error as error:
                if "locked" not in str(error):
                    raise TrackingError(f"{file}.lock cannot be used ({error}); delete it and run again.") from error
                if time.monotonic() > deadline:
                    raise TrackingError(
                        f"Another process has kept {file}.lock for {OPENING_SECONDS} s; wait for the "
                        "other scripts to start, or end the one that hangs."
                    ) from error
        yield


def _check_database(file: Path) -> None:
    """Look at the file before MLflow does, which tries an unreadable one for 100 s."""
    if not file.exists():
        return
    import mlflow

    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=20)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            version = "SELECT version_num FROM alembic_version"
            row = database.execute(version).fetchone() if "alembic_version" in tables else None
    except sqlite3.Error as error:
        raise TrackingError(
            f"{file} cannot be read as an MLflow database ({error}); move it away, and a new one is "
            "created, or restore it from a backup."
        ) from error
    if not os.access(file, os.W_OK):
        raise TrackingError(f"{file} is read-only, and a run must be written to it; change its permissions.")
    if tables and "alembic_version" not in tables:
        raise TrackingError(
            f"{file} is a SQLite file, but not an MLflow database; move it away, or name another one "
            "in MLFLOW_TRACKING_URI."
        )
    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if row and not any(versions.glob(f"{row[0]}_*.py")):
        raise TrackingError(
            f"{file} was written by a newer MLflow than the installed {mlflow.__version__} (schema "
            f"{row[0]}); install that MLflow, or move the file away, and a new one is created."
        )


def _experiment_id(client, experiment: str, file: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment)
    if found is None:
        location = None  # a server chooses for itself
        if file:
            # Absolute and beside the database; MLflow would take the current directory.
            location = (file.parent / "mlruns" / re.sub(r"[^\w.-]", "_", experiment)).as_uri()
            _check_artifacts(experiment, location, file)
        try:
            return client.create_experiment(experiment, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(experiment)  # another process was faster
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"Experiment {experiment!r} is in MLflow's trash, which keeps its name; bring it back with "
            f"`mlflow experiments restore -x {found.experiment_id}` or remove it for good with "
            f"`mlflow gc --experiment-ids {found.experiment_id}`."
        )
    if file:
        new_name = shlex.quote(f"{experiment}_old")
        rename = f"`mlflow experiments rename -x {found.experiment_id} --new-name {new_name}`"
        _check_artifacts(experiment, found.artifact_location, file, rename)
    return found.experiment_id


def _check_artifacts(experiment: str, location: str, file: Path, rename: str = "") -> None:
    """See that this script can write to the experiment's artifact folder, which is fixed for good."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    if location.startswith("mlflow-artifacts:"):
        raise TrackingError(
            f"Experiment {experiment!r} was created in the web interface, so its artifacts lie at "
            f"{location}, which only a server can reach; rename it with {rename}, and the script "
            "creates its own, or set MLFLOW_TRACKING_URI to the running server."
        )
    if not is_local_uri(location):
        return
    folder = Path(local_file_uri_to_path(location))
    try:
        if folder.is_relative_to(file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        elif not folder.exists():
            raise TrackingError(
                f"Experiment {experiment!r} keeps its artifacts in {folder}, which is gone (was the "
                f"database moved?); rename it with {rename}, and the script creates a new one."
            )
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise OSError("not a folder that can be written to")
    except OSError as error:
        raise TrackingError(
            f"Experiment {experiment!r} keeps its artifacts in {folder}, which cannot be used "
            f"({error}); make it a folder that you can write to."
        ) from error


def _raise_on_signals() -> dict:
    """Turn SIGTERM and SIGHUP into `Stopped` (only the main thread may); return the former handlers."""

    def stop(signum, frame):
        raise Stopped(128 + signum)

    former = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            signum = getattr(signal, name, None)
            # Someone else's handler stays, and so does `nohup`.
            if signum is not None and signal.getsignal(signum) is signal.SIG_DFL:
                former[signum] = signal.signal(signum, stop)
    return former


def _status(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | Stopped):
        return "KILLED"
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return "FINISHED"
    return "FAILED"


def _source_tags() -> dict[str, str]:
    """Who ran which script: what MLflow's interface shows as "Created by" and "Source"."""
    try:
        user = getpass.getuser()
    except Exception:  # no account with this number, as in some containers
        user = "unknown"
    return {
        "mlflow.user": user,
        "mlflow.source.name": sys.argv[0],
        "mlflow.source.type": "LOCAL",
    }


def _git_tags(folder: Path) -> dict[str, str]:
    """Commit of `folder` and whether tracked files differ; nothing where git does not track this file."""

    def git(*arguments: str) -> str:
        # A git hook sets GIT_DIR and the like, which point to another repository than the folder's.
        others = {
            name: value
            for name, value in os.environ.items()
            if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
        }
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            env=others,
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": "true" if dirty else "false"}


def provenance() -> dict[str, str]:
    """Versions, device and git commit, for tags and result files. Only what the script has imported already."""
    tags = {"python.version": platform.python_version(), "platform": platform.platform()}
    backend = sys.modules["keras"].backend.backend() if "keras" in sys.modules else None
    if backend:
        tags["keras.backend"] = backend
    for name in ("numpy", "mlflow", "keras", backend):
        if name in sys.modules:
            tags[f"{name}.version"] = sys.modules[name].__version__
    return {**tags, "device": _device(backend), **_git_tags(Path(__file__).resolve().parent)}


def _device(backend: str | None) -> str:
    """Name of the graphics or tensor processors that the backend sees, else of the processor."""
    names: list[str] = []
    try:
        if backend == "tensorflow":
            config = sys.modules["tensorflow"].config
            names = [
                config.experimental.get_device_details(gpu).get("device_name", "GPU")
                for gpu in config.list_physical_devices("GPU")
            ]
        elif backend == "jax":
            names = [device.device_kind for device in sys.modules["jax"].devices() if device.platform != "cpu"]
        elif backend == "torch":
            cuda = sys.modules["torch"].cuda
            names = [cuda.get_device_name(index) for index in range(cuda.device_count())]
    except Exception:
        names = []  # a tag is not worth a failed run
    if names:
        return f"{len(names)} x {names[0]}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"model name\s*:\s*(.+)", info.read_text(errors="replace"))
        model = match[1].strip() if match else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"


def _shown(uri: str) -> str:
    return re.sub(r"//([^/@:]*):[^/@]*@", r"//\1:***@", uri)  # a password is not for the terminal's history


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
