"""Ctrl-C, SIGTERM and SIGHUP as exceptions that do not get lost; shared by the command line and the tracking.

with signals_raise():  # KeyboardInterrupt or Stopped; blocks may be nested
    ...
    with signals_wait():  # not while a database is written
        ...
"""

import atexit
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
REPEAT_SECONDS = 3  # a second signal within this time is one with the first: it would strike the clean-up

_depth = 0  # of blocks of `signals_raise`
_former = {}  # the handlers that stood before the outermost one
_came: list[tuple[int, float]] = []  # the signals since it began, with time.monotonic()


class Stopped(SystemExit):
    """SIGTERM or SIGHUP as an exception, so that `finally` blocks run; its code is 128 + `signum`."""

    @property
    def signum(self) -> int:
        return self.code - 128


def is_stop(error: BaseException | None) -> bool:
    """Whether an exception is the end by a signal: KeyboardInterrupt, Stopped, or an exit with such a code."""
    by_code = isinstance(error, SystemExit) and error.code in [128 + signum for signum in SIGNALS]
    return by_code or isinstance(error, KeyboardInterrupt)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C, `Stopped` at SIGTERM and SIGHUP, in the main thread.

    Python runs a handler between any two instructions, inside a destructor too, where an exception is dropped
    ("Exception ignored in ..."): the signal is then sent again. Where foreign code swallowed the exception, or made
    another one of it, `raise_swallowed` raises it, at the latest at the end of the block. Someone else's handlers
    stay, and so does `nohup`. The former ones are put back, but not where a signal ended the block: the process is
    about to end, and a second signal must not end it another way.
    """
    global _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former_hook = sys.unraisablehook
    if _depth == 0:
        _came.clear()
        for signum in SIGNALS:
            handler = signal.getsignal(signum)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                _former[signum] = signal.signal(signum, _on_signal)
            elif handler is not _on_signal:  # which is left from a block that a signal ended
                _former.pop(signum, None)
        sys.unraisablehook = lambda dropped: _on_dropped(dropped, former_hook)
    _depth += 1
    try:
        yield
        raise_swallowed()
    except BaseException:
        raise_swallowed()
        raise
    finally:
        _depth -= 1
        if _depth == 0:
            sys.unraisablehook = former_hook
            while _former and not is_stop(sys.exception()):
                signal.signal(*_former.popitem())


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let signals wait for the end of the block: a transaction that is interrupted would keep its lock."""
    came, former = [], {}
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            if callable(signal.getsignal(signum)):  # not where it ends the process at once, or is ignored
                former[signum] = signal.signal(signum, lambda signum, frame: came.append(signum))
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
        if came:
            signal.raise_signal(came[0])


def ignore_signals() -> None:
    """Let no signal of these have any effect any more, until the process ends."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def raise_swallowed() -> None:
    """Raise the exception of a signal that came, unless one is on its way already; it takes another's notes along."""
    other = sys.exception()
    if _came and not is_stop(other) and threading.current_thread() is threading.main_thread():
        exception = _exception(_came[0][0])
        for note in getattr(other, "__notes__", ()):
            exception.add_note(note)
        raise exception


def _on_signal(signum: int, frame) -> None:
    now = time.monotonic()
    if not _came or now - _came[-1][1] > REPEAT_SECONDS:
        if not _came:
            atexit.register(ignore_signals)  # nor may a second one end the interpreter while that ends
        _came.append((signum, now))
        raise _exception(signum)


def _exception(signum: int) -> BaseException:
    return KeyboardInterrupt() if signum == signal.SIGINT else Stopped(128 + signum)


def _on_dropped(dropped, former_hook) -> None:
    """What Python calls for an exception that cannot leave a destructor."""
    if not (_came and is_stop(dropped.exc_value)):
        former_hook(dropped)
        return
    _came[-1] = _came[-1][0], float("-inf")  # the next one is no repetition
    left = threading.Event()
    threading.Thread(target=_send_again, args=(left,), daemon=True).start()
    left.set()


def _send_again(left: threading.Event) -> None:
    left.wait()
    time.sleep(0.05)  # until the destructor has ended too
    if _depth and hasattr(signal, "pthread_kill"):  # Windows has none
        signal.pthread_kill(threading.main_thread().ident, _came[-1][0])
