"""Real servers for the benchmarks, on loopback: MLflow's and PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def server(folder: Path, store: str, port: int):
    """A real MLflow server on loopback; yields its process once it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "server", "a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                if urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read() == b"OK":
                    break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended: {(folder / 'server').read_text()[-2000:]}") from None
                time.sleep(0.5)
        yield process
    finally:
        for signum in (signal.SIGCONT, signal.SIGTERM):
            try:
                os.killpg(process.pid, signum)
            except ProcessLookupError:
                break
        process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def postgresql(folder: Path):
    """A PostgreSQL of its own on loopback, from Debian's package; yields its address, or None where it is missing."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        yield None
        return
    port, data = free_port(), folder / "postgresql"
    data.mkdir()
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    if user:
        for path in (folder, data):
            path.chmod(0o755)
        shutil.chown(data, "postgres", "postgres")

    def call(*command):
        subprocess.run([*user, *map(str, command)], check=True, capture_output=True)

    call(programs[-1] / "initdb", "-D", data, "-U", "lab", "--auth=trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
    call(programs[-1] / "pg_ctl", "-D", data, "-o", options, "-l", data / "log", "-w", "start")
    try:
        call(programs[-1] / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "lab", "mlflow")
        yield f"postgresql+psycopg2://lab@127.0.0.1:{port}/mlflow"
    finally:
        call(programs[-1] / "pg_ctl", "-D", data, "-m", "immediate", "stop")
