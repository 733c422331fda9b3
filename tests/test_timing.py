"""What is said of time, in words; and how many epochs fit into so many minutes."""

import re
import time

import pytest

from lab.model import timing


@pytest.mark.parametrize(("seconds", "words"), [
    (0.2, "1 s"), (95, "95 s"), (100, "2 min"), (780, "13 min"), (5900, "98 min"), (7800, "2 h 10 min"),
])  # fmt: skip
def test_a_time_is_said_in_seconds_minutes_or_hours(seconds, words):
    assert timing.duration(seconds) == words


def test_the_end_has_a_date_where_that_is_another_day():
    assert timing.clock(time.time()) == time.strftime("%H:%M")
    assert re.fullmatch(r"\d\d \w+ \d\d:\d\d", timing.clock(time.time() + 24 * 3600))


def test_a_training_takes_its_epochs_with_their_validations():
    pace = timing.Pace(step=0.5, validation=3, start=4)
    assert timing.describe_training(30, 45, pace).startswith("30 epochs of 45 steps: about 13 min, until ")  # 765 s
    assert timing.describe_training(1, 1, pace).startswith("1 epoch of 1 step: about 4 s, until ")


@pytest.mark.parametrize("minutes", [0.4, 1, 60])
def test_as_many_epochs_fit_as_leave_room_for_the_start_and_a_margin(minutes):
    pace = timing.Pace(step=0.5, validation=1, start=5)
    seconds = 60 * minutes * (1 - timing.MARGIN) - 5
    assert timing.fitting_epochs(minutes, 10, pace) == seconds // (10 * 0.5 + 1)


@pytest.mark.parametrize("step", [0.01, 0.5, 17, 3000])
def test_the_least_number_of_minutes_that_is_named_has_room_for_an_epoch(step):
    pace = timing.Pace(step, validation=step / 3, start=step + 2)
    with pytest.raises(ValueError, match="too little for one epoch; give at least") as refused:
        timing.fitting_epochs(0.001, 10, pace)
    least = float(str(refused.value).rstrip(".").split()[-1])
    assert timing.fitting_epochs(least, 10, pace) >= 1
    with pytest.raises(ValueError, match="too little"):
        timing.fitting_epochs(least - 0.1, 10, pace)
