"""Ctrl-C, SIGTERM and SIGHUP as exceptions that do not get lost; shared by the command line and the tracking.

with signals_raise():     # KeyboardInterrupt or Stopped; blocks may be nested
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

_came: list[tuple[int, float]] = []  # signals within the outermost `signals_raise`, with time.monotonic()


class Stopped(SystemExit):
    """SIGTERM or SIGHUP as an exception, so that `finally` blocks run; its code is 128 + `signum`."""

    @property
    def signum(self) -> int:
        return self.code - 128


@contextmanager
def signals_raise() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C, `Stopped` at SIGTERM and SIGHUP, in the main thread.

    Python runs a handler between any two instructions, inside a destructor too, where an exception is dropped
    ("Exception ignored in ..."): the signal is then sent again. Where foreign code swallowed the exception, or made
    another one of it, `raise_swallowed` raises it, at the latest at the end of the block. Someone else's handlers
    stay, and so does `nohup`.
    """
    former, former_hook = {}, sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                former[signum] = signal.signal(signum, _on_signal)

    def dropped(unraisable):
        if _came and isinstance(unraisable.exc_value, KeyboardInterrupt | Stopped):
            _came[-1] = _came[-1][0], float("-inf")  # the next one is no repetition
            left = threading.Event()
            threading.Thread(target=_send_again, args=(left,), daemon=True).start()
            left.set()
        else:
            former_hook(unraisable)

    try:
        if former:
            sys.unraisablehook = dropped
        yield
        raise_swallowed()
    except BaseException:
        raise_swallowed()
        raise
    finally:
        if former:
            sys.unraisablehook = former_hook
            for signum, handler in former.items():
                signal.signal(signum, handler)
            _came.clear()


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


def raise_swallowed() -> None:
    """Raise the exception of a signal that came, unless it is on its way already."""
    on_its_way = isinstance(sys.exception(), KeyboardInterrupt | Stopped)
    if _came and not on_its_way and threading.current_thread() is threading.main_thread():
        raise _exception(_came[0][0])


def _on_signal(signum: int, frame) -> None:
    now = time.monotonic()
    if not _came or now - _came[-1][1] > REPEAT_SECONDS:
        for other in SIGNALS if not _came else ():  # a second one would end the interpreter in the middle of its end
            atexit.register(signal.signal, other, signal.SIG_IGN)
        _came.append((signum, now))
        raise _exception(signum)


def _exception(signum: int) -> BaseException:
    return KeyboardInterrupt() if signum == signal.SIGINT else Stopped(128 + signum)


def _send_again(left: threading.Event) -> None:
    left.wait()
    time.sleep(0.05)  # until the destructor has ended too
    if _came and hasattr(signal, "pthread_kill"):  # Windows has none
        signal.pthread_kill(threading.main_thread().ident, _came[-1][0])
