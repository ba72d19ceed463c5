"""The probes: the answer in each docstring is the answer, found by trying every action."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from oracles.faulty import raises

from rltrain.envs.make import resolve
from rltrain.envs.problems.probes import PROBES


def best(name: str, actions, seeds: int = 30) -> list[tuple[float, object]]:
    """The best reward of the first step, and its action, for a number of seeds."""
    found = []
    for seed in range(seeds):
        rewards = []
        for action in actions:
            env = resolve(f"probe:{name}").make()
            obs, _ = env.reset(seed=seed)
            assert env.observation_space.contains(obs)
            rewards.append((env.step(action)[1], obs))
        found.append(max(rewards, key=lambda pair: pair[0]))
    return found


@pytest.mark.parametrize(
    ("name", "actions", "value"),
    [
        ("constant", [0], 1.0),
        ("choice", [0, 1], 1.0),
        ("choice-given-obs", [0, 1], 1.0),
        ("discrete-start", [3, 4, 5], 1.0),
        ("box", [np.array([a], np.float32) for a in (-1, 0, 1.5, 3)], 0.0),
        ("box3", [np.array(a, np.float32) for a in ((0, 0, 0), (0.5, -1, 3))], 0.0),
        ("multi-discrete", list(itertools.product(range(3), range(2))), 2.0),
        ("multi-binary", [np.array(a) for a in itertools.product((0, 1), repeat=3)], 3.0),
        ("dict", range(4), 1.0),
        ("image", [0, 1], 1.0),
    ],
)
def test_the_value_of_one_step_probes(name, actions, value):
    assert all(reward == value for reward, _ in best(name, actions))


def test_obs_reward_is_its_observation():
    found = best("obs-reward", [0])
    assert all(reward == obs[0] for reward, obs in found)
    assert len({reward for reward, _ in found}) == 2


@pytest.mark.parametrize("name", ["choice-given-obs", "dict", "image", "memory", "discrete-start"])
def test_no_action_is_right_for_every_observation(name):
    """Else it would not test that the observation is used."""
    env = resolve(f"probe:{name}").make()
    for action in range(env.action_space.start, env.action_space.start + env.action_space.n):
        returns = []
        for seed in range(40):
            env.reset(seed=seed)
            total, over = 0.0, False
            while not over:
                _, reward, over, _, _ = env.step(action)
                total += reward
            returns.append(total)
        assert min(returns) < 1.0


def test_two_steps_pays_at_the_end():
    env = PROBES["two-steps"]()
    assert env.reset()[0] == 0.0
    assert env.step(0)[1:4] == (0.0, False, False)
    assert env.step(0)[1:4] == (1.0, True, False)


def test_endless_is_truncated_and_never_terminated():
    env = resolve("probe:endless").make()
    env.reset()
    rows = [env.step(0) for _ in range(10)]
    assert [row[3] for row in rows] == [False] * 9 + [True]
    assert not any(row[2] for row in rows)


def test_memory_shows_its_cue_once_and_asks_at_the_end():
    env = resolve("probe:memory").make()
    for seed in range(6):
        obs, _ = env.reset(seed=seed)
        cue = int(obs[0] > 0)
        rows = [env.step(cue) for _ in range(4)]
        assert all(row[0][0] == 0 for row in rows)
        assert [row[1] for row in rows] == [0, 0, 0, 1]
        assert rows[-1][2]


@pytest.mark.parametrize("name", ["masked", "masked-obs"])
def test_an_illegal_action_raises(name):
    env = resolve(f"probe:{name}").make()
    obs, info = env.reset(seed=0)
    mask = obs["action_mask"] if name == "masked-obs" else info["action_mask"]
    assert 2 <= mask.sum() <= 3
    with pytest.raises(ValueError, match="illegal"):
        env.step(int(mask.argmin()))


def test_a_fault_happens_once_if_it_is_asked_to(tmp_path):
    once = os.fspath(tmp_path / "once")
    for happens in (True, False):
        env = resolve(raises, {"at": 2, "once": once}).make()
        env.reset(seed=0)
        env.step(0)
        if happens:
            with pytest.raises(RuntimeError, match="step 2"):
                env.step(0)
        else:
            env.step(0)
