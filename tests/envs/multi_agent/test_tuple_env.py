"""Gymnasium environments with a tuple of agents."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gymnasium import spaces
from oracles.games import Forages, MaskedPair, Pair
from oracles.walk import Walk

from rltrain.envs.errors import EnvError, EnvFault
from rltrain.envs.make import read_spec, resolve


def test_a_tuple_of_agents():
    walk = Walk(Pair)
    for _ in range(4):
        walk.step(1, 2)

    assert walk.spec.agents == ("agent_0", "agent_1")
    assert walk.rows.reward[:4, 0].tolist() == [[1.0, -2.0]] * 4
    assert walk.rows.truncated[3, 0].tolist() == [True, True]
    assert walk.rows.obs["agent_1"][:5, 0, 0].tolist() == [0, 1, 2, 3, 4]  # counted from 0
    assert walk.rows.episode_end(3)[0]


def test_a_tuple_of_agents_has_a_mask_for_each_in_its_info():
    walk = Walk(MaskedPair)
    walk.step(1, 2)

    assert walk.spec.action_mask
    assert walk.rows.action_mask[0, 0].tolist() == [False, True, False, True, True]
    assert walk.rows.action_mask[1, 0].tolist() == [True, False, True, True, False]


WRONG = "must hold a mask for each of 2 agents, in their order"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (lambda masks, time: masks[:1], WRONG),
        (lambda masks, time: dict(enumerate(masks)), WRONG),
        (lambda masks, time: "ab", WRONG),
        (lambda masks, time: 1, WRONG),
        (lambda masks, time: np.array(1), WRONG),
        (lambda masks, time: masks[::-1], "agent 'agent_0': info['action_mask'] is an array of shape (3,)"),
        (lambda masks, time: np.ones((2, 3)), "agent 'agent_0': info['action_mask'] is an array of shape (3,)"),
        (lambda masks, time: np.ones(2), "agent 'agent_0': info['action_mask'] is 1.0 (float64)"),
    ],
)
def test_masks_that_do_not_fit_a_tuple_of_agents_are_told(told, words):
    walk = Walk(lambda: MaskedPair(lambda masks, time: told(masks, time) if time else masks))
    with pytest.raises(EnvFault, match=re.escape(words)):
        walk.step(1, 1)


def test_an_agent_of_a_tuple_without_a_mask_may_do_all():
    walk = Walk(lambda: MaskedPair(lambda masks, time: (masks[0], None)))

    assert walk.rows.action_mask[0, 0].tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("last", [(), None, (None, None)])
def test_masks_need_not_be_told_where_the_episode_of_a_tuple_is_over(last):
    walk = Walk(lambda: MaskedPair(lambda masks, time: last if time == 4 else masks))
    for _ in range(4):
        walk.step(1, 1)

    assert walk.rows.episode_end(3)[0]
    assert walk.rows.action_mask[4, 0].tolist() == [True] * 5


def test_what_an_info_says_of_masks_where_actions_are_boxes_is_not_looked_at():
    class Boxes(Pair):
        action_space = spaces.Tuple((spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (1,))))

        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0], {"action_mask": np.ones(7)}

    assert not Walk(Boxes).spec.action_mask


def test_who_has_left_a_tuple_is_shown_no_more():
    class Leaving(MaskedPair):
        def step(self, action):
            obs, rewards, _, truncated, info = super().step(action)
            return obs, rewards, [self.time >= 2, False], truncated, info

    walk = Walk(Leaving)
    for _ in range(3):
        walk.step(0, 1)

    assert walk.rows.alive[:4, 0].tolist() == [[True, True], [True, True], [False, True], [False, True]]
    assert walk.rows.action_mask[2, 0].tolist() == [False, True, True, False, True]  # once more, as it left
    assert walk.rows.action_mask[3, 0].tolist() == [True, False, True, False, True]  # idle
    assert walk.rows.obs["agent_0"][2, 0].any()
    assert not walk.rows.obs["agent_0"][3, 0].any()


@pytest.mark.parametrize("rware", [False, True])
def test_a_time_limit_told_as_a_death_is_none(rware):
    walk = Walk(Forages, rware=rware)
    for _ in range(4):
        walk.step(0, 0)

    assert walk.rows.truncated[:4, 0].tolist() == [[False, False]] * 3 + [[True, True]]
    assert not walk.rows.terminated.any()


def test_who_found_all_the_food_in_the_last_step_is_done():
    walk = Walk(Forages, found=True)
    for _ in range(4):
        walk.step(0, 0)

    assert walk.rows.terminated[3, 0].all()
    assert not walk.rows.truncated.any()


def test_a_tuple_of_actions_with_one_observation_is_one_line():
    class One(Pair):
        observation_space = spaces.Box(0.0, 9.0, (2,), np.float32)

    with pytest.raises(EnvError, match="make the actions a MultiDiscrete") as error:
        resolve(One).make()
    assert "\n" not in str(error.value)


def test_a_tuple_of_agents_with_one_reward_says_so():
    class Shared(Pair):
        def step(self, action):
            obs, rewards, *rest = super().step(action)
            return obs, sum(rewards), *rest

    walk = Walk(Shared)
    with pytest.raises(EnvFault, match=r"the rewards are 0\.0; they must be one for each of 2 agents"):
        walk.step(1, 1)


def test_lbforaging_is_a_tuple_of_agents():
    pytest.importorskip("lbforaging")
    spec = read_spec(resolve("lbforaging:Foraging-5x5-2p-1f-v3"), 0)

    assert (spec.agents, spec.action.nvec, spec.max_steps) == (("agent_0", "agent_1"), (6, 6), 50)
    walk = Walk("lbforaging:Foraging-5x5-2p-1f-v3", steps=60)
    for _ in range(50):
        walk.step(0, 0)
    assert walk.rows.truncated[49, 0].all()  # it says that the episode is over
    assert not walk.rows.terminated.any()
