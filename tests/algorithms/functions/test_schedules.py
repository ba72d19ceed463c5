"""Schedules meet both ends exactly."""

from __future__ import annotations

import pytest

from rltrain.algorithms.functions.optim import linear


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.3), (1.0, 0.1), (0.5, 0.2), (-1.0, 0.3), (2.0, 0.1)])
def test_linear(progress, expected):
    assert linear(0.3, 0.1, progress) == pytest.approx(expected, abs=1e-15)


def test_the_first_update_gets_the_whole_and_the_end_is_exact():
    assert linear(2.5e-4, 0.0, 0.0) == 2.5e-4
    assert linear(0.3, 0.1, 1.0) == 0.1


def test_without_an_end_it_stays():
    assert linear(0.3, None, 0.7) == 0.3
