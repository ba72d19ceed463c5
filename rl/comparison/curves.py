"""Curves of a metric: the runs of a group on common points, from the first to the last that all of them have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rltrain.comparison.runs import Run
from rltrain.comparison.statistics import Array, band

POINTS = 500  # most common points of a curve
AXES = ("steps", "time")


@dataclass(frozen=True)
class Curve:
    """The curve of a group on a task.

    Attributes:
        x:      the points that all runs have: none is before the first or beyond the last value of any run.
        middle: IQM of the runs.
        low:    and high: their interval, at each point by itself; None if there are too few runs.
        runs:   (x, y) of each run, as it was logged.
        ended:  for each run, whether it ended before its last step.
    """

    x: Array
    middle: Array
    low: Array | None
    high: Array | None
    runs: Sequence[tuple[Array, Array]]
    ended: Sequence[bool]


def curve_of(runs: Sequence[Run], metric: str, axis: str, smooth: int, rng: np.random.Generator) -> Curve:
    """The curve of a group's runs, which all have the metric.

    Between two values of a run the curve is a straight line. Beyond its last value a run has none, so that the curve
    of the group ends with its shortest run.

    Args:
        axis:   of AXES.
        smooth: number of values in the running mean; 1: no smoothing.
    """
    lines = []
    for run in runs:
        steps, seconds, values = run.points[metric]
        x, keep = np.unique(steps if axis == "steps" else seconds, return_index=True)
        lines.append((x, smoothed(values, smooth)[keep]))
    x = common_points([x for x, _ in lines])
    y = np.stack([np.interp(x, *line) for line in lines])
    return Curve(x, *band(y, rng), lines, [bool(run.ended) for run in runs])


def common_points(axes: Sequence[Array]) -> Array:
    """The points on which runs are compared: their own if they have the same, else evenly spaced ones."""
    first = axes[0]
    if len(first) <= POINTS and all(np.array_equal(first, other) for other in axes[1:]):
        return first
    begin, end = max(x[0] for x in axes), min(x[-1] for x in axes)
    if begin >= end:  # the shortest run ended before another one's first value
        return np.array([end] if begin == end else [])
    return np.linspace(begin, end, min(POINTS, max(len(x) for x in axes)))


def smoothed(values: Array, count: int) -> Array:
    """The mean of each value and the `count` - 1 values before it, or of as many as there are."""
    if count <= 1:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - count, 0)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins))
