"""Curves lie on points that all runs have, and end with the shortest run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rltrain.comparison.curves import common_points, curve_of, smoothed
from rltrain.comparison.runs import read

METRIC = "eval/return_mean"
Make = Callable[..., Path]


def test_equal_points_stay_as_they_are() -> None:
    points = np.array([0.0, 5.0, 20.0])

    assert common_points([points, points.copy()]) is points


def test_points_lie_between_the_latest_start_and_the_earliest_end() -> None:
    x = common_points([np.array([0.0, 10.0, 20.0]), np.array([5.0, 12.0])])

    assert (x[0], x[-1], len(x)) == (5.0, 12.0, 3)
    assert len(common_points([np.array([0.0, 1.0]), np.array([2.0, 3.0])])) == 0


def test_a_curve_is_the_iqm_of_the_runs_and_ends_with_the_shortest(make_run: Make) -> None:
    runs = [read(make_run(f"a-{seed}", [0.0, 10.0 * seed], seed=seed, last=1000 - 200 * seed)) for seed in range(3)]
    curve = curve_of(runs, METRIC, "steps", 1, np.random.default_rng(0))

    assert curve.x[-1] == 600
    assert curve.low is not None
    at_600 = [0.0, 10 * (600 - 400) / 400, 20.0]  # between the values of a run the curve is a straight line
    np.testing.assert_allclose(curve.middle[-1], np.mean(at_600))
    assert curve.ended == [False, True, True]


def test_time_is_an_axis_too(make_run: Make) -> None:
    run = read(make_run("a", [1.0, 2.0, 3.0]))

    assert curve_of([run], METRIC, "time", 1, np.random.default_rng(0)).x.tolist() == [2.0, 4.0, 6.0]


def test_nothing_is_smoothed_unless_it_is_requested() -> None:
    values = np.array([0.0, 4.0, 2.0, 6.0])

    assert smoothed(values, 1) is values
    assert smoothed(values, 3).tolist() == [0.0, 2.0, 2.0, 4.0]
