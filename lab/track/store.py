"""The MLflow store: its place, a check that it can be used, and its address without passwords.

It is MLflow's own default, `mlflow.db` and `./mlruns` in the current directory, unless MLFLOW_TRACKING_URI names
another one. If it cannot be used, one sentence says so before any work.
"""

import logging
import os
import re
import shlex
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import quote, unquote

from lab.system import errors

OPENING_SECONDS = 120  # how long to wait for another process that is creating the store; that takes 6 to 10 s
LOCK_SECONDS = 60  # how long to wait for a database that another program holds
SETTINGS = {  # environment variables, where the user has not set them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a dead server costs 4 minutes per call with MLflow's defaults
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
}
NAME = re.compile(r"[\w.-]{1,20}")  # of a user; a longer text is a token
SECRET = "password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|signature|credential"


class TrackingError(RuntimeError):
    """The MLflow store cannot be used; the message says why, and what to do."""

    def __init__(self, message: str):
        super().__init__(masked(message))


def import_mlflow():
    """Import MLflow: 2 s, so not at the top of a file, and the settings must come first."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # These log every failure, with a traceback or once per attempt; `warn` says it in one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow


def locate() -> tuple[str, Path | None]:
    """The store's URI, absolute, and its SQLite file if it is one.

    The default is given explicitly: an old ./mlruns/<number>/meta.yaml would change MLflow's own.
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


@contextmanager
def as_default(uri: str) -> Iterator[None]:
    """Within the block, plain `mlflow` calls and subprocesses use this store, in any directory."""
    mlflow = import_mlflow()
    former = os.environ.get("MLFLOW_TRACKING_URI")  # set_tracking_uri writes it, for subprocesses
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(former)  # None deletes the variable


def how_to_view() -> str:
    """A command for the current directory that shows the runs, or the server's address."""
    uri, file = locate()
    if uri.startswith(("http://", "https://")):
        return masked(uri)
    # `mlflow ui` does not read MLFLOW_TRACKING_URI, and an old ./mlruns/<number>/meta.yaml diverts it.
    diverted = "MLFLOW_BACKEND_STORE_URI" in os.environ or any(Path("mlruns").glob("[0-9]*/meta.yaml"))
    if file == Path("mlflow.db").absolute() and not diverted:
        return "mlflow ui"
    address = f'"{masked(uri)}"' if os.name == "nt" else shlex.quote(masked(uri))
    return f"mlflow ui --backend-store-uri {address}"


def open_experiment(experiment: str):
    """Open the store, creating it and the experiment where needed; return a client and the experiment's id.

    Raises TrackingError if the store or the experiment cannot be used.
    """
    mlflow = import_mlflow()
    uri, file = locate()
    with explained(uri, file), _opening_lock(file) if file else nullcontext():
        check_server(uri)
        _check_database(file)
        client = mlflow.MlflowClient(uri)
        return client, _experiment_id(client, experiment, file)


def open_existing():
    """A client of the store, and its URI; nothing is created. Raises TrackingError if it cannot be used."""
    uri, file = locate()
    if file is not None and not file.exists():
        raise TrackingError(f"There is no MLflow store {file}; run where the training ran, or set MLFLOW_TRACKING_URI.")
    mlflow = import_mlflow()
    with explained(uri, file):
        check_server(uri)
        _check_database(file)
        return mlflow.MlflowClient(uri, uri), uri


