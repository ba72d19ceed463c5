"""Statistics of the scores of runs: means, intervals that hold for few runs, comparisons of two groups. NumPy only.

The scores of a group are a list of arrays: one array per task, with one score per run. A statistic is of all of them
together, so every task has the weight of its runs.

Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", 2021: the IQM, the stratified
bootstrap, the probability of improvement, performance profiles.
Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2", 2006: the
interval of the probability of improvement (his method 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scores = Sequence[Array]  # one array per task
Statistic = Callable[[Array], Array]  # of the last axis

LEVEL = 0.95  # of all intervals
RESAMPLES = 50_000
FEWEST = 3  # runs of a task; with fewer there is no interval
FEWEST_WINS = 4  # for one task and two groups: 3 equal runs are all above 3 others in one of 10 cases by chance
ENOUGH = 10  # runs of a single task, from which on the bootstrap is used
CHUNK = 2**16  # numbers of resamples that are computed together: they fit into the processor's cache

# The 95% quantiles of |statistic - true value| / (s / sqrt(n)) for n = 3 to 9 normal scores with the standard deviation
# s. Those of the mean are Student's t with n - 1 degrees of freedom; the others are simulated
# (`benchmarks/comparison.py tables`).
QUANTILES = {
    "mean": (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306),
    "IQM": (4.303, 3.277, 2.856, 2.637, 2.508, 2.496, 2.424),
    "median": (4.412, 3.277, 3.026, 2.756, 2.767, 2.611, 2.667),
}


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float | None = None  # None: no interval
    high: float | None = None
    method: str = ""  # of the interval, or why there is none


def mean(x: Array) -> Array:
    return np.asarray(x.mean(axis=-1))


def iqm(x: Array) -> Array:
    """Interquartile mean: the mean without the lowest and the highest n // 4 of n scores."""
    n = x.shape[-1]
    cut = n // 4
    if cut == 0:
        return mean(x)
    return np.asarray(np.sort(x, axis=-1)[..., cut : n - cut].mean(axis=-1))  # quicker than np.partition


def median(x: Array) -> Array:
    n = x.shape[-1]
    return np.asarray(np.sort(x, axis=-1)[..., (n - 1) // 2 : n // 2 + 1].mean(axis=-1))


STATISTICS: dict[str, Statistic] = {"IQM": iqm, "mean": mean, "median": median}


def estimate(scores: Scores, name: str, rng: np.random.Generator, resamples: int = RESAMPLES) -> Estimate:
    """A statistic of all scores, with its interval.

    With fewer than three runs on a task there is no interval. Fewer than ten runs on a single task have a t interval,
    as percentiles of a bootstrap are too narrow there. Otherwise the interval has the percentiles of the stratified
    bootstrap, widened as `_widening` says. The median of several tasks has none below ten runs on each: with tasks of
    different levels no bootstrap of few runs covers it.

    Args:
        name: of the statistic, a key of STATISTICS.
    """
    statistic, counts = STATISTICS[name], [len(task) for task in scores]
    value = float(statistic(np.concatenate(scores)))
    if min(counts) < FEWEST:
        return Estimate(value, method=f"none: fewer than {FEWEST} runs")
    if len(scores) == 1 and counts[0] < ENOUGH:
        half = QUANTILES[name][counts[0] - FEWEST] * float(scores[0].std(ddof=1)) / math.sqrt(counts[0])
        return Estimate(value, value - half, value + half, "t")
    if name == "median" and min(counts) < ENOUGH:
        return Estimate(value, method=f"none: the median of fewer than {ENOUGH} runs on each task")
    values = bootstrap(scores, statistic, rng, resamples)
    low, high = map(float, np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)))
    factor = _widening(counts, name)
    return Estimate(value, value - factor * (value - low), value + factor * (high - value), "bootstrap")


