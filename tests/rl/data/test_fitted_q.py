"""Fitted Q evaluation: values of a chain that are known, ends of episodes, Box actions, episodes that are left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracles import chain

from rltrain.data.episodes import Recorded
from rltrain.data.off_policy.fitted_q import FittedQ, FittedQConfig
from rltrain.data.off_policy.target import Steps
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.system.torch_setup import one_thread

GAMMA = 0.8
CHAIN = EnvSpec("chain", Leaf("discrete", (), "int64", nvec=(chain.STATES,)), ActionSpec("discrete", (), nvec=(2,)))
SETTINGS = FittedQConfig(critics=1, widths=(32,), batch=64, lr=0.005)


def episodes(count: int) -> list[Recorded]:
    states, actions, rewards, alive = chain.sample(chain.MU, count, 0)
    lengths = alive[:, :-1].sum(1)
    return [
        Recorded(
            obs=[states[i, : n + 1]],
            action=actions[i, :n],
            reward=rewards[i, :n].astype(np.float32),
            terminated=not alive[i, -1],
            truncated=bool(alive[i, -1]),
        )
        for i, n in enumerate(lengths.tolist())
    ]


def fitted(steps: Steps, own: np.ndarray, weight: np.ndarray, updates: int, settings: FittedQConfig) -> FittedQ:
    networks = FittedQ(steps, own, GAMMA, weight, 0, settings)
    with one_thread():
        networks.fit(updates)
    return networks


def test_values_are_those_of_the_chain() -> None:
    """A termination ends the values; the value after a time limit counts, of the observation that was last."""
    recorded = episodes(400)
    steps = Steps.of(recorded, CHAIN)
    own = chain.PI[steps.obs[0]].astype(np.float32)
    q, v = fitted(steps, own, np.ones((1, len(recorded))), 1500, SETTINGS).values()
    table = chain.fitted(*chain_arrays(400), chain.PI, GAMMA)  # of the same frequencies
    states, actions = steps.obs[0][steps.row], steps.action

    for s in range(chain.STATES):
        assert v[0, steps.obs[0] == s].mean() == pytest.approx((chain.PI * table).sum(1)[s], abs=0.1)
        for a in range(2):
            assert q[0, (states == s) & (actions == a)].mean() == pytest.approx(table[s, a], abs=0.12)
    assert np.ptp(table) > 2.5


def chain_arrays(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    states, actions, _, alive = chain.sample(chain.MU, count, 0)
    return states, actions, alive


def test_terminations_and_time_limits_differ() -> None:
    """Two states by turns, reward 1 in each of the two steps: 1.8 if the second terminates, 5 if it does not."""
    one = Recorded([np.zeros(3, np.int64)], np.zeros(2, np.int64), np.ones(2, np.float32), True, False)
    values = []
    for ends in (one, replace(one, terminated=False, truncated=True), replace(one, terminated=False)):
        steps = Steps.of([replace(ends, obs=[np.array([0, 1, 0])])] * 8, CHAIN)
        own = np.tile(np.array([1, 0], np.float32), (len(steps.obs[0]), 1))
        settings = SETTINGS.model_copy(update={"widths": (16,)})
        values.append(fitted(steps, own, np.ones((1, 8)), 500, settings).values()[1][0, 0])

    assert values[0] == pytest.approx(1 + GAMMA, abs=0.1)
    assert values[1] == values[2] == pytest.approx(1 / (1 - GAMMA), abs=0.25)


def test_box_actions_are_those_of_the_policy() -> None:
    """Episodes of one step, reward 1 - (a - o)^2; the policy takes o or o + 0.4."""
    spec = EnvSpec("match", Leaf("box", (1,), "float32"), ActionSpec("box", (1,), low=(-2.0,), high=(2.0,)))
    rng = np.random.default_rng(0)
    obs, action = rng.uniform(-0.5, 0.5, (2000, 1)), rng.uniform(-1, 1, (2000, 1))
    reward = 1 - (action - obs)[:, 0] ** 2
    rows = zip(obs, action, reward, strict=True)
    recorded = [
        Recorded([np.array([o, o], np.float32)], np.array([a], np.float32), np.array([r], np.float32), True, False)
        for o, a, r in rows
    ]
    steps = Steps.of(recorded, spec)
    own = np.stack([steps.obs[0], steps.obs[0] + 0.4], 1)
    v = fitted(steps, own, np.ones((1, 2000)), 800, SETTINGS).values()[1][0]

    assert v[steps.start[:-1]].mean() == pytest.approx(1 - 0.16 / 2, abs=0.05)


def test_nets_do_not_see_episodes_without_weight() -> None:
    recorded = episodes(10)
    weight = np.ones((2, 10))
    weight[1, :5] = 0
    found = []
    for factor in (1.0, 7.0):
        changed = [replace(one, reward=one.reward * (factor if i < 5 else 1)) for i, one in enumerate(recorded)]
        steps = Steps.of(changed, CHAIN)
        networks = FittedQ(steps, np.full((len(steps.obs[0]), 2), 0.5, np.float32), GAMMA, weight, 0,
                           SETTINGS.model_copy(update={"critics": 2}))  # fmt: skip
        networks.scale = 1.0
        networks.fit(20)
        found.append(networks.values()[0])

    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert not np.array_equal(found[0][0], found[1][0])


def test_whole_numbers_are_inputs_one_by_one() -> None:
    """MultiDiscrete actions: the reward is 1 for the pair (1, 2); the policy takes it half of the time."""
    spec = EnvSpec("pair", Leaf("box", (1,), "float32"), ActionSpec("multi_discrete", (2,), nvec=(2, 3)))
    rng = np.random.default_rng(0)
    action = np.stack([rng.integers(0, 2, 600), rng.integers(0, 3, 600)], 1)
    reward = (action == (1, 2)).all(1).astype(np.float32)
    recorded = [
        Recorded([np.ones((2, 1), np.float32)], a[None], np.array([r], np.float32), True, False)
        for a, r in zip(action, reward, strict=True)
    ]
    steps = Steps.of(recorded, spec)
    own = np.tile(np.array([[1, 2], [0, 2]]), (len(steps.obs[0]), 1, 1))
    v = fitted(steps, own, np.ones((1, 600)), 500, SETTINGS).values()[1][0]

    assert v.mean() == pytest.approx(0.5, abs=0.1)
