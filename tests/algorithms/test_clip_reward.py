"""Clipped rewards are learnt from, one by one and before they are summed; raw ones are left as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles.cases import DISCRETE, parameters, unroll
from torch.testing import assert_close

from rltrain import algorithms
from rltrain.algorithms.off_policy.settings import DQNConfig
from rltrain.algorithms.off_policy.target_network import replay_plan
from rltrain.learner.feed import ReplayFeed
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.types import Trajectory

CPU = torch.device("cpu")


def made(algo: str, **settings):
    small = {"widths": (8, 8), "streams": 4, "unroll": 16, **settings}
    config = algorithms.settings_class(algo)(**small)
    return algorithms.algorithm_class(algo)(DISCRETE, config, CPU, 3, 4)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("settings", [{}, {"normalize_return": True}], ids=["plain", "normalised"])
@pytest.mark.parametrize("algo", ["ppo", "a2c", "impala", "appo"])
def test_an_update_is_that_of_rewards_clipped_beforehand(algo, settings):
    one, two, three = made(algo, clip_reward=True, **settings), made(algo, **settings), made(algo, **settings)
    data = unroll(DISCRETE, one.policy, 5)
    data = replace(data, reward=data.reward * 10)
    before = data.reward.clone()
    clipped = replace(data, reward=data.reward.clamp(-1, 1))

    for _ in range(2):  # the second uses the statistics of the first
        for algorithm, unrolls in ((one, data), (two, clipped), (three, data)):
            algorithm.update(unrolls, 0.0)
            algorithm.observe(unrolls)

    assert torch.equal(data.reward, before)
    for name, value in parameters(one.policy).items():
        assert_close(value, parameters(two.policy)[name])
    assert any(not torch.equal(value, parameters(three.policy)[name]) for name, value in parameters(one.policy).items())


def test_a_replay_sums_clipped_rewards():
    config = DQNConfig(unroll=4, capacity=100, batch=8, warmup=0, updates_per_step=1, n_step=3, clip_reward=True)
    plan = replay_plan(config)
    feed = ReplayFeed(Replay(DISCRETE, 1, plan, 0), plan, CPU)
    reward = np.array([[5.0], [-7.0], [0.5], [3.0]], np.float32)
    false = np.zeros((4, 1), bool)
    data = Trajectory(
        obs=np.zeros((5, 1, 3), np.float32),
        action=np.array([[0], [1], [2], [3]]),
        reward=reward,
        terminated=np.array([[False], [False], [False], [True]]),
        truncated=false,
        first=np.array([[True], [False], [False], [False], [False]]),
        version=np.zeros(1, np.int64),
        stream=np.zeros(1, np.int64),
        row=np.zeros(1, np.int64),
    )
    g = config.gamma
    expected = [1 - g + 0.5 * g**2, -1 + 0.5 * g + g**2, 0.5 + g, 1.0]

    for batch in feed([data], 0.0):
        for action, got in zip(batch.action.tolist(), batch.reward.tolist(), strict=True):
            assert got == pytest.approx(expected[action])

    assert reward[0, 0] == 5.0
    assert feed.updates == 4
