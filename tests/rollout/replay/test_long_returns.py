"""n-step targets of many steps: the sums of whole episodes give those of the loop over the steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.rollout.replay import replay as module
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.types import Trajectory

SPEC = EnvSpec("x", Leaf("box", (1,), "float32"), ActionSpec("discrete", (), (2,)))


def unrolls(streams: int, rows: int, seed: int) -> list[Trajectory]:
    """Episodes of up to 30 steps under next-step autoreset, in unrolls of 7 rows; observations count the rows."""
    rng = np.random.default_rng(seed)
    ends, first = np.zeros((rows, streams), np.int64), np.zeros((rows + 1, streams), bool)
    first[0] = True
    for stream in range(streams):
        row = int(rng.integers(1, 30))
        while row < rows - 1:
            ends[row, stream], first[row + 2, stream] = rng.integers(1, 3), True
            row += 2 + int(rng.integers(1, 30))
    whole = Trajectory(
        obs=np.arange(rows + 1, dtype=np.float32)[:, None, None] + 1000 * np.arange(streams)[None, :, None],
        action=np.zeros((rows, streams), np.int64),
        reward=rng.normal(size=(rows, streams)).astype(np.float32),
        terminated=ends == 1, truncated=ends == 2, first=first,
        version=np.zeros(streams, np.int64), stream=np.arange(streams), row=np.zeros(streams, np.int64),
    )  # fmt: skip
    from rltrain.rollout.trajectories import cut_rows

    cut = [cut_rows(whole, begin, begin + 7) for begin in range(0, rows, 7)]
    return [replace(one, obs=one.obs.astype(np.float32)) for one in cut]


@pytest.mark.parametrize("n_step", [5, 12, 40])
@pytest.mark.parametrize("capacity", [600, 150], ids=["all", "overwritten"])
def test_sums_of_episodes_give_the_targets_of_the_loop(
    n_step: int, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ReplayPlan(unroll=7, capacity=capacity, batch=400, warmup=0, updates_per_step=1.0, gamma=0.97, n_step=n_step)
    loop, sums = (Replay(SPEC, 3, plan, 0) for _ in range(2))
    for number, unroll in enumerate(unrolls(3, 140, 0)):
        for replay in (loop, sums):
            replay.append(unroll)
        if number % 5 or not len(loop):
            continue
        monkeypatch.setattr(module, "LONG", 1000)
        a = loop.sample(0.0)
        monkeypatch.setattr(module, "LONG", 2)
        b = sums.sample(0.0)
        np.testing.assert_allclose(b.reward, a.reward, atol=1e-5)
        for x, y in ((a.obs, b.obs), (a.next_obs, b.next_obs), (a.discount, b.discount)):
            np.testing.assert_allclose(x, y, rtol=1e-6)
    assert len(loop)


def test_streams_that_end_have_no_rows_left_out() -> None:
    plan = ReplayPlan(unroll=7, capacity=600, batch=4, warmup=0, updates_per_step=1.0, gamma=0.97, n_step=50)
    replay = Replay(SPEC, 3, plan, 0)
    steps = 0
    for unroll in unrolls(3, 140, 1):
        replay.append(unroll)
        steps += unroll.steps
    assert len(replay) < steps
    replay.cut_streams()
    assert len(replay) == steps
