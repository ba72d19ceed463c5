"""What a delivery of unrolls becomes before it is learnt from: joined, stretched, cut, kept for a while."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles.acting import Bench

from rltrain.learner.batches import join
from rltrain.learner.feed import StreamFeed, in_batches
from rltrain.learner.learner import Learner
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.trajectories import cut_rows, rounds, stretch
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Trajectory

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"streams": 6, "unroll": 8, "widths": (16,)}
ALGOS: dict[str, dict[str, Any]] = {
    "a2c": {"normalize_advantage": True},
    "ppo": {"epochs": 1, "minibatches": 1},
    "impala": {"sequence": 8},
    "appo": {"sequence": 8},
}
ENVS: dict[str, tuple[str, dict[str, Any]]] = {
    "discrete": ("CartPole-v1", {}),
    "box": ("Pendulum-v1", {}),
    "masked": ("probe:masked", {}),
    "memory": ("probe:memory", {"memory": "gru", "memory_size": 8, "sequence": 4}),
}


def acted(
    algo: str = "a2c", env: str = "CartPole-v1", unrolls: int = 1, **given: Any
) -> tuple[Bench, list[Trajectory]]:
    """A run taken apart, and unrolls of all its streams as the actor gives them."""
    bench = Bench(algo, env, **{**SMALL, **given})
    found = []
    for _ in range(unrolls):
        bench.rollout.start()
        (unroll,) = bench.rollout.gather()
        found.append(copy.deepcopy(unroll))
    return bench, found


def first_rows(unroll: Trajectory, rows: int) -> Trajectory:
    """The unroll as it would be if it had ended after so many rows; cores before every 4th row."""
    core = None if unroll.core is None else unroll.core[: -(-rows // 4)]
    return replace(cut_rows(unroll, 0, rows), core=core)


QUICK = {("ppo", "memory"), ("a2c", "discrete"), ("appo", "masked"), ("impala", "box")}


@pytest.mark.parametrize(
    ("algo", "env"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.sweep) for case in itertools.product(ALGOS, ENVS)],
)
def test_rows_that_were_added_teach_nothing(algo: str, env: str) -> None:
    """An update on a short unroll, and on the same stretched, ends with the same weights."""
    name, more = ENVS[env]
    found = []
    for rows in (4, 8):
        bench, (unroll,) = acted(algo, name, **{**ALGOS[algo], **more})
        short, algorithm = first_rows(unroll, 4), bench.algorithm
        before = copy.deepcopy(algorithm.policy.state_dict())
        batch = join([short], CPU, rows)
        assert batch.rows == rows
        algorithm.update(batch, 0.0)
        algorithm.observe(batch)
        found.append(copy.deepcopy(algorithm.policy.state_dict()))
        assert any(not torch.equal(before[key], found[-1][key]) for key in before)
    for key in found[0]:
        torch.testing.assert_close(found[0][key], found[1][key], rtol=1e-4, atol=1e-5)


def test_a_stretched_unroll_is_the_unroll_and_then_nothing() -> None:
    _, (unroll,) = acted("ppo", "probe:memory", memory="gru", memory_size=8, sequence=4)
    short = first_rows(unroll, 3)
    long = stretch(short, 8, cores=2)
    assert long.rows == 8
    assert not long.valid[3:].any()
    assert long.steps == short.steps
    assert not (long.terminated | long.truncated)[3:].any()
    assert long.core is not None
    assert len(long.core) == 2
    for name in ("action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(long, name)[:3], getattr(short, name))
    np.testing.assert_array_equal(long.obs[:4], short.obs)
    np.testing.assert_array_equal(long.first[:4], short.first)
    assert stretch(unroll, 8) is unroll


@pytest.mark.parametrize(
    ("streams", "wait", "sizes"),
    [
        (6, "all", [6]),
        pytest.param(6, 6, [6], marks=pytest.mark.sweep),
        pytest.param(6, 4, [6], marks=pytest.mark.sweep),
        (6, 3, [3, 3]),
        pytest.param(6, 2, [2, 2, 2], marks=pytest.mark.sweep),
        (7, 3, [3, 4]),
        pytest.param(3, 5, [3], marks=pytest.mark.sweep),
    ],
)
def test_a_delivery_makes_batches_of_one_size(streams: int, wait: Any, sizes: list[int]) -> None:
    _, (unroll,) = acted(streams=streams)
    whole = join([unroll], CPU)
    pieces = list(in_batches(whole, wait))
    assert [len(piece.stream) for piece in pieces] == sizes
    assert torch.cat([piece.stream for piece in pieces]).tolist() == list(range(streams))
    for name in ("action", "reward", "terminated", "truncated", "first"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces], 1), getattr(whole, name))
    assert torch.equal(torch.cat([piece.extras["log_prob"] for piece in pieces], 1), whole.extras["log_prob"])
    assert torch.equal(torch.cat([leaves(piece.obs)[0] for piece in pieces], 1), leaves(whole.obs)[0])


@pytest.mark.parametrize(
    ("kept", "uses"),
    [
        pytest.param(1, 1, marks=pytest.mark.sweep),
        (1, 3),
        pytest.param(2, 1, marks=pytest.mark.sweep),
        pytest.param(4, 2, marks=pytest.mark.sweep),
        (3, 5),
    ],
)
def test_a_batch_is_used_as_often_as_asked_while_it_is_kept(kept: int, uses: int) -> None:
    feed = StreamFeed(CPU, StreamPlan(unroll=8, buffer_size=kept, reuse=uses))
    _, unrolls = acted(unrolls=20)
    used: list[int] = []
    for unroll in unrolls:
        used += [int(batch.row[0]) // 8 for batch in feed([unroll], 0.0)]
    assert len(used) == 20 * uses
    counts = Counter(used)
    whole = [counts[number] for number in range(kept, 20 - kept)]  # came in when the buffer was full, and left it
    assert whole == [uses] * len(whole)
    for number, batch in enumerate(used):
        assert 0 <= number // uses - batch < kept, "a batch leaves when its place is needed"


def test_each_stream_is_shown_to_statistics_in_the_order_of_its_rows() -> None:
    bench, unrolls = acted("ppo", unrolls=3, normalize_return=True, normalize_obs=True)
    one, other = bench.algorithm, acted("ppo", unrolls=0, normalize_return=True, normalize_obs=True)[0].algorithm
    for unroll in unrolls:
        one.observe(join([unroll], CPU))
    learner = Learner(other, CPU, StreamFeed(CPU))
    other.update = lambda batch, progress: type("Told", (), {"metrics": {}, "priority": None})()
    learner.step(unrolls, 0.0)
    for name, array in one.policy.state_dict().items():
        torch.testing.assert_close(array, other.policy.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert [[int(unroll.row[0]) for unroll in piece] for piece in rounds(unrolls)] == [[0], [8], [16]]
