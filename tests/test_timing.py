"""What is said of time, in words; and how many epochs fit into so many minutes."""

import re
import sys
import time

import pytest

from lab.model import timing


@pytest.mark.parametrize(("seconds", "words"), [
    (0.2, "1 s"), (95, "95 s"), (100, "2 min"), (780, "13 min"), (5900, "98 min"), (7800, "2 h 10 min"),
])  # fmt: skip
def test_a_time_is_said_in_seconds_minutes_or_hours(seconds, words):
    assert timing.duration(seconds) == words


def test_the_end_has_a_date_where_that_is_another_day():
    assert timing.about(0) == f"about 1 s, until {time.strftime('%H:%M')}"
    assert re.fullmatch(r"about 24 h 0 min, until \d\d \w+ \d\d:\d\d", timing.about(24 * 3600))


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


def rows_told(seconds, terminal, monkeypatch, capsys):
    """What is printed while rows of tiles are predicted that take so many seconds each."""
    now = [0.0]

    def rows():
        for number, took in enumerate(seconds):
            now[0] += took
            yield number

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert [*timing.told(rows(), len(seconds))] == [*range(len(seconds))]
    return capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "lines"), [
    ([0.5] * 8, []),  # 4 s in all
    ([4, 0.1, 0.1, 0.1], []),  # the network's start says nothing of the rows
    ([9], []),  # when it is known, nothing is left
    ([2] * 4, ["row 2 of 4, about 4 s left", "row 3 of 4, about 2 s left"]),
    ([60, 50, 50], ["row 1 of 3, about 2 min left", "row 2 of 3, about 50 s left"]),
])  # fmt: skip
def test_a_long_prediction_says_after_each_row_of_tiles_what_is_left(seconds, lines, monkeypatch, capsys):
    assert rows_told(seconds, False, monkeypatch, capsys) == "".join(f"{line}\n" for line in lines)


def test_on_a_terminal_one_line_is_rewritten_and_goes(monkeypatch, capsys):
    printed = rows_told([60, 50, 50], True, monkeypatch, capsys)
    first, second = "row 1 of 3, about 2 min left", "row 2 of 3, about 50 s left"
    assert printed == f"\r{first}\r{second:{len(first)}}\r{' ' * len(second)}\r"


@pytest.mark.parametrize(("seconds", "num_left", "words"), [
    ([20], 3, "3 more: about 60 s, until"),
    ([20, 20], 2, None),  # it is said once
    ([3], 100, None),  # of which the network's start may be most
    ([3, 0.6], 99, "99 more: about 59 s, until"),
    ([3, 0.6, 0.6], 98, None),
    ([3, 0.6], 2, None),
    ([20], 0, None),
])  # fmt: skip
def test_after_a_picture_it_is_said_once_what_the_others_take(seconds, num_left, words):
    said = timing.describe_rest(seconds, num_left)
    assert said is words if words is None else said.startswith(words)
