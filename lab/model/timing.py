"""How long a training will take, from a few timed steps; how long a prediction will still take.

    pace = training.measure(model, batches, validation)
    print(timing.describe_training(epochs=30, steps=45, pace=pace))  # 30 epochs of 45 steps: about 13 min, until 14:32
    epochs = timing.fitting_epochs(minutes=10, steps=45, pace=pace)

The estimate holds while the other programs on the machine stay the same.
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

MARGIN = 0.05  # share of the minutes that is left for other work of the machine, and for the checkpoints
LONG = 60  # seconds: a shorter training does not say after each epoch what is left
SLOW = 5  # seconds: a faster prediction does not say what is left


class Pace(NamedTuple):
    """Seconds that the parts of a training take."""

    step: float
    validation: float  # after each epoch
    start: float  # to compile the network and to time it

    def epoch(self, steps: int) -> float:
        """An epoch with its validation."""
        return steps * self.step + self.validation


def timed(batches: Iterator, seconds: list[float]) -> Iterator:
    """Pass on batches; add to `seconds` what each one took to make."""
    started = time.perf_counter()
    for batch in batches:
        seconds.append(time.perf_counter() - started)
        yield batch
        started = time.perf_counter()


@contextlib.contextmanager
def untouched(model) -> Iterator[None]:
    """After the block, restore all variables of a model and its built optimizer, also the seeds of its layers."""
    variables = [*model.variables, *model.optimizer.variables]
    # Copies, because JAX gives the memory of variables to the next step.
    values = [np.asarray(variable).copy() for variable in variables]
    yield
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    model.reset_metrics()


def fitting_epochs(minutes: float, steps: int, pace: Pace) -> int:
    """The number of epochs that fit into a training of so many minutes; ValueError if that is less than one."""
    seconds = 60 * minutes * (1 - MARGIN) - pace.start
    epochs = int(min(seconds / pace.epoch(steps), 10**9))
    if epochs < 1:
        least = math.ceil((pace.start + pace.epoch(steps)) / (1 - MARGIN) / 6) / 10
        raise ValueError(f"--minutes {minutes:g} is too little for one epoch; give at least {least:g}.")
    return epochs


def describe_training(epochs: int, steps: int, pace: Pace) -> str:
    """The epochs and steps of a training, and its time."""
    return f"{count(epochs, 'epoch')} of {count(steps, 'step')}: {about(epochs * pace.epoch(steps))}"


def count(num: int, what: str) -> str:
    """(1, "epoch") -> "1 epoch"; (3, "epoch") -> "3 epochs"."""
    return f"{num} {what}" if num == 1 else f"{num} {what}s"


def about(seconds: float, left: str = "") -> str:
    """How long something takes, and when it ends: "about 13 min, until 14:32"; with the date if it is another day's."""
    end, today = time.localtime(time.time() + seconds), time.localtime()
    clock = time.strftime("%H:%M" if end[:3] == today[:3] else "%d %b %H:%M", end)
    return f"about {duration(seconds)}{left}, until {clock}"


def duration(seconds: float) -> str:
    """Seconds, minutes, or hours and minutes: 95 -> "95 s", 780 -> "13 min", 7800 -> "2 h 10 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def describe_rest(seconds: list[float], num_left: int) -> str | None:
    """The time for the other pictures, said once: after the first one or, if the network's start took most of its time,
    after the second."""
    first = len(seconds) == 1 and seconds[0] >= SLOW or len(seconds) == 2 and seconds[0] < SLOW
    if not first or seconds[-1] * num_left < SLOW:
        return None
    return f"{num_left} more: {about(seconds[-1] * num_left)}"


def told(rows: Iterable, num: int) -> Iterator:
    """Pass on the results of `num` rows of tiles; print the time left after each, if the whole takes over SLOW seconds.

    On a terminal there is one line, which is rewritten and removed at the end.
    """
    terminal = sys.stdout.isatty()
    started, first, shown = time.perf_counter(), 0.0, ""
    try:
        for row, result in enumerate(rows, 1):
            took = time.perf_counter() - started
            first = first or took
            # The network starts in the first row: the others say how long a row takes.
            left = (num - row) * (took - first) / (row - 1) if row > 1 else (num - 1) * took
            if row < num and took + left >= SLOW and (row > 1 or took >= SLOW):
                text = f"row {row} of {num}, about {duration(left)} left"
                print(f"\r{text:{len(shown)}}" if terminal else text, end="" if terminal else "\n", flush=True)
                shown = text
            yield result
    finally:
        if terminal and shown:
            print("\r" + " " * len(shown) + "\r", end="", flush=True)
