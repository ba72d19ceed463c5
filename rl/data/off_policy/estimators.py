"""The value of a policy from episodes of another one: importance sampling and its kin, intervals, effective size.

pi is the policy that is evaluated, mu the one that acted. With N episodes of at most T steps

    ratio[i, t] = product over k <= t of pi(a_k | o_k) / mu(a_k | o_k) in episode i; from its end on the last one
    return[i]   = sum_t gamma^t r[i, t]; r is 0 from the end on

    is      mean_i ratio[i, T] return[i]                                     Precup, Sutton and Singh 2000
    pdis    mean_i sum_t gamma^t ratio[i, t] r[i, t]                         the same; per decision
    wis     sum_i ratio[i, T] return[i] / sum_i ratio[i, T]                  biased, consistent; far less variance
    pdwis   sum_t gamma^t sum_i ratio[i, t] r[i, t] / sum_i ratio[i, t]      Thomas 2015, equation 3.15 (CWPDIS)
    dr      mean_i sum_t gamma^t (ratio[i, t-1] v[i, t] + ratio[i, t] (r[i, t] - q[i, t]))     Jiang and Li 2016

In `dr` q is an estimate of the action's value and v that of the state's, sum_a pi(a) q(a). The terms with q and v have
mean 0 whatever q is, if q is independent of the episode: it must be learnt from other episodes.

All of them estimate the return up to the end of an episode, a time limit included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000  # of the bootstrap
CHUNK = 10_000_000  # numbers that are resampled at a time


@dataclass(frozen=True)
class Logged:
    """Episodes as the estimators need them. Rows behind the end of an episode are 0."""

    log_ratio: np.ndarray  # [N, T] float64, log pi(a_t | o_t) - log mu(a_t | o_t); -inf where pi never takes the action
    reward: np.ndarray  # [N, T] float64

    @classmethod
    def of(cls, log_ratios: Sequence[np.ndarray], rewards: Sequence[np.ndarray]) -> Logged:
        """From arrays [L] of each episode."""
        return cls(padded(log_ratios), padded(rewards))

    @property
    def log_weight(self) -> np.ndarray:
        """[N, T] log of `ratio` in the equations."""
        return np.cumsum(self.log_ratio, 1)

    def discounted(self, gamma: float) -> np.ndarray:
        """[N, T] gamma^t r[i, t]"""
        rewards: np.ndarray = self.reward * gamma ** np.arange(self.reward.shape[1])
        return rewards


@dataclass(frozen=True)
class Terms:
    """An estimate as sums over episodes: sum_k sum_i numerator[i, k] / sum_i denominator[i, k]."""

    numerator: np.ndarray  # [N, K]
    denominator: np.ndarray | None = None  # [N, K]; None: ones

    def value(self, counts: np.ndarray | None = None) -> np.ndarray:
        """[...] the estimate if episode i is there `counts[..., i]` times; None: each of them once."""
        counts = np.ones(len(self.numerator)) if counts is None else counts
        below = counts.sum(-1, keepdims=True) if self.denominator is None else counts @ self.denominator
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            value: np.ndarray = ((counts @ self.numerator) / below).sum(-1)
        return value

    def interval(self, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
        """95% confidence interval by the percentile bootstrap over episodes."""
        rng, total = np.random.default_rng(seed), len(self.numerator)
        values, rows = [], max(1, CHUNK // total)
        for begin in range(0, resamples, rows):
            size = min(rows, resamples - begin)
            drawn = rng.integers(0, total, (size, total)) + total * np.arange(size)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * total).reshape(size, total)
            values.append(self.value(counts.astype(np.float64)))
        low, high = np.nanquantile(np.concatenate(values), (0.025, 0.975))
        return float(low), float(high)


def importance_sampling(data: Logged, gamma: float) -> Terms:
    """Of whole episodes."""
    returns = data.discounted(gamma).sum(1, keepdims=True)
    return Terms(_times(_exp(data.log_weight[:, -1:]), returns))


def per_decision(data: Logged, gamma: float) -> Terms:
    """Each reward has the ratio of the actions up to it."""
    return Terms(_times(_exp(data.log_weight), data.discounted(gamma)).sum(1, keepdims=True))


def weighted(data: Logged, gamma: float) -> Terms:
    """Of whole episodes; ratios are divided by their sum."""
    weight = _scaled(data.log_weight[:, -1:])
    return Terms(weight * data.discounted(gamma).sum(1, keepdims=True), weight)


def weighted_per_decision(data: Logged, gamma: float) -> Terms:
    """At each step the ratios are divided by their sum over all episodes, also those that are over."""
    weight = _scaled(data.log_weight)
    return Terms(weight * data.discounted(gamma), weight)


def doubly_robust(data: Logged, gamma: float, q: np.ndarray, v: np.ndarray) -> Terms:
    """Per decision, with an estimate of the values as a control variate.

    Args:
        q: [N, T] of the actions that were taken, learnt from other episodes; 0 behind the end.
        v: [N, T] of the states, the mean of q over the actions of pi; 0 behind the end.
    """
    ratio = _exp(data.log_weight)
    before = np.concatenate([np.ones((len(ratio), 1)), ratio[:, :-1]], 1)
    powers = gamma ** np.arange(q.shape[1])
    return Terms((powers * (_times(before, v) + _times(ratio, data.reward - q))).sum(1, keepdims=True))


IMPORTANCE: dict[str, Callable[[Logged, float], Terms]] = {
    "is": importance_sampling,
    "pdis": per_decision,
    "wis": weighted,
    "pdwis": weighted_per_decision,
}
METHODS = ("fqe", "dr", *IMPORTANCE)  # all that `rlope` has
UPDATES = 10_000  # of the networks of fqe, and of each half of dr
WHOLE = ("is", "wis")  # estimators that use the ratio of whole episodes alone


def effective_size(data: Logged, method: str) -> float:
    """(sum_i w_i)^2 / sum_i w_i^2, the number of equally weighted episodes that say as much (Kish 1965).

    w is the ratio of whole episodes. An estimator per decision uses the ratios of each step: the least of their sizes.
    """
    log_weight = data.log_weight[:, -1:] if method in WHOLE else data.log_weight
    weight = _scaled(log_weight)
    with np.errstate(invalid="ignore"):
        sizes = np.nan_to_num(weight.sum(0) ** 2 / (weight**2).sum(0))
    return float(sizes.min())


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[N, T] float64 from arrays [L], with 0 behind their ends."""
    out = np.zeros((len(rows), max(map(len, rows))))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _exp(log_weight: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        weight: np.ndarray = np.exp(log_weight)
    return weight


def _scaled(log_weight: np.ndarray) -> np.ndarray:
    """[N, K] ratios divided by the largest of their column, which leaves a quotient of sums as it is."""
    most = log_weight.max(0)
    scaled: np.ndarray = np.exp(log_weight - np.where(np.isfinite(most), most, 0.0))
    return scaled


def _times(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The product; 0 where x is 0, although the weight may be infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(x == 0, 0.0, weight * x)
