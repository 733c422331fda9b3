"""How long a training will take, from a few timed steps that change nothing; how long a prediction will still take.

    pace = training.measure(model, batches, validation)
    print(timing.describe_training(epochs=30, steps=45, pace=pace))  # 30 epochs of 45 steps: about 13 min, until 14:32
    epochs = timing.fitting_epochs(minutes=10, steps=45, pace=pace)

The estimate holds while the other programs on the machine stay the same.
"""

import contextlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lab.system import processes

STEPS = 3  # to time: the first one compiles the network
ENOUGH, MOST = 1.0, 20  # fast steps are timed for ENOUGH seconds, at most MOST of them: a single one is too short
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


# A training


def measure(model, training, made: list[float], validation, batch: int) -> Pace:
    """Time a few steps and a batch of the validation; the model, its optimizer and its metrics stay as they were.

    Keras's `fit` and `evaluate` run, and keep the compiled functions: the training does not compile again.

    Args:
        model: compiled, with a built optimizer.
        training: the batches for `fit`; it adds to `made` the seconds that each batch takes to make (see `timed`).
        made: an empty list.
        validation: the data that `fit` scores after each epoch.
        batch: images in a batch of the validation, if that is a pair of arrays.
    """
    import keras

    scored = validation if isinstance(validation, tuple) else [validation]  # on TensorFlow a data set
    num = math.ceil(len(validation[0]) / batch) if isinstance(validation, tuple) else len(validation)
    ends = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))

    def train(num):
        ends.clear()
        model.fit(training, steps_per_epoch=num, callbacks=[watch], shuffle=False, verbose=0)
        # The median: JAX compiles the network again for a shorter last batch.
        return statistics.median_low([after - before for before, after in itertools.pairwise(ends)])

    def score():
        model.evaluate(*scored, batch_size=batch, steps=1, verbose=0)
        return time.perf_counter()

    started = time.perf_counter()
    with untouched(model):
        step = train(STEPS)
        if step < ENOUGH / STEPS and not processes.several_processes():  # these must all do the same steps
            step = train(min(MOST, 1 + round(ENOUGH / step)))
        compiled = score()
        seconds = score() - compiled
    # TensorFlow makes the next batches during a step, so the slower of the two sets the pace.
    return Pace(max(step, statistics.median_low(made)), num * seconds, time.perf_counter() - started)


def timed(batches: Iterator, seconds: list[float]) -> Iterator:
    """Pass on batches; add to `seconds` what each one took to make."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        seconds.append(time.perf_counter() - started)
        yield batch


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
    """The number of epochs that fit into a training of so many minutes.

    Raises:
        ValueError: if that is less than one; it names the least number of minutes.
    """
    seconds = 60 * minutes * (1 - MARGIN) - pace.start
    epochs = int(min(seconds / pace.epoch(steps), 10**9))
    if epochs < 1:
        least = math.ceil((pace.start + pace.epoch(steps)) / (1 - MARGIN) / 6) / 10
        raise ValueError(f"--minutes {minutes:g} is too little for one epoch; give at least {least:g}.")
    return epochs


def describe_training(epochs: int, steps: int, pace: Pace) -> str:
    """The epochs and steps of a training, and its time."""
    return f"{count(epochs, 'epoch')} of {count(steps, 'step')}: {about(epochs * pace.epoch(steps))}"


# In words


def count(num: int, what: str) -> str:
    """(1, "epoch") -> "1 epoch"; (3, "epoch") -> "3 epochs"."""
    return f"{num} {what}" if num == 1 else f"{num} {what}s"


def about(seconds: float, left: str = "") -> str:
    """How long something takes, and when it ends: "about 13 min, until 14:32"."""
    return f"about {duration(seconds)}{left}, until {clock(time.time() + seconds)}"


def duration(seconds: float) -> str:
    """Seconds, minutes, or hours and minutes: 95 -> "95 s", 780 -> "13 min", 7800 -> "2 h 10 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def clock(moment: float) -> str:
    """The time of day, with the date where it is not today's."""
    then, today = time.localtime(moment), time.localtime()
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%d %b %H:%M", then)


# A prediction


def describe_rest(seconds: list[float], num_left: int) -> str | None:
    """The time for the other pictures, once: after the first one, or if that was fast, after the second.

    The network's start takes most of the time of a fast first picture.
    """
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
