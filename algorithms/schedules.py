"""Schedules: pure functions of progress, the share of the run that is done, in [0, 1]."""

from __future__ import annotations


def linear(start: float, end: float | None, progress: float) -> float:
    """`start` at progress 0, `end` at progress 1, a straight line between, flat outside. No end: `start` always."""
    if end is None:
        return start
    share = min(max(progress, 0.0), 1.0)
    return start * (1.0 - share) + end * share  # in this form both ends are met exactly
