"""The statistics of runs' scores: equal to those of scipy or to a plain count, and intervals by the number of runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rltrain.comparison import statistics
from rltrain.comparison.statistics import Array, better, bootstrap, estimate, iqm, profile, t_quantile


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("count", range(1, 42))
def test_the_iqm_is_scipys_trimmed_mean(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = generator().normal(1e3, 300, (5, count))

    np.testing.assert_allclose(iqm(scores), stats.trim_mean(scores, 0.25, axis=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_the_median_is_numpys(count: int) -> None:
    scores = generator().normal(size=(5, count))

    assert statistics.median(scores).tolist() == np.median(scores, axis=1).tolist()


def test_the_quantile_is_that_of_students_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    for free in [*range(1, 40), 100, 999]:
        assert t_quantile(free) == pytest.approx(stats.t.ppf(0.975, free), rel=1e-7)


def test_quantiles_of_the_mean_are_those_of_t() -> None:
    for free, quantile in enumerate(statistics.QUANTILES["mean"], start=2):
        assert quantile == pytest.approx(t_quantile(free), abs=1e-3)


@pytest.mark.parametrize("name", ["IQM", "median"])
@pytest.mark.parametrize("count", [3, 6, 9])
def test_quantiles_of_the_others_hold_for_normal_scores(name: str, count: int) -> None:
    x = generator().normal(size=(200_000, count))
    ratio = np.abs(statistics.STATISTICS[name](x)) / (x.std(axis=1, ddof=1) / np.sqrt(count))

    assert np.mean(ratio < statistics.QUANTILES[name][count - 3]) == pytest.approx(0.95, abs=0.002)


def test_no_interval_below_three_runs() -> None:
    for scores in ([np.array([1.0, 2.0])], [np.arange(9.0), np.array([1.0, 2.0])]):
        found = estimate(scores, "IQM", generator())

        assert (found.low, found.high) == (None, None)
        assert "fewer than 3 runs" in found.method


@pytest.mark.parametrize("count", [3, 9])
def test_a_t_interval_below_ten_runs_of_one_task(count: int) -> None:
    scores = generator().normal(100, 10, count)
    found = estimate([scores], "mean", generator())

    stats = pytest.importorskip("scipy.stats")
    expected = stats.t.interval(0.95, count - 1, scores.mean(), scores.std(ddof=1) / np.sqrt(count))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-4)
    assert found.method == "t"


@pytest.mark.parametrize("shape", [(1, 10), (4, 3)])
def test_otherwise_the_interval_is_a_bootstraps(shape: tuple[int, int]) -> None:
    found = estimate(list(generator().normal(size=shape)), "IQM", generator())

    assert found.method == "bootstrap"
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_the_bootstrap_draws_runs_within_their_task() -> None:
    scores = [np.array([0.0, 1.0, 2.0]), np.array([100.0, 101.0, 102.0])]
    means = bootstrap(scores, statistics.mean, generator(), 2000)

    assert means.min() >= 50  # a task without any of its runs would shift the mean
    assert means.max() <= 52
    lows = bootstrap(scores, lambda x: x.min(axis=-1), generator(), 2000)
    assert set(lows) == {0.0, 1.0, 2.0}


def test_the_seed_decides_and_the_global_generator_does_not() -> None:
    scores = list(np.random.default_rng(5).normal(size=(4, 5)))
    first = estimate(scores, "IQM", np.random.default_rng(1))
    np.random.seed(9)

    assert estimate(scores, "IQM", np.random.default_rng(1)) == first
    assert estimate(scores, "IQM", np.random.default_rng(2)) != first


def test_the_probability_of_improvement_counts_pairs_and_half_of_ties() -> None:
    tasks = [(np.array([1.0, 2, 2, 5, 7]), np.array([2.0, 2, 3, 5])), (np.array([4.0, 4, 4]), np.array([1.0, 4, 9]))]

    def counted(one: Array, other: Array) -> float:
        return float(np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(one, other)]))

    found = better([one for one, _ in tasks], [other for _, other in tasks])

    assert found.value == pytest.approx(np.mean([counted(one, other) for one, other in tasks]), abs=1e-12)
    back = better([other for _, other in tasks], [one for one, _ in tasks])
    assert back.value == pytest.approx(1 - found.value)
    assert back.low == pytest.approx(1 - (found.high or 0))


def test_runs_that_are_all_better_do_not_prove_a_probability_of_one() -> None:
    found = better([np.arange(10.0) + 100], [np.arange(10.0)])

    assert found.value == found.high == pytest.approx(1.0)
    assert found.low is not None
    assert 0.5 < found.low < 0.95


def test_three_against_three_runs_have_no_interval() -> None:
    three = np.arange(3.0)

    assert better([three + 10], [three]).low is None
    assert better([np.arange(4.0) + 10], [np.arange(4.0)]).low is not None
    assert better([three + 10, three], [three, three]).low is not None


def test_a_profile_is_the_share_of_runs_above_each_score() -> None:
    scores = [np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0])]

    assert profile(scores, np.array([0.0, 1.0, 2.0, 4.0])).tolist() == [1.0, (0.75 + 1) / 2, 0.25, 0.0]