@contextmanager
def explained(uri: str, file: Path | None) -> Iterator[None]:
    """Turn every error of MLflow in the block into a TrackingError that says what to do."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        mend = "check MLFLOW_TRACKING_URI, or unset it to use mlflow.db in the current directory"
        if "database is locked" in str(error):
            mend = "wait for the program that holds it, or end that; leave the file where it is: it is not damaged"
        elif "mlflow db upgrade" in str(error):
            mend = f"install the MLflow that made it; if that is older, keep a copy and run `mlflow db upgrade {uri}`"
        elif file:
            mend = f"check that it can be written to; if it is damaged, move {file.name} away, and a new one is created"
        # Without its cause: that text may hold a password.
        raise TrackingError(f"MLflow cannot use the store {uri} ({first_line(error)}); {mend}.") from None


def check_server(uri: str, seconds: float = 5) -> None:
    """Ask a server once whether it answers, because MLflow itself tries for long; do nothing for other stores."""
    if not uri.startswith(("http://", "https://")):
        return
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        once = {"max_retries": 0, "raise_on_status": False, "timeout": seconds}
        answer = http_request(get_default_host_creds(uri), "/health", "GET", **once)
        # A server that asks for a password may hide /health; the first real call shows whether it is right.
        works = answer.status_code in (401, 403) or answer.status_code == 200 and answer.text.strip() == "OK"
        problem = f"/health gives status {answer.status_code}, where 200 and 'OK' were expected"
    except Exception as error:
        works, problem = False, f"{type(error.__context__ or error).__name__} within {seconds} s"
    if not works:
        raise TrackingError(
            f"No MLflow server answers at {uri} ({problem}); start it, correct MLFLOW_TRACKING_URI, or unset that to "
            "use mlflow.db in the current directory."
        )


def _opening_lock(file: Path):
    """Let one process at a time open the store: two that create it at once would damage it for good."""
    import filelock

    if not os.access(file.parent, os.W_OK) or file.exists() and not os.access(file, os.W_OK):
        raise TrackingError(
            f"The MLflow store {file} cannot be written: it is read-only, or its folder is missing or read-only; run "
            "in a folder that you can write to, or correct MLFLOW_TRACKING_URI."
        )
    try:
        return filelock.FileLock(f"{file}.lock", timeout=OPENING_SECONDS).acquire()
    except (filelock.Timeout, OSError) as error:
        mend = "wait for the other scripts to start, end the one that hangs, or delete the file"
        raise TrackingError(f"{file}.lock could not be taken ({error}); {mend}.") from None


def _check_database(file: Path | None) -> None:
    """Check a file first: MLflow would try an unreadable one for 100 s, and put its tables into any other one.

    While another program holds it, try again; after LOCK_SECONDS raise SQLite's error.
    """
    if file is None or not file.exists():
        return
    deadline = time.monotonic() + LOCK_SECONDS
    tables = None
    while tables is None:
        try:
            # Without a time-out: SQLite does not notice Ctrl-C while it waits.
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=0)) as database:
                tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.Error as error:
            if "locked" not in str(error):
                mend = "move it away, and a new one is created, or restore it from a backup"
                raise TrackingError(f"{file} cannot be read as an MLflow database ({error}); {mend}.") from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    if tables and "alembic_version" not in tables:
        mend = "move it away, or name another one in MLFLOW_TRACKING_URI"
        raise TrackingError(f"{file} is a SQLite file, but not an MLflow database; {mend}.")


def _experiment_id(client, name: str, file: Path | None) -> str:
    """The id of an experiment, which is created where needed."""
    from mlflow.exceptions import MlflowException

    if client.get_experiment_by_name(name) is None:
        # Absolute and beside the database; MLflow would take the current directory. A server chooses for itself.
        location = (file.parent / "mlruns" / re.sub(r"[^\w.-]", "_", name)).as_uri() if file else None
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process has created it
                raise
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"Experiment {name!r} is in MLflow's trash, which keeps its name; bring it back with `mlflow experiments "
            f"restore -x {number}` or remove it for good with `mlflow gc --experiment-ids {number}`."
        )
    if file:
        _check_artifacts(experiment, file.parent)
    return number


def _check_artifacts(experiment, beside: Path) -> None:
    """Raise TrackingError unless this script can write to the experiment's artifact folder, which cannot change."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    location, new_name = experiment.artifact_location, shlex.quote(f"{experiment.name}_old")
    usable = not location.startswith("mlflow-artifacts:")  # which only a server can reach
    if is_local_uri(location):
        location = local_file_uri_to_path(location)
        if Path(location).is_relative_to(beside):
            with suppress(OSError):
                Path(location).mkdir(parents=True, exist_ok=True)
        usable = Path(location).is_dir() and os.access(location, os.W_OK)
    if not usable:
        raise TrackingError(
            f"Experiment {experiment.name!r} keeps its artifacts in {location}, where this script cannot write: the "
            "experiment was created in the web interface, the database was moved, or that is no folder that you can "
            "write to. Mend the folder, set MLFLOW_TRACKING_URI to the running server, or rename the experiment with "
            f"`mlflow experiments rename -x {experiment.experiment_id} --new-name {new_name}`: then the script creates "
            "a new one."
        )


# Text without passwords


def masked(text: str) -> str:
    """Hide passwords and tokens in a text: "http://me:secret@host" becomes "http://me:***@host".

    It hides the part before the @ of an address (also a token in place of the user), values of a query or a header that
    are named like a password, and the secret values of MLflow's variables anywhere. Every text that leaves the process
    goes through here, also that of foreign exceptions.
    """

    def address(match: re.Match) -> str:
        user, _, password = match[2].partition(":")
        return f"{match[1]}{user}:***@" if password and NAME.fullmatch(user) else f"{match[1]}***@"

    text = re.sub(r"(\w[\w+.-]*://)(?!/)(\S*)@", address, text)  # to the last @: a password may hold / and @
    text = re.sub(rf"(?i)((?:{SECRET})[\w-]*[\"']?\s*[=:]\s*[\"']?)[^\s&;,'\"]+", r"\1***", text)
    text = re.sub(r"(?i)(authorization[\"']?\s*[=:]\s*[\"']?(?:\w+\s+)?)[^\s'\"]+", r"\1***", text)
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets() -> set[str]:
    """The credentials in MLflow's variables, whole and in pieces, because an error may name a piece."""
    whole = [os.environ.get("MLFLOW_TRACKING_PASSWORD", ""), os.environ.get("MLFLOW_TRACKING_TOKEN", "")]
    credentials = os.environ.get("MLFLOW_TRACKING_URI", "").partition("://")[2].rpartition("@")[0]
    if not credentials.startswith("/"):  # else the path of a file
        user, _, password = credentials.partition(":")
        whole += [password] if password and NAME.fullmatch(user) else [user, password]
    pieces = [piece for secret in whole for piece in (secret, *re.split(r"[/@:?#\s]", secret))]
    return {form for piece in pieces if len(piece) > 2 for form in (piece, quote(piece, safe=""), unquote(piece))}


def first_line(error: Exception) -> str:
    """The most useful line of a foreign error; it is masked before it is cut, because half a password is not found."""
    lines = [line for line in masked(str(error)).splitlines() if not line.startswith("(raised as")]
    return errors.first_line("\n".join(lines).strip() or type(error).__name__)[:200]


def warn(message: str) -> None:
    print(f"warning: {masked(message)}", file=sys.stderr)


def note(message: str) -> None:
    print(f"note: {masked(message)}", file=sys.stderr)
