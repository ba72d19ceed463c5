"""Noise belongs to (seed, stream, row, incarnation), whoever draws it and in whatever company."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rollout.noise import DRAWS, StreamNoise


def drawn(
    streams: list[int], rows: list[int], incarnations: list[int], kind: str = "normal", seed: int = 3, unroll: int = 4
) -> np.ndarray:
    out = np.zeros((unroll, 16, 3), np.float32)
    StreamNoise(seed, streams, kind, 3).fill(out, np.array(rows), incarnations)
    return out[:, : len(streams)]


@pytest.mark.parametrize("kind", DRAWS)
def test_it_does_not_matter_which_actor_draws(kind: str) -> None:
    together = drawn([2, 5, 9], [8, 0, 16], [0, 1, 0], kind)
    for b, (stream, row, incarnation) in enumerate([(2, 8, 0), (5, 0, 1), (9, 16, 0)]):
        np.testing.assert_array_equal(together[:, b], drawn([stream], [row], [incarnation], kind)[:, 0])


@pytest.mark.parametrize("kind", DRAWS)
def test_an_unroll_can_be_drawn_again(kind: str) -> None:
    noise = StreamNoise(0, [1], kind, 3)
    first, between, again = (np.zeros((4, 16, 3), np.float32) for _ in range(3))
    noise.fill(first, np.array([12]), [0])
    noise.fill(between, np.array([40]), [0])
    noise.fill(again, np.array([12]), [0])
    np.testing.assert_array_equal(first, again)


def test_seed_stream_row_and_incarnation_each_change_all_of_it() -> None:
    places = itertools.product([0, 1], [0, 1, 7], [0, 4, 128], [0, 1, 2])
    whole = np.stack([drawn([b], [row], [inc], seed=seed)[:, 0] for seed, b, row, inc in places])
    assert len(np.unique(whole)) == whole.size


def test_a_stream_has_its_noise_in_a_long_run_too() -> None:
    late = drawn([0], [2**40], [0])
    assert np.isfinite(late).all()
    assert not np.array_equal(late, drawn([0], [0], [0]))


@pytest.mark.parametrize(
    ("kind", "mean", "variance"),
    [("gumbel", 0.57722, np.pi**2 / 6), ("logistic", 0, np.pi**2 / 3), ("normal", 0, 1), ("uniform", 0.5, 1 / 12)],
)
def test_the_law_is_the_one_named(kind: str, mean: float, variance: float) -> None:
    numbers = drawn([0], [0], [0], kind, unroll=20_000)
    assert numbers.mean() == pytest.approx(mean, abs=0.03)
    assert numbers.var() == pytest.approx(variance, rel=0.05)


def test_unrolls_of_one_stream_are_independent() -> None:
    """Philox counters of neighbouring rows must not overlap, however many numbers an unroll takes."""
    noise = StreamNoise(0, [0], "normal", 64)
    out = np.zeros((3, 4, 16, 64), np.float32)
    for unroll, row in enumerate([0, 1, 4]):
        noise.fill(out[unroll], np.array([row]), [0])
    assert len(np.unique(out[:, :, 0])) == 3 * 4 * 64
