"""The value of a policy from episodes of another one: importance sampling, doubly robust, intervals, effective size.

pi is the policy that is evaluated, mu the one that acted. With N episodes of at most T steps

    ratio[i, t] = product over k <= t of pi(a_k | o_k) / mu(a_k | o_k) in episode i; after its end the last one
    return[i]   = sum_t gamma^t r[i, t]; r is 0 after the end

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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000  # of the bootstrap
CHUNK = 1_000_000  # numbers of an array that is made at a time
PADDING = 4  # [N, T] arrays are kept if they have at most so many times the numbers of the data

Block = tuple[np.ndarray, np.ndarray | None]  # numerators [N, k] and denominators [N, k]; None: ones


@dataclass(frozen=True)
class Logged:
    """Episodes as the estimators need them: the R steps of N episodes, one episode after the other."""

    log_weight: np.ndarray  # [R] float64, log of `ratio` in the equations; -inf where pi never takes an action
    reward: np.ndarray  # [R] float64
    start: np.ndarray  # [N] the first step of each episode
    length: np.ndarray  # [N]

    @classmethod
    def of(cls, log_ratios: Sequence[np.ndarray], rewards: Sequence[np.ndarray]) -> Logged:
        """From arrays [L] of each episode: log pi(a_t | o_t) - log mu(a_t | o_t), and rewards."""
        length = np.array([len(one) for one in rewards])
        weights = np.concatenate([np.cumsum(one, dtype=np.float64) for one in log_ratios])
        return cls(weights, np.concatenate(rewards).astype(np.float64), np.cumsum(length) - length, length)

    def powers(self, gamma: float) -> np.ndarray:
        """[R] gamma^t"""
        powers: np.ndarray = gamma ** (np.arange(len(self.reward)) - np.repeat(self.start, self.length))
        return powers

    def sums(self, x: np.ndarray) -> np.ndarray:
        """[N, 1] sums over the steps of each episode, of x [R]."""
        return np.add.reduceat(x, self.start)[:, None]

    @property
    def last(self) -> np.ndarray:
        """[N, 1] log weight of whole episodes."""
        return self.log_weight[self.start + self.length - 1, None]

    def columns(self) -> Iterator[np.ndarray]:
        """Numbers t [k] of steps, until the end of the longest episode, so that [N, k] has about CHUNK numbers."""
        width = max(1, CHUNK // len(self.length))
        for begin in range(0, int(self.length.max()), width):
            yield np.arange(begin, min(begin + width, int(self.length.max())))

    def rows(self, t: np.ndarray) -> np.ndarray:
        """[N, k] the steps t of all episodes; after the end of an episode its last one."""
        rows: np.ndarray = self.start[:, None] + np.minimum(t, self.length[:, None] - 1)
        return rows


@dataclass(frozen=True)
class Terms:
    """An estimate as sums over episodes: sum_k sum_i numerator[i, k] / sum_i denominator[i, k].

    The columns k are made block by block, so that long episodes need no memory for the shorter ones.
    """

    episodes: int  # N
    blocks: Callable[[], Iterator[Block]]

    @classmethod
    def of(cls, numerator: np.ndarray, denominator: np.ndarray | None = None) -> Terms:
        """Of a single block."""
        return cls(len(numerator), lambda: iter([(numerator, denominator)]))

    def value(self, counts: np.ndarray | None = None) -> np.ndarray:
        """[...] the estimate if episode i is there `counts[..., i]` times; None: each of them once."""
        counts = np.ones(self.episodes) if counts is None else counts
        value: np.ndarray = np.zeros(counts.shape[:-1])
        rows = counts.reshape(-1, self.episodes)
        for numerator, denominator in self.blocks():
            size = max(1, CHUNK // numerator.shape[1])
            parts = [_quotients(rows[at : at + size], numerator, denominator) for at in range(0, len(rows), size)]
            value = value + np.concatenate(parts).reshape(value.shape)
        return value

    def interval(self, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
        """95% confidence interval by the percentile bootstrap over episodes."""
        rng, total = np.random.default_rng(seed), self.episodes
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
    return Terms.of(_times(_exp(data.last), data.sums(data.powers(gamma) * data.reward)))


def per_decision(data: Logged, gamma: float) -> Terms:
    """Each reward has the ratio of the actions up to it."""
    return Terms.of(data.sums(_times(_exp(data.log_weight), data.powers(gamma) * data.reward)))


def weighted(data: Logged, gamma: float) -> Terms:
    """Of whole episodes; ratios are divided by their sum."""
    weight = _scaled(data.last)
    return Terms.of(weight * data.sums(data.powers(gamma) * data.reward), weight)


def weighted_per_decision(data: Logged, gamma: float) -> Terms:
    """At each step the ratios are divided by their sum over all episodes, also those that have ended."""
    discounted = data.powers(gamma) * data.reward

    def blocks() -> Iterator[Block]:
        for t in data.columns():
            rows = data.rows(t)
            weight = _scaled(data.log_weight[rows])
            yield np.where(t < data.length[:, None], weight * discounted[rows], 0.0), weight

    count = len(data.length)
    if count * int(data.length.max()) > PADDING * len(data.reward):
        return Terms(count, blocks)  # they are made again for each use
    kept = list(blocks())
    return Terms(count, lambda: iter(kept))


def doubly_robust(data: Logged, gamma: float, q: np.ndarray, v: np.ndarray) -> Terms:
    """Per decision, with an estimate of the values as a control variate.

    Args:
        q: [R] of the actions that were taken, learnt from other episodes.
        v: [R] of the states, the mean of q over the actions of pi.
    """
    ratio = _exp(data.log_weight)
    before = np.concatenate([[1.0], ratio[:-1]])
    before[data.start] = 1.0
    return Terms.of(data.sums(data.powers(gamma) * (_times(before, v) + _times(ratio, data.reward - q))))


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
    """(sum_i w_i)^2 / sum_i w_i^2, the number of equally weighted episodes with the same variance (Kish 1965).

    w is the ratio of whole episodes. An estimator per decision uses the ratios of each step: the least of their sizes.
    """
    if method in WHOLE:
        return _least_size(data.last)
    return min(_least_size(data.log_weight[data.rows(t)]) for t in data.columns())


def _least_size(log_weight: np.ndarray) -> float:
    weight = _scaled(log_weight)
    with np.errstate(invalid="ignore"):
        sizes = np.nan_to_num(weight.sum(0) ** 2 / (weight**2).sum(0))
    return float(sizes.min())


def _quotients(counts: np.ndarray, numerator: np.ndarray, denominator: np.ndarray | None) -> np.ndarray:
    """[...] sum_k of the quotients of the columns, for episodes that are there so many times."""
    below = counts.sum(-1, keepdims=True) if denominator is None else counts @ denominator
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        value: np.ndarray = ((counts @ numerator) / below).sum(-1)
    return value


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