def band(y: Array, rng: np.random.Generator, resamples: int = 1000) -> tuple[Array, Array | None, Array | None]:
    """The IQM over runs [runs, points], and its interval at each point by itself; None with too few runs."""
    n = len(y)
    middle = iqm(y.T)
    if n < FEWEST:
        return middle, None, None
    if n < ENOUGH:
        half = QUANTILES["IQM"][n - FEWEST] * y.std(axis=0, ddof=1) / math.sqrt(n)
        return middle, middle - half, middle + half
    drawn = rng.integers(0, n, (resamples, n))
    ends = [np.quantile(iqm(x[drawn]), ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) for x in y.T]
    low, high = np.array(ends).reshape(-1, 2).T
    factor = _widening([n], "IQM")
    return middle, middle - factor * (middle - low), middle + factor * (high - middle)


def bootstrap(scores: Scores, statistic: Statistic, rng: np.random.Generator, resamples: int) -> Array:
    """The statistic of resampled scores: runs are drawn with replacement within each task."""
    total = sum(len(task) for task in scores)
    rows = max(1, CHUNK // total)
    drawn, values = np.empty((rows, total)), np.empty(resamples)
    for begin in range(0, resamples, rows):
        count, column = min(rows, resamples - begin), 0
        for task in scores:
            chosen = rng.integers(0, len(task), (count, len(task)), dtype=np.uint32)
            drawn[:count, column : column + len(task)] = task.take(chosen)
            column += len(task)
        values[begin : begin + count] = statistic(drawn[:count])
    return values


def _widening(counts: Sequence[int], name: str) -> float:
    """The factor of the distances between a value and the ends of its bootstrap interval.

    The spread is an estimate, so the quantile of t takes the place of the normal one, with the degrees of freedom of
    all tasks. The variance of a mean of resamples of n runs is (n - 1) / n of the unbiased one; that of the IQM or
    median of one task is not too small.
    """
    total, free = sum(counts), sum(counts) - len(counts)
    bias = 1.0 if len(counts) == 1 and name != "mean" else math.sqrt(total / free)
    return bias * t_quantile(free) / NormalDist().inv_cdf((1 + LEVEL) / 2)


def t_quantile(free: int) -> float:
    """The value that |t| exceeds with a probability of 5%, where t has `free` degrees of freedom."""
    low, high = 0.0, 20.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, free) < LEVEL else (low, middle)
    return low


def _t_inside(t: float, free: int) -> float:
    """P(|t| < `t`) by the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(free))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = free % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, free, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def better(scores: Scores, others: Scores) -> Estimate:
    """The probability that a run of the first group has a higher score than one of the second; ties count 1/2.

    It is the mean over the tasks; both groups have the same tasks.
    """
    pairs = list(zip(scores, others, strict=True))
    value = float(np.mean([_win_rate(one, other) for one, other in pairs]))
    least = FEWEST_WINS if len(pairs) == 1 else FEWEST
    if min(len(task) for pair in pairs for task in pair) < least:
        return Estimate(value, method=f"none: fewer than {least} runs")
    sizes = [(len(one), len(other)) for one, other in pairs]
    return Estimate(value, _end(value, sizes, 0.0), _end(value, sizes, 1.0), "Newcombe")


def _win_rate(one: Array, other: Array) -> float:
    ordered = np.sort(other)
    below, until = np.searchsorted(ordered, one, "left"), np.searchsorted(ordered, one, "right")
    return float((below + until).mean() / 2 / len(other))


def _end(value: float, sizes: Sequence[tuple[int, int]], end: float) -> float:
    """The probability farthest from `value` towards `end` whose own standard error explains the difference."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)

    def explains(p: float) -> bool:
        variance = 0.0
        for m, n in sizes:
            more = (m + n) / 2 - 1
            variance += p * (1 - p) * (1 + more * (1 - p) / (2 - p) + more * p / (1 + p)) / (m * n)
        return abs(value - p) <= z * math.sqrt(variance) / len(sizes)

    inside, outside = value, end
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if explains(middle) else (inside, middle)
    return inside


def profile(scores: Scores, thresholds: Array) -> Array:
    """For each threshold the share of runs with a higher score, as the mean over the tasks."""
    shares = [1 - np.searchsorted(np.sort(task), thresholds, "right") / len(task) for task in scores]
    return np.asarray(np.mean(shares, axis=0))
