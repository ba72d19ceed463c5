"""When a recurring event is due."""

from __future__ import annotations

import pytest

from rltrain.system.schedule import Schedule


@pytest.mark.parametrize(
    ("done", "steps", "due"), [(0, 9, False), (0, 10, True), (9, 9, False), (9, 10, True), (10, 19, False)]
)
def test_an_event_is_due_at_the_first_step_at_or_after_a_multiple(done: int, steps: int, due: bool) -> None:
    schedule = Schedule(10)
    schedule.done(done)

    assert schedule.due(steps) is due


def test_the_first_event_is_due_after_one_interval_or_where_asked_and_without_an_interval_never() -> None:
    assert (Schedule(10).due(9), Schedule(10).due(10)) == (False, True)
    assert Schedule(10, first=0).due(0)
    never = Schedule(0)
    never.done(7)
    assert not never.due(10**9)
