"""Noise belongs to (seed, stream, row, incarnation), whoever draws it and in whatever company."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rltrain.envs.spec import ActionSpec
from rltrain.rollout.actor.noise import DRAWS, RandomStart, StreamNoise


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


def test_a_row_can_hold_the_number_of_its_stream() -> None:
    plain, numbered = np.zeros((4, 16, 2), np.float32), np.zeros((4, 16, 3), np.float32)
    StreamNoise(3, [2, 7], "normal", 2).fill(plain, np.array([4, 8]), [0, 1])
    StreamNoise(3, [2, 7], "normal", 2, True).fill(numbered, np.array([4, 8]), [0, 1])

    np.testing.assert_array_equal(numbered[..., :2], plain)
    assert (numbered[:, 0, 2] == 2).all()
    assert (numbered[:, 1, 2] == 7).all()


# --- random starts ---

DISCRETE = ActionSpec("discrete", (), nvec=(5,))
HEADS = ActionSpec("multi_discrete", (3,), nvec=(2, 3, 4))
BITS = ActionSpec("multi_binary", (2,), nvec=(2, 2))
BOX = ActionSpec("box", (2, 3), low=(0.5,) * 6, high=(3.0,) * 6)


def started(
    spec: ActionSpec, rows: int, unroll: int, at: int, streams: list[int], mask: np.ndarray | None = None
) -> tuple[bool, np.ndarray]:
    """Actions [T, B, *A] of an unroll that a policy filled with -7."""
    start = RandomStart(3, streams, spec, rows)
    action = np.full((unroll, 16, *spec.shape), -7, spec.dtype)
    begins = start.begin(unroll, np.full(len(streams), at), [0] * len(streams))
    for t in range(unroll if begins else 0):
        start.replace(t, action[t], mask)
    return begins, action[:, : len(streams)]


@pytest.mark.parametrize("spec", [DISCRETE, HEADS, BITS, BOX])
def test_the_first_rows_are_random_and_no_other(spec: ActionSpec) -> None:
    begins, action = started(spec, 6, 4, 4, [0, 1, 2])
    assert begins
    assert (action[:2] != -7).all()
    assert (action[2:] == -7).all()
    assert not started(spec, 6, 4, 6, [0])[0]
    assert not started(spec, 0, 4, 0, [0])[0]


@pytest.mark.parametrize("spec", [DISCRETE, HEADS, BOX])
def test_random_actions_belong_to_the_stream_too(spec: ActionSpec) -> None:
    _, together = started(spec, 100, 8, 16, [2, 5, 9])
    for b, stream in enumerate([2, 5, 9]):
        np.testing.assert_array_equal(together[:, b], started(spec, 100, 8, 16, [stream])[1][:, 0])


@pytest.mark.parametrize("spec", [DISCRETE, HEADS, BITS])
def test_every_choice_is_as_likely_as_any_other(spec: ActionSpec) -> None:
    _, action = started(spec, 20_000, 20_000, 0, [0])
    heads = action[:, 0].reshape(20_000, -1)
    for head, size in enumerate(spec.nvec):
        share = np.bincount(heads[:, head], minlength=size) / 20_000
        assert len(share) == size
        np.testing.assert_allclose(share, 1 / size, atol=0.02)


def test_a_box_is_filled_from_minus_one_to_one_whatever_its_bounds() -> None:
    _, action = started(BOX, 20_000, 20_000, 0, [0])
    assert action.dtype == np.float32
    assert action.min() >= -1
    assert action.max() <= 1
    np.testing.assert_allclose(action.mean((0, 1)), 0, atol=0.02)
    np.testing.assert_allclose(action.var((0, 1)), 1 / 3, atol=0.02)


def test_only_what_is_legal_is_done_and_all_of_it() -> None:
    mask = np.zeros((16, 9), bool)
    mask[0, [1, 2, 4, 5, 6, 7, 8]] = True  # heads of 2, 3, 4: of the first only 1, of the second 0 and 2
    _, action = started(HEADS, 9000, 9000, 0, [0], mask)
    heads = action[:, 0]
    assert (heads[:, 0] == 1).all()
    np.testing.assert_allclose(np.bincount(heads[:, 1], minlength=3) / 9000, [0.5, 0, 0.5], atol=0.03)
    np.testing.assert_allclose(np.bincount(heads[:, 2], minlength=4) / 9000, 0.25, atol=0.03)


def test_random_actions_are_not_the_noise_of_the_policy() -> None:
    _, action = started(BOX, 10, 4, 0, [0])
    noise = np.zeros((4, 1, 6), np.float32)
    StreamNoise(3, [0], "uniform", 6).fill(noise, np.zeros(1, np.int64), [0])
    assert not np.isclose(action[:, 0].reshape(4, 6), 2 * noise[:, 0] - 1).any()


@pytest.mark.parametrize("hold", [2, 3, 5, 64])
def test_held_noise_changes_at_the_same_rows_whatever_the_unrolls_are(hold: int) -> None:
    """A whole stretch of 23 rows from row 7 on, and the same in pieces: also of one row."""
    noise = StreamNoise(3, [4, 2], "normal", 3, hold=hold)
    whole = np.zeros((23, 16, 3), np.float32)
    noise.fill(whole, np.array([7, 0]), [0, 1])
    for length in (1, 4, 10):
        for begin in range(0, 23, length):
            piece = np.zeros((min(length, 23 - begin), 16, 3), np.float32)
            noise.fill(piece, np.array([7 + begin, begin]), [0, 1])
            np.testing.assert_array_equal(piece, whole[begin : begin + length])
    changes = [t for t in range(1, 23) if (whole[t, 0] != whole[t - 1, 0]).any()]
    assert changes == [t for t in range(1, 23) if (7 + t) % hold == 0]
    assert len(np.unique(whole[:, :2].reshape(-1, 3), axis=0)) == len({(7 + t) // hold for t in range(23)}) + len(
        {t // hold for t in range(23)}
    )
