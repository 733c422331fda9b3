"""Ctrl-C, SIGTERM and SIGHUP as exceptions that do not get lost, for the command line and the tracking.

with signals_raise():  # KeyboardInterrupt or Stopped
    ...
    with signals_wait():  # for instance while a database is written
        ...

Python runs a handler between any two instructions of the main thread, also inside a library, and not every place passes
the exception on. Of 3442 exceptions, raised at moments all over the scripts, 23 were dropped in destructors and
callbacks, 24 became other errors, and 4 were lost. So the signal is remembered, and its exception is raised again.
"""

import atexit
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
REPEAT_SECONDS = 3  # a second signal within this time is ignored: it would interrupt the clean-up

_came: int | None = None  # the first signal of the outermost `signals_raise`; 0 before it comes, None outside the block
_former: dict = {}  # Python's own handlers, for the time after the block
_raised = float("-inf")  # time.monotonic() when an exception was last raised
_dropped = False  # Python dropped it: it must be raised again
_waiting = False  # within `signals_wait`


class Stopped(SystemExit):
    """SIGTERM or SIGHUP as an exception, so that `finally` blocks run; its code is 128 plus the signal's number."""

    code: int


def is_stop(error: BaseException | None) -> bool:
    """Whether a signal caused an exception: KeyboardInterrupt, Stopped, or a script's exit with such a code."""
    by_code = isinstance(error, SystemExit) and error.code in [128 + signum for signum in SIGNALS]
    return by_code or isinstance(error, KeyboardInterrupt)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C, `Stopped` at SIGTERM and SIGHUP, in the main thread.

    A block within another one changes no handler; at its end it raises an exception that was lost in it. Handlers of
    other code stay, and so does `nohup`. After the block Python's own handlers are set again, but not after a signal:
    the process is about to end, and a second signal must not change its exit code.
    """
    global _came, _raised
    outermost = _came is None and threading.current_thread() is threading.main_thread()
    former_hook = sys.unraisablehook
    if outermost:
        _came, _raised, sys.unraisablehook = 0, float("-inf"), _on_dropped
        for signum in SIGNALS:
            if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                _former[signum] = signal.signal(signum, _on_signal)
    try:
        try:
            yield
        finally:
            raise_swallowed()
    finally:
        if outermost:
            _came, sys.unraisablehook = None, former_hook
            for signum, handler in _former.items():
                atexit.register(signal.signal, signum, signal.SIG_IGN)  # no signal at the interpreter's end
                if signal.getsignal(signum) is _on_signal and not is_stop(sys.exception()):
                    signal.signal(signum, handler)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Within `signals_raise`, let signals wait for the end of the block: a broken transaction would keep its lock."""
    global _waiting
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, _waiting = _waiting, True
    try:
        yield
    finally:
        _waiting = outer
        raise_swallowed()


def raise_swallowed() -> None:
    """Raise the exception of a signal that came, unless it is being raised; it takes over the notes of another error.

    A script calls it where it must not go on. An exception that is raised inside TensorFlow, pydantic or Python's own
    `logging` can become an error of theirs, and TensorFlow ignores some.
    """
    other = sys.exception()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if _came and in_main_thread and not _waiting and not is_stop(other):
        stop = _exception(_came)
        stop.__notes__ = [*getattr(other, "__notes__", ())]
        raise stop


def _on_signal(signum: int, frame) -> None:
    global _came
    if _came == 0:
        _came = signum
    waits = _came and _waiting  # no signal waits outside the block
    if not waits and (_dropped or time.monotonic() - _raised > REPEAT_SECONDS):
        raise _exception(signum)


def _exception(signum: int) -> BaseException:
    global _dropped, _raised
    _dropped, _raised = False, time.monotonic()
    return KeyboardInterrupt() if signum == signal.SIGINT else Stopped(128 + signum)


def _on_dropped(dropped) -> None:
    """Send the signal again if Python dropped its exception, as in a destructor or JAX's garbage collection."""
    global _dropped, _waiting
    if not (_came and is_stop(dropped.exc_value)):
        sys.__unraisablehook__(dropped)
    elif hasattr(signal, "pthread_kill"):  # on Windows the next `raise_swallowed` raises it
        _dropped, _waiting = True, True  # Python would also drop exceptions of this function
        threading.Thread(target=_send_again, args=(_came,), daemon=True).start()
        _waiting = False


def _send_again(signum: int) -> None:
    time.sleep(0.05)
    while _dropped:
        signal.pthread_kill(threading.main_thread().ident, signum)
        time.sleep(0.05)
