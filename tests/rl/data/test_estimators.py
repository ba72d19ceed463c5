"""Off-policy estimators: the papers' sums, known values of a chain, intervals, effective sizes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from oracles import chain

from rltrain.data.off_policy import estimators
from rltrain.data.off_policy.estimators import (
    IMPORTANCE,
    Logged,
    Terms,
    doubly_robust,
    effective_size,
    importance_sampling,
    weighted,
    weighted_per_decision,
)

ALL = (*IMPORTANCE, "dr")
GAMMA, SETS, EPISODES = 0.9, 200, 150


def random_episodes() -> tuple[list[np.ndarray], ...]:
    """Ratios, rewards, q and v of 7 episodes of different lengths."""
    rng, lengths = np.random.default_rng(0), [1, 4, 2, 6, 6, 3, 1]
    return tuple([rng.uniform(low, high, n) for n in lengths] for low, high in ((0.3, 2), (-1, 2), (-1, 1), (-1, 1)))


@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize("method", ALL)
def test_estimates_are_the_sums_of_the_papers(method: str, gamma: float) -> None:
    ratios, rewards, q, v = random_episodes()
    data = Logged.of([np.log(x) for x in ratios], rewards)
    terms = (
        doubly_robust(data, gamma, np.concatenate(q), np.concatenate(v))
        if method == "dr"
        else IMPORTANCE[method](data, gamma)
    )
    lists = [[list(map(float, x)) for x in given] for given in (ratios, rewards, q, v)]
    expected = chain.by_loops(method, lists[0], lists[1], gamma, lists[2], lists[3])

    assert float(terms.value()) == pytest.approx(expected, rel=1e-12)


def rows(array: np.ndarray, there: np.ndarray) -> list[np.ndarray]:
    """The part of each row that is there."""
    return [row[: int(length)] for row, length in zip(array, there.sum(1), strict=True)]


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Terms]]:
    """The terms of each estimator for many sets of episodes of the chain; q of `dr` is learnt from the other half."""
    made: dict[str, list[Terms]] = {method: [] for method in ALL}
    for seed in range(SETS):
        states, actions, reward, alive = chain.sample(chain.MU, EPISODES, seed)
        s, there = states[:, :-1], alive[:, :-1]
        log_ratio = np.where(there, np.log(chain.PI[s, actions] / chain.MU[s, actions]), 0.0)
        data = Logged.of(rows(log_ratio, there), rows(reward, there))
        q = np.zeros_like(reward)
        v = np.zeros_like(reward)
        for half in (0, 1):
            own = np.arange(EPISODES) % 2 == half
            table = chain.fitted(states[~own], actions[~own], alive[~own], chain.PI, GAMMA)
            q[own], v[own] = table[s[own], actions[own]], (chain.PI * table).sum(1)[s[own]]
        for method, estimator in IMPORTANCE.items():
            made[method].append(estimator(data, GAMMA))
        made["dr"].append(doubly_robust(data, GAMMA, q[there], v[there]))
    return made


@pytest.mark.parametrize("method", ALL)
def test_the_mean_of_many_estimates_is_the_known_value(method: str, sets: dict[str, list[Terms]]) -> None:
    values = np.array([float(terms.value()) for terms in sets[method]])
    error = values.std(ddof=1) / np.sqrt(SETS)

    assert abs(values.mean() - chain.value(chain.PI, GAMMA)) < 3 * error
    assert abs(values.mean() - chain.value(chain.MU, GAMMA)) > 10 * error  # the other policy's is another


@pytest.mark.parametrize("method", ALL)
def test_intervals_contain_the_known_value(method: str, sets: dict[str, list[Terms]]) -> None:
    truth = chain.value(chain.PI, GAMMA)
    intervals = [terms.interval(seed, resamples=250) for seed, terms in enumerate(sets[method])]

    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.9
    assert not all(low <= chain.value(chain.MU, GAMMA) <= high for low, high in intervals)


def test_doubly_robust_varies_least(sets: dict[str, list[Terms]]) -> None:
    variance = {method: np.var([float(terms.value()) for terms in sets[method]]) for method in ALL}

    assert variance["dr"] <= variance["is"]
    assert variance["dr"] <= min(variance.values())
    assert variance["pdis"] <= variance["is"]


def test_an_interval_depends_on_the_seed_alone(sets: dict[str, list[Terms]]) -> None:
    terms = sets["wis"][0]
    assert terms.interval(1) == terms.interval(1) != terms.interval(2)


def test_the_effective_size_is_that_of_equal_weights() -> None:
    rewards = [np.ones(3)] * 12
    equal = Logged.of([np.full(3, 0.2)] * 12, rewards)
    one = Logged.of([np.full(3, 900.0)] + [np.zeros(3)] * 11, rewards)  # e^2700 is no number
    never = Logged.of([np.full(3, -np.inf)] * 12, rewards)
    some = Logged.of([np.array([0.0, 0.0, -np.inf if i < 7 else 0.0]) for i in range(12)], rewards)

    for method in ALL:
        assert effective_size(equal, method) == pytest.approx(12)
        assert effective_size(one, method) == pytest.approx(1)
        assert effective_size(never, method) == 0
        assert effective_size(some, method) == pytest.approx(5)


def test_episodes_that_are_over_stay_in_the_weights_of_later_steps() -> None:
    """pi never continues after the first step; mu does in one of two episodes."""
    data = Logged.of([np.log([2.0]), np.array([0.0, -np.inf])], [np.ones(1), np.ones(2)])

    assert float(weighted_per_decision(data, 1.0).value()) == pytest.approx(1.0)
    assert float(weighted(data, 1.0).value()) == pytest.approx(1.0)


def test_huge_ratios_overflow_only_where_they_are_not_divided() -> None:
    data = Logged.of([np.full(4, 300.0)] * 20, [np.ones(4)] * 20)

    assert float(weighted(data, 1.0).value()) == pytest.approx(4.0)
    assert float(weighted_per_decision(data, 1.0).value()) == pytest.approx(4.0)
    assert np.isinf(importance_sampling(data, 1.0).value())


@pytest.mark.parametrize("method", IMPORTANCE)
def test_a_long_episode_needs_no_memory_for_short_ones(method: str) -> None:
    """800 KiB of data. An array of all episodes and all steps has 80 MB, and estimators need several of them."""
    rng, lengths = np.random.default_rng(0), [10] * 1000 + [10_000]
    rewards, log_ratios = ([rng.normal(0, 0.01, n) for n in lengths] for _ in range(2))
    tracemalloc.start()
    data = Logged.of(log_ratios, rewards)
    low, high = IMPORTANCE[method](data, 0.99).interval(0, resamples=20)
    effective_size(data, method)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert low < high
    assert peak < 60e6


def test_columns_in_blocks_are_the_same_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios, rewards, _, _ = random_episodes()
    data = Logged.of([np.log(x) for x in ratios], rewards)
    whole, size = weighted_per_decision(data, 0.7), effective_size(data, "pdwis")
    expected = whole.value(), whole.interval(3, resamples=50)
    monkeypatch.setattr(estimators, "CHUNK", 14)  # two columns of seven episodes, or two resamples
    monkeypatch.setattr(estimators, "PADDING", 0)
    parts = weighted_per_decision(data, 0.7)

    assert len(list(parts.blocks())) == 3
    assert parts.value() == pytest.approx(expected[0], rel=1e-12)
    assert parts.interval(3, resamples=50) == pytest.approx(expected[1], rel=1e-12)
    assert effective_size(data, "pdwis") == pytest.approx(size, rel=1e-12)
