"""Returns and lengths over the borders of unrolls, against a plain loop; whole episodes against a plain loop too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.faulty import config_of

from rltrain.envs.make import read_spec, resolve
from rltrain.envs.problems.probes import Counter
from rltrain.envs.spaces import EPISODE_CONTINUES
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.learner.algorithm import make_policy
from rltrain.rollout.actor.episodes import EpisodeTracker
from rltrain.rollout.actor.play import play
from rltrain.rollout.buffers import empty_rows, obs_arrays, padded
from rltrain.rollout.types import Act, Episode, Noise
from rltrain.setup.environment import open_environment


def stepped(ends: list[list[bool]], reward: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that end as `ends` says: (reward, ended, valid), reset rows included."""
    ended, valid = np.zeros(reward.shape, bool), np.ones(reward.shape, bool)
    over = np.zeros(reward.shape[1], bool)
    for t, row in enumerate(ends):
        valid[t] = ~over
        ended[t] = np.array(row) & ~over
        over = ended[t]
    return np.where(valid, reward, 0.0).astype(np.float32), ended, valid


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**31), st.data())
def test_episodes_do_not_care_about_the_borders_of_unrolls(rows: int, unroll: int, seed: int, data: Any) -> None:
    ends = data.draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=rows, max_size=rows))
    reward, ended, valid = stepped(ends, np.random.default_rng(seed).integers(-9, 9, (rows, 3)).astype(np.float32))
    expected: list[list[Episode]] = [[], [], []]
    for b in range(3):
        ret, length = 0.0, 0
        for t in range(rows):
            if valid[t, b]:
                ret, length = ret + float(reward[t, b]), length + 1
            if ended[t, b]:
                expected[b].append(Episode(ret, length))
                ret, length = 0.0, 0

    tracker = EpisodeTracker(3)
    found = []
    for begin in range(0, rows, unroll):
        part = slice(begin, begin + unroll)
        found += tracker.add(reward[part], ended[part], valid[part])

    assert sorted(found) == sorted(episode for stream in expected for episode in stream)


def test_a_reset_row_is_no_step() -> None:
    tracker = EpisodeTracker(1)
    ended = np.array([[True], [False], [False], [True]])
    valid = np.array([[True], [False], [True], [True]])
    episodes = tracker.add(np.array([[5], [0], [1], [2]], np.float32), ended, valid)
    assert episodes == (Episode(5.0, 1), Episode(3.0, 2))


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("streams", [1, 3])
def test_tracker_against_a_plain_loop(rows, streams):
    """Ends everywhere, in the last row too, over several unrolls."""
    rng = np.random.default_rng(rows)
    tracker = EpisodeTracker(streams)
    ret, length = np.zeros(streams), np.zeros(streams, int)
    for _ in range(40):
        reward = rng.integers(-3, 4, (rows, streams)).astype(np.float32)
        ended, valid = rng.random((rows, streams)) < 0.3, rng.random((rows, streams)) < 0.9
        expected = []
        for b in range(streams):
            for t in range(rows):
                ret[b] += reward[t, b]
                length[b] += valid[t, b]
                if ended[t, b]:
                    expected.append(Episode(ret[b], length[b]))
                    ret[b], length[b] = 0.0, 0
        assert tracker.add(reward, ended, valid) == tuple(expected)
        np.testing.assert_array_equal(tracker.ret, ret)
        np.testing.assert_array_equal(tracker.length, length)


def test_padding_and_the_shapes_of_an_unroll() -> None:
    assert [padded(n) for n in (1, 15, 16, 17, 32, 33)] == [16, 16, 16, 32, 32, 48]
    leaf = Leaf("box", (2,), "float32")
    tree = {"b": (leaf, replace(leaf, shape=(), dtype="int64", kind="discrete", nvec=(3,))), "a": leaf}
    spec = EnvSpec("x", tree, ActionSpec("multi_discrete", (2,), (3, 2)), action_mask=True)
    arrays = obs_arrays(spec, 5, 16)
    assert list(arrays) == ["a", "b"]
    assert arrays["b"][1].shape == (5, 16)
    assert arrays["b"][1].dtype == np.int64
    rows = empty_rows(spec, 4, 3)
    assert rows.action_mask is not None
    assert rows.action_mask.shape == (5, 16, 5)
    assert rows.action_mask.all(), "columns of padding must allow something"
    assert rows.first.shape == (5, 16)
    assert rows.reward.shape == (4, 16)


def test_play_gives_one_whole_episode_per_seed_in_order() -> None:
    seeds = [11, 12, 13, 14, 15, 16, 17]
    config = config_of(Counter)
    here = open_environment(config)[0]
    episodes = play(Counter, here.spec, make_policy(config, here.spec)(), seeds, at_once=3)
    expected = []
    for seed in seeds:
        env = Counter()
        length = int(env.reset(seed=seed)[0][1])
        expected.append(Episode(length * (length + 1) / 2, length))
    assert episodes == expected


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("memory", ["none", "gru"])
def test_an_episode_is_the_same_in_every_company(explore: bool, memory: str) -> None:
    config = config_of("CartPole-v1", memory=memory, sequence=4)
    spec = read_spec(resolve("CartPole-v1"), 0)
    policy = make_policy(config, spec)()

    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1")

    together = play(make, spec, policy, list(range(9)), explore)
    alone = [episode for seed in range(9) for episode in play(make, spec, policy, [seed], explore)]
    assert together == alone
    assert len({episode.length for episode in together}) > 1


class Lives(gymnasium.Env[Any, Any]):
    """A game of three lives of two steps each; a lost life ends an episode of training, not the game."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.t = getattr(self, "t", 0) % 6
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1, np.float32), 1.0, self.t % 2 == 0, False, {EPISODE_CONTINUES: self.t < 6}


class Remembering:
    """A policy that counts its steps in its memory, and writes down what it remembered."""

    core_size, sequence, noise = 1, 1, Noise("uniform", 1)

    def __init__(self) -> None:
        self.remembered: list[float] = []

    def act(self, obs: Any, core: torch.Tensor, mask: Any, noise: torch.Tensor, explore: bool) -> Act:
        self.remembered.append(float(core[0, 0]))
        return Act(torch.zeros(len(core), dtype=torch.int64), {}, core + 1)


def test_evaluation_forgets_where_training_forgets() -> None:
    """The memory is empty at the first row of each life."""
    policy: Any = Remembering()

    episodes = play(Lives, read_spec(resolve(Lives), 0), policy, [0])

    assert episodes == [Episode(6.0, 6)]
    assert policy.remembered == [0, 1, 2] + [0, 1, 2] + [0, 1]  # the third row of a life is its reset row
