"""A function in a process of its own: its result, its failures, and its end, however the process that began it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lab.system.fresh_process import FreshProcess

ROOT = Path(__file__).resolve().parent.parent


def double(number, go_ahead):
    go_ahead()
    print("a note of a library", file=sys.stderr)
    return os.getpid(), 2 * number


def fail(error, go_ahead):
    raise error


def be_killed(go_ahead):
    os.kill(os.getpid(), signal.SIGKILL)


def test_result_comes_from_another_process_that_is_gone_afterwards(capfd):
    with FreshProcess(double, 21) as child:
        number, result = child.result()
    assert result == 42 and number != os.getpid() and not psutil.pid_exists(number)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [(ValueError("too large"), ValueError, "^too large$"), (KeyError("x"), RuntimeError, "KeyError: 'x'")],
)
def test_failures_arrive_in_words(error, expected, words):
    with FreshProcess(fail, error) as child, pytest.raises(expected, match=words):
        child.result()


def test_a_failure_before_it_is_asked_for_arrives_as_well():
    with FreshProcess(fail, MemoryError("40 GiB")) as child:
        child._process.join(60)
        with pytest.raises(MemoryError, match="^40 GiB$"):
            child.result()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_is_told():
    with FreshProcess(be_killed) as child, pytest.raises(MemoryError, match="exit code -9"):
        child.result()


SCRIPT = """
import sys, time
from lab import command_line
from lab.system import output_files
from lab.system.fresh_process import FreshProcess

def work(go_ahead):
    go_ahead()
    time.sleep(60)

@command_line.script
def main(argv=None):
    with FreshProcess(work) as child:
        print(child._process.pid, flush=True)
        child.result()

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def running(tmp_path):
    """A script that waits for such a process, and that process's number."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    script = subprocess.Popen([sys.executable, tmp_path / "script.py"], env=environment, **options)
    child = psutil.Process(int(script.stdout.readline()))
    yield script, child
    script.kill()
    script.communicate()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("signum", "words"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
@pytest.mark.parametrize("at_once", [True, False])  # while the new process starts, or at work
def test_two_signals_end_both_processes_with_one_sentence(running, signum, words, at_once):
    script, child = running
    time.sleep(0 if at_once else 1)
    started = time.monotonic()
    os.killpg(script.pid, signum)  # as a terminal does
    time.sleep(0.3)
    if script.poll() is None:
        os.killpg(script.pid, signum)
    _, errors = script.communicate(timeout=20)
    assert script.returncode == 128 + signum and time.monotonic() - started < 5
    assert errors == f"script.py: stopped by {words}.\n"
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_the_process_ends_with_a_script_that_is_killed(running):
    script, child = running
    time.sleep(0.5)
    script.kill()
    script.wait()
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert gone and not alive
