"""--max-seconds: training stops early enough for the last evaluation, the last checkpoint and the end."""

from __future__ import annotations

import math

import pytest

from rltrain.system import signals, time_limit
from rltrain.system.time_limit import CHECKPOINT_SECONDS, CLOSE_SECONDS, WRITE_SPEED, TimeLimit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as a list of one number."""
    now = [100.0]
    monkeypatch.setattr(time_limit.time, "monotonic", lambda: now[0])
    return now


def test_without_a_limit_nothing_ends(clock: list[float]) -> None:
    limit = TimeLimit(None)
    clock[0] = 1e12

    assert not limit.reached(evaluates=True)
    assert limit.allows_evaluation
    assert limit.end == limit.evaluations_end == math.inf


def test_it_begins_with_the_command(clock: list[float]) -> None:
    with time_limit.command(93.0):
        assert TimeLimit(30.0).end == 93.0 + 30.0 - CLOSE_SECONDS
    assert TimeLimit(30.0).end == 100.0 + 30.0 - CLOSE_SECONDS


def test_after_a_slow_start_more_time_is_kept_for_the_end(clock: list[float]) -> None:
    limit = TimeLimit(100.0)
    clock[0] += 40.0
    limit.begin_round()

    assert limit.end == 100.0 + 100.0 - 40.0 * time_limit.CLOSE_SHARE


def test_a_round_that_could_not_end_in_time_does_not_begin(clock: list[float]) -> None:
    """The longest of the last rounds counts, not that of the start."""
    limit = TimeLimit(30.0)
    last = limit.end - CHECKPOINT_SECONDS
    for seconds in (9.0, *[1.0] * (time_limit.ROUNDS - 1), 2.0):
        limit.begin_round()
        clock[0] += 0.01 * seconds
        limit.note_round()

    clock[0] = last - 0.021
    assert not limit.reached(evaluates=False)
    clock[0] = last - 0.019
    assert limit.reached(evaluates=False)


def test_time_is_kept_for_checkpoint_and_evaluation(clock: list[float]) -> None:
    limit = TimeLimit(30.0)
    with limit.checkpoint():
        clock[0] += 2.0
    limit.unsaved = int(WRITE_SPEED)  # rows of the replay since then
    assert limit.evaluations_end == pytest.approx(limit.end - 3.0)

    limit.evaluation = 4.0
    clock[0] = limit.evaluations_end - 4.1
    assert not limit.reached(evaluates=True)
    clock[0] += 0.2
    assert limit.reached(evaluates=True)
    assert limit.allows_evaluation
    assert not limit.reached(evaluates=False)
    clock[0] = limit.evaluations_end - 1.0
    assert not limit.allows_evaluation


def test_an_evaluation_that_takes_a_large_part_of_the_time_is_left_out(clock: list[float]) -> None:
    limit = TimeLimit(30.0)
    limit.evaluation = 12.0
    clock[0] = limit.evaluations_end - 5.0

    assert not limit.reached(evaluates=True)
    assert not limit.allows_evaluation


def test_the_alarm_ends_a_block_that_hangs() -> None:
    before = signals.signal.getsignal(signals.signal.SIGALRM)

    def hang() -> None:
        with signals.alarm_at(time_limit.time.monotonic() + 0.05):
            while True:
                pass

    with pytest.raises(signals.TooLate):
        hang()
    with signals.alarm_at(time_limit.time.monotonic() + 1000):
        pass
    with signals.alarm_at(math.inf):
        pass
    assert signals.signal.getsignal(signals.signal.SIGALRM) == before
