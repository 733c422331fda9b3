"""A function in a new process, where nothing else takes memory or time; it ends with the process that started it.

    with FreshProcess(examine, config) as child:
        ...                         # other work in the meantime
        value = child.result()

`examine(config, go_ahead)` must be importable. Its call of `go_ahead()` waits until `child.result()` is called.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import connection, get_context, parent_process

from lab.system.signals import SIGNALS


class FreshProcess:
    """The process, killed at the end of the `with` block."""

    def __init__(self, function: Callable, *args):
        context = get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there, function, *args), daemon=True)
        # A signal during the start would leave an unknown process. The new process inherits the block.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
        try:
            self._process.start()
        finally:
            there.close()
            if masked is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)

    def __enter__(self) -> "FreshProcess":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.join()

    def result(self):
        """The value that the function returns, or its ValueError; MemoryError if the process was killed, which a system
        does if memory is short; RuntimeError for any other failure."""
        with contextlib.suppress(OSError):  # it may have ended already, with a result or an error
            self._pipe.send("go")
        try:
            result = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise MemoryError(f"the process that measures was killed, exit code {self._process.exitcode}") from None
        if isinstance(result, Exception):
            raise result
        return result


def _work(pipe: connection.Connection, function: Callable, *args) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all its processes
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the notes of TensorFlow's libraries; exceptions travel by the pipe
    try:
        result = function(*args, pipe.recv)
    except (ValueError, MemoryError) as error:
        result = error
    except Exception as error:  # of a class that the other process may not know
        result = RuntimeError(f"{type(error).__name__}: {str(error)[:500]}")
    pipe.send(result)


def _end_with_parent() -> None:
    """End this process as soon as the process that started it has ended, for any reason."""
    connection.wait([parent_process().sentinel])
    os._exit(1)
