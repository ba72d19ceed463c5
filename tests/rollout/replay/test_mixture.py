"""A mixture of replays: the shares of its samples, which rows they are, and its state."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.rollout.replay.mixture import Mixture
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.types import Trajectory

SPEC = EnvSpec("x", {"a": Leaf("box", (1,), "float32"), "b": Leaf("discrete", (), "int64", (9,))},
               ActionSpec("discrete", (), (2,)), action_mask=True)  # fmt: skip
PLAN = ReplayPlan(unroll=1, capacity=400, batch=200, warmup=0, updates_per_step=1.0, gamma=0.9)


def rows(number: int, count: int, row: int = 0) -> Trajectory:
    """`count` steps without an end, in which each observation is 100 * `number` + its row."""
    at = np.arange(row, row + count + 1)[:, None]
    return Trajectory(
        obs={"a": (100.0 * number + at[..., None]).astype(np.float32), "b": at % 9},
        action=np.zeros((count, 1), np.int64), reward=np.full((count, 1), number, np.float32),
        terminated=np.zeros((count, 1), bool), truncated=np.zeros((count, 1), bool), first=at == 0,
        version=np.zeros(1, np.int64), stream=np.zeros(1, np.int64), row=np.array([row]),
        action_mask=np.ones((count + 1, 1, 2), bool),
    )  # fmt: skip


def filled(number: int, count: int) -> Replay:
    replay = Replay(SPEC, 1, PLAN, number)
    replay.append(rows(number, count))
    return replay


@pytest.mark.parametrize(
    ("weights", "online", "shares"),
    [((), 0, (30, 90)), ((3.0, 1.0), 0, (3, 1)), ((), 60, (30, 90, 60)), ((3.0, 1.0), 60, (90, 30, 60))],
)
def test_rows_come_from_each_replay_by_its_share(weights: tuple[float, ...], online: int, shares: tuple[int]) -> None:
    """Without weights all rows are equally likely; the rows of actors are it in any case."""
    own = Replay(SPEC, 1, PLAN, 5) if online else None
    mixture = Mixture([filled(0, 30), filled(1, 90)], weights, own, 200, 0)
    if online:
        mixture.append(rows(2, online))
    counts, seen = np.zeros(len(shares)), set[float]()
    for _ in range(100):
        batch = mixture.sample(0.0)
        counts += [int((batch.reward == number).sum()) for number in range(len(shares))]
        seen |= set(batch.obs["a"][:, 0].tolist())
        np.testing.assert_array_equal(batch.next_obs["a"], batch.obs["a"] + 1)
        np.testing.assert_array_equal(batch.obs["b"], batch.obs["a"][:, 0].astype(int) % 100 % 9)
        assert batch.action_mask is not None
        assert (len(batch.reward), batch.action_mask.shape) == (200, (200, 2))
    expected = np.array(shares) / sum(shares)
    assert np.abs(counts / 20_000 - expected).max() < 5 * np.sqrt(0.25 / 20_000)
    assert len(seen) == len(mixture) == 120 + online


def test_sequences_of_several_replays_are_side_by_side() -> None:
    plan = replace(PLAN, length=3)
    replays = [Replay(SPEC, 1, plan, number) for number in range(2)]
    for number, replay in enumerate(replays):
        replay.append(rows(number, 60))

    batch = Mixture(replays, (), None, 200, 0).sample(0.0)

    assert isinstance(batch, Trajectory)
    assert (batch.obs["a"].shape, batch.reward.shape, batch.row.shape) == ((4, 200, 1), (3, 200), (200,))
    assert set(batch.reward[0].tolist()) == {0.0, 1.0}
    first = 100 * batch.reward[0] + batch.row  # each is the next three rows of one replay
    steps = batch.valid.sum(0)
    expected = first + np.minimum(np.arange(4)[:, None], steps)
    np.testing.assert_array_equal(batch.obs["a"][..., 0], expected)
    assert (batch.reward == np.where(batch.valid, batch.reward[0], 0.0)).all()


def test_a_replay_without_rows_gives_none() -> None:
    mixture = Mixture([filled(0, 30)], (), Replay(SPEC, 1, PLAN, 5), 200, 0)
    assert set(mixture.sample(0.0).reward.tolist()) == {0.0}
    with pytest.raises(ValueError, match="empty"):
        Mixture([Replay(SPEC, 1, PLAN, 5)], (), None, 200, 0).sample(0.0)


def test_its_state_continues_exactly() -> None:
    def made() -> Mixture:
        return Mixture([filled(0, 30), filled(1, 90)], (3.0, 1.0), Replay(SPEC, 1, PLAN, 5), 50, 7)

    one, other = made(), made()
    one.append(rows(2, 300))  # several segments
    for _ in range(3):
        one.sample(0.0)
    small, segments = one.state()
    written = {name: read() for name, read in segments.items()}
    other.load(small, {name: partial(written.__getitem__, name) for name in written})
    one.append(rows(2, 5, 300))
    other.append(rows(2, 5, 300))
    for _ in range(5):
        a, b = one.sample(0.0), other.sample(0.0)
        np.testing.assert_array_equal(a.obs["a"], b.obs["a"])
    assert len({name.partition("-")[0] for name in segments}) >= 1
    with pytest.raises(ValueError, match="there were 3 replays, and there are 2 now"):
        Mixture([filled(0, 30), filled(1, 90)], (), None, 50, 7).load(small, segments)
