"""Confidence intervals of a mean: over episodes, and over the runs of several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000  # for the bootstrap
T_975 = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)  # 97.5% quantiles of t with 2, 3, ... degrees of freedom


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95% confidence interval of the mean of values [N], by the percentile bootstrap."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def interval_of_runs(values: Sequence[float]) -> tuple[float, float, str] | None:
    """95% confidence interval of the mean over runs, and its kind; None for fewer than three runs.

    The bootstrap is too narrow for few runs (with three it contains the mean in 74% of all cases, not in 95%), so below
    ten runs the interval is that of Student's t.
    """
    count = len(values)
    if count < 3 or not all(map(math.isfinite, values)):
        return None
    data = np.array(values, np.float64)
    if count >= len(T_975) + 3:
        return *bootstrap(data), "bootstrap"
    mean, half = float(data.mean()), T_975[count - 3] * float(data.std(ddof=1)) / math.sqrt(count)
    return mean - half, mean + half, "t"
