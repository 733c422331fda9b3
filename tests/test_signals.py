"""No signal gets lost, wherever it strikes; each test sends real ones to this process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from lab.signals import SIGNALS, Stopped, raise_swallowed, signals_raise, signals_wait

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def defaults():
    """The handlers of a fresh process, whatever pytest was started with."""
    former = {signum: signal.signal(signum, signal.SIG_DFL) for signum in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in former.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(
    ("name", "exception", "code"),
    [("SIGINT", KeyboardInterrupt, None), ("SIGTERM", Stopped, 143), ("SIGHUP", Stopped, 129)],
)
def test_signal_is_an_exception_with_the_usual_exit_code(name, exception, code):
    with pytest.raises(exception) as stop, signals_raise():
        signal.raise_signal(getattr(signal, name))
    assert code is None or (stop.value.code == code and stop.value.signum == getattr(signal, name))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_comes_when_all_is_done_changes_nothing(name):
    code = (
        "import atexit, os, signal, sys; from lab import command_line\n"
        f"atexit.register(os.kill, os.getpid(), signal.{name})\n"  # as late as one can come
        "@command_line.script\ndef main(argv=None): print('done')\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("place", ["destructor", "weakref"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_inside_a_destructor_is_raised_after_it(place, signum, capfd):
    class Thing:
        def __del__(self):
            if place == "destructor":
                signal.raise_signal(signum)

    with pytest.raises((KeyboardInterrupt, Stopped)), signals_raise():
        thing = Thing()
        watch = weakref.ref(thing, lambda _: place == "weakref" and signal.raise_signal(signum))
        del thing  # the exception that is raised here cannot leave
        assert watch() is None
        time.sleep(5)
        pytest.fail("the signal was lost")
    assert capfd.readouterr().err == ""  # no "Exception ignored in ..."


def test_a_signals_exception_takes_the_notes_of_the_one_whose_place_it_takes():
    with pytest.raises(Stopped) as stop, signals_raise():
        with contextlib.suppress(Stopped):
            signal.raise_signal(signal.SIGTERM)
        error = RuntimeError("the connection is gone")  # as where the other processes were stopped too
        error.add_note("2 epochs are kept")
        raise error
    assert stop.value.__notes__ == ["2 epochs are kept"]


def test_signal_that_foreign_code_swallows_is_raised_at_the_next_look_or_at_the_end():
    with pytest.raises(Stopped), signals_raise():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        raise_swallowed()
        pytest.fail("the signal was lost")
    with pytest.raises(Stopped), signals_raise(), contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGTERM)


def test_signal_that_foreign_code_makes_an_error_of_is_a_signal_again():
    with pytest.raises(Stopped) as stop, signals_raise():
        try:
            signal.raise_signal(signal.SIGHUP)
        except SystemExit as error:
            raise TypeError("not a tensor") from error
    assert stop.value.code == 129


def test_second_signal_does_not_strike_the_clean_up():
    cleaned = []
    with pytest.raises(Stopped), signals_raise():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            raise_swallowed()  # nor does a look at what was swallowed: it is on its way
            cleaned.append(True)
    assert cleaned


def test_second_signal_does_not_change_the_end_of_the_process():
    script = """
import signal, time
from lab.signals import signals_raise
class Slow:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)  # while the frames of the script, and then the modules, are taken down
slow = Slow()
def main():
    big = Slow()
    with signals_raise():
        signal.raise_signal(signal.SIGTERM)
main()
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (143, "")


def test_later_signal_strikes_again(monkeypatch):
    monkeypatch.setattr("lab.signals.REPEAT_SECONDS", 0.1)
    with pytest.raises(KeyboardInterrupt), signals_raise():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # a library that takes no notice
            time.sleep(0.2)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second Ctrl-C was ignored")


def test_signals_wait_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), signals_raise(), signals_wait():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with signals_wait():
            signal.raise_signal(signal.SIGTERM)
        done.append(True)
    assert done


def test_handlers_are_put_back_and_someone_elses_stay():
    def own(signum, frame):
        pass

    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals_raise(), signals_raise(), signals_wait():
        pass
    with signals_raise():
        assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone():
    def work():
        with signals_raise(), signals_wait():
            ended.append(signal.getsignal(signal.SIGTERM))

    ended = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [signal.SIG_DFL]
