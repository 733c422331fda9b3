"""No signal gets lost, wherever it strikes; each test sends real ones to this process, or to one of its own."""

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

from lab.system.signals import SIGNALS, Stopped, raise_swallowed, signals_raise, signals_wait

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def defaults():
    """The handlers of a fresh process, whatever pytest was started with; Python's hook is as before afterwards."""
    hook = sys.unraisablehook
    former = {signum: signal.signal(signum, signal.SIG_DFL) for signum in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in former.items():
        signal.signal(signum, handler)
    assert sys.unraisablehook is hook


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_signal_is_an_exit_with_the_usual_code_and_ctrl_c_a_keyboard_interrupt(name, code):
    with pytest.raises(Stopped) as stop, signals_raise():
        signal.raise_signal(getattr(signal, name))
    assert stop.value.code == code
    with pytest.raises(KeyboardInterrupt), signals_raise():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("place", ["destructor", "weakref"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("twice", [False, True])
def test_signal_inside_a_destructor_is_raised_after_it(place, signum, twice, monkeypatch, capfd):
    class Thing:
        def __del__(self):
            if place == "destructor":
                signal.raise_signal(signum)

    def start(thread):  # of the thread that sends it again
        signal.raise_signal(signum)
        start_thread(thread)

    start_thread, lost = threading.Thread.start, []
    if twice:
        monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises((KeyboardInterrupt, Stopped)), signals_raise():
        thing = Thing()
        watch = weakref.ref(thing, lambda _: place == "weakref" and signal.raise_signal(signum))
        del thing  # the exception that is raised here cannot leave
        lost.append(watch())
        time.sleep(2)
        lost.append("the signal")
    assert lost == [None] and capfd.readouterr().err == ""  # no "Exception ignored in ..."


def test_signal_that_foreign_code_swallows_is_raised_at_the_next_look_or_at_the_end():
    work = []
    with pytest.raises(Stopped), signals_raise():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        work.append("to the next look")
        raise_swallowed()
        work.append("on and on")
    assert work == ["to the next look"]
    with pytest.raises(Stopped), signals_raise(), contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGTERM)


def test_signal_that_foreign_code_makes_an_error_of_is_a_signal_again():
    with pytest.raises(Stopped) as stop, signals_raise():
        with pytest.raises(Stopped), signals_raise():  # within a block, so that a run in it is closed as KILLED
            try:
                signal.raise_signal(signal.SIGHUP)
            except SystemExit:
                raise TypeError("not a tensor") from None
        error = RuntimeError("the connection is gone")
        error.add_note("2 epochs are kept")
        raise error
    assert stop.value.code == 129 and stop.value.__notes__ == ["2 epochs are kept"]


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


def test_later_signal_strikes_again(monkeypatch):
    monkeypatch.setattr("lab.system.signals.REPEAT_SECONDS", 0.1)
    ignored = []
    with pytest.raises(KeyboardInterrupt), signals_raise():
        with contextlib.suppress(KeyboardInterrupt):  # a library that takes no notice
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
        signal.raise_signal(signal.SIGINT)
        ignored.append("the second Ctrl-C")
    assert not ignored


LATE = """
import atexit, os, signal, sys
from lab.system.signals import signals_raise
atexit.register(os.kill, os.getpid(), signal.{name})  # as late as one can come
class Slow:
    def __del__(self):
        signal.raise_signal(signal.{name})  # while the frames of the script, and then the modules, are taken down
slow = Slow() if {first} else None
def main():
    local = Slow() if {first} else None
    with signals_raise():
        if {first}:
            signal.raise_signal(signal.SIGTERM)
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("first", "code"), [(False, 0), (True, 143)])
def test_a_signal_that_comes_when_all_is_done_changes_nothing(name, first, code):
    command = [sys.executable, "-c", LATE.format(name=name, first=first)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")


def test_signals_wait_for_the_end_of_the_block_and_no_longer():
    done = []
    with pytest.raises(KeyboardInterrupt), signals_raise():
        with signals_wait():
            signal.raise_signal(signal.SIGINT)
            with signals_wait():
                signal.raise_signal(signal.SIGTERM)
            done.append("the block")
        done.append("what follows")
    assert done == ["the block"]


def test_signals_wait_for_nothing_outside_the_block(monkeypatch):
    monkeypatch.setattr("lab.system.signals.REPEAT_SECONDS", 0)
    ignored = []
    with pytest.raises(Stopped), signals_raise():
        signal.raise_signal(signal.SIGTERM)  # from now on the handlers stay: the process is about to end
    with pytest.raises(KeyboardInterrupt), signals_wait():
        signal.raise_signal(signal.SIGINT)
        ignored.append("the signal")
    assert not ignored


def test_handlers_are_put_back_and_someone_elses_stay():
    def own(signum, frame):
        pass

    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    with signals_raise():
        with signals_raise(), signals_wait():
            pass
        assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is own
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
