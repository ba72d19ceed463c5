"""Environments of several agents: who is there, what each gets and sees, when an episode is over."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from oracles.games import EndOfRound, Leaves, Masked, MaskedPair, Pair, Stranger, Two
from oracles.walk import Walk

from rltrain.envs.check import check_env
from rltrain.envs.errors import EnvError, EnvFault, InvalidValue
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.multi_agent.joint_spaces import groups_of, joint_action, type_of
from rltrain.envs.problems import games
from rltrain.envs.spec import from_json, to_json
from rltrain.envs.suites import pettingzoo as zoo
from rltrain.envs.suites.pettingzoo import GAMES
from rltrain.envs.vector.restore_check import verify

PARALLEL = {
    "two-step": lambda: games.two_step(5),
    "climbing": lambda: games.climbing(rounds=3),
    "penalty": games.penalty,
    "spread": games.Spread,
    "generations": games.Generations,
}


@pytest.mark.parametrize("make", PARALLEL.values(), ids=PARALLEL)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_parallel_games_pass_pettingzoos_own_test(make):
    from pettingzoo.test import parallel_api_test

    parallel_api_test(make(), 40)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Observation")  # it wonders at masks in observations
def test_the_game_in_turns_passes_pettingzoos_own_test():
    from pettingzoo.test import api_test

    api_test(games.TicTacToe(), 40)


def test_who_leaves_keeps_the_last_reward_and_observation_and_the_episode_goes_on():
    """Lives of `Generations`: 0 to 6, 0 to 2, 1 to 4, 3 to 6; agents 0 and 2 run out of time, the others die."""
    walk = Walk("generations")
    for _ in range(8):
        walk.step(1, 0, 1, 0)
    rows = walk.rows

    alive = [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [0] * 4, [1, 1, 0, 0]]
    assert rows.alive[:8, 0].tolist() == [[bool(x) for x in row] for row in alive]
    rewards = [[2, 2, 0, 0], [2, 22, 4, 0], [2, 0, 4, 0], [2, 0, 34, 4], [2, 0, 0, 4], [12, 0, 0, 44], [0] * 4]
    assert rows.reward[:7, 0].tolist() == rewards
    assert np.argwhere(rows.terminated[:8, 0]).tolist() == [[1, 1], [5, 3]]
    assert np.argwhere(rows.truncated[:8, 0]).tolist() == [[3, 2], [5, 0]]
    assert np.flatnonzero(rows.first[:9, 0]).tolist() == [0, 7]
    assert [bool(rows.episode_end(t)[0]) for t in range(8)] == [False] * 5 + [True, False, False]
    seen = rows.obs["agent"][:8, 0]  # [8, N, 2]
    assert seen[2, 1] == pytest.approx([2 / 6, 0.0])  # as it left
    assert (seen[3:7, 1] == 0).all()  # gone
    assert seen[1, 2] == pytest.approx([1 / 6, 3 / 6])  # as it came
    assert seen[6, 0] == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("late", [False, True])
def test_a_time_limit_is_not_a_death(late):
    walk = Walk(Masked, late=late)
    for t in range(3):
        walk.step(0, 1, 1 + t % 3)

    ended = walk.rows.truncated if late else walk.rows.terminated
    assert ended[:3, 0].tolist() == [[False] * 3, [False] * 3, [True] * 3]
    assert not (walk.rows.terminated if late else walk.rows.truncated).any()


def grouped(share: Any, env: Any = "generations") -> list[tuple[str, tuple[str, ...]]]:
    return [(group.name, group.agents) for group in read_spec(resolve(env, share=share), 0).groups]


def test_a_map_names_the_policy_of_each_agent():
    """Its agents are agent_0 to agent_3, all alike; who is named by its own name is not meant by a pattern."""
    by_name = {"agent_0": "old", "agent_1": "young", "agent_2": "old", "agent_3": "young"}
    expected = [("old", ("agent_0", "agent_2")), ("young", ("agent_1", "agent_3"))]

    assert grouped(by_name) == expected
    assert grouped(dict(reversed(by_name.items()))) == expected, "in the order of the environment"
    assert grouped({"agent_*": "young", "agent_2": "old"}) == [
        ("young", ("agent_0", "agent_1", "agent_3")),
        ("old", ("agent_2",)),
    ]
    assert [name for name, _ in grouped({"*": "one"})] == ["one"]


@pytest.mark.parametrize(
    ("env", "share", "words"),
    [
        ("generations", {"agent_0": "a"}, "agent_1 has no policy in share"),
        (
            "generations",
            {"agent_*": "a", "agnet_0": "b"},
            "share names 'agnet_0', which is none of its agents: agent_0,",
        ),
        ("generations", {"agent_*": "a", "*": "b"}, "agent_* and * both match agent_0"),
        (Masked, {"*": "a"}, "scout_0 and guard_0 cannot share the policy 'a': their observation or"),
        ("CartPole-v1", {"*": "a"}, "CartPole-v1 has one agent, so that share cannot name the policies of several"),
    ],
)
def test_a_map_that_does_not_fit_is_answered_in_one_line(env, share, words):
    with pytest.raises(EnvError, match=re.escape(words)) as error:
        read_spec(resolve(env, share=share), 0)
    assert "\n" not in str(error.value)


def test_groups_actions_and_masks_lie_in_the_order_of_the_groups():
    """Its agents are scout_0, guard_0, scout_1; the groups put the scouts side by side. Actions count from 0."""
    walk = Walk(Masked)
    spec = walk.spec

    assert [(group.name, group.agents) for group in spec.groups] == [
        ("scout", ("scout_0", "scout_1")),
        ("guard", ("guard_0",)),
    ]
    assert spec.action.nvec == (2, 2, 4)
    assert spec.action.start == (5, 5, 0)
    assert walk.rows.action_mask[0, 0].tolist() == [True] * 4 + [False, True, False, False]
    walk.step(0, 1, 1)
    assert walk.rows.reward[0, 0].tolist() == [1.0, 3.0, 2.0]
    assert walk.rows.obs["scout"][1, 0].tolist() == [[1.0, 1.0], pytest.approx([1.2, 1.2])]
    assert walk.rows.obs["guard"][1, 0].tolist() == [pytest.approx([1.1] * 3)]
    assert walk.rows.action_mask[1, 0].tolist() == [True] * 4 + [False, False, True, False]


def test_what_is_said_of_who_has_left_is_not_theirs():
    """The first agent ran out of time in step 2. Afterwards nothing of it counts, and the end is the other's death."""
    walk = Walk(Leaves)
    for _ in range(4):
        walk.step(0, 0)
    rows = walk.rows

    assert rows.alive[:5, 0].tolist() == [[True, True], [True, True], [False, True], [False, True], [False, False]]
    assert rows.truncated[:4, 0].tolist() == [[False, False], [True, False], [False, False], [False, False]]
    assert rows.terminated[:4, 0].tolist() == [[False, False]] * 3 + [[False, True]]
    assert rows.reward[:4, 0].tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]


def test_who_is_gone_without_a_word_has_died():
    walk = Walk(Two)
    for _ in range(3):
        walk.step(0, 0)

    assert walk.rows.terminated[:3, 0].tolist() == [[False, False], [False, False], [True, True]]
    assert walk.rows.episode_end(2)[0]


def test_rewards_in_turns_are_those_of_last():
    """Where the game pays when a round is over, and leaves its `rewards` as they are meanwhile."""
    walk, env = Walk(EndOfRound), EndOfRound()
    actions = [1, 1, 0, 1, 1, 0]
    env.reset()
    told = dict.fromkeys(env.possible_agents, 0.0)
    for action in actions:
        told[env.agent_selection] += env.last()[1]
        env.step(action)
        walk.step(*((action, 0) if env.possible_agents.index(env.agent_selection) == 1 else (0, action)))
    while env.agents:
        told[env.agent_selection] += env.last()[1]
        env.step(None)

    assert walk.rows.reward[:6, 0].sum(0).tolist() == list(told.values()) == [6.0, 6.0]
    assert walk.rows.reward[0, 0].tolist() == [0.0, 0.0]
    assert walk.rows.reward[1, 0].tolist() == [3.0, 3.0]


def test_turns_pay_everybody_and_only_who_is_on_may_choose():
    walk = Walk("tic-tac-toe")
    for t, cell in enumerate((0, 3, 1, 4)):
        walk.step(*((cell, 0) if t % 2 == 0 else (0, cell)))
    rows = walk.rows

    assert rows.acting[:5, 0].tolist() == [[True, False], [False, True]] * 2 + [[True, False]]
    assert rows.alive[:5, 0].all()
    assert rows.action_mask[4, 0, :9].tolist() == [c not in (0, 1, 3, 4) for c in range(9)]
    assert rows.action_mask[4, 0, 9:].tolist() == [True] + [False] * 8  # one action, which nobody sees
    walk.step(2, 0)
    assert rows.reward[:5, 0].tolist() == [[0.0, 0.0]] * 4 + [[1.0, -1.0]]  # the loser's came in the winner's turn
    assert rows.terminated[4, 0].all()
    assert rows.episode_end(4)[0]
    assert rows.obs["player"][5, 0, 0, 0].tolist() == [1, 1, 1] + [0] * 6  # the last mark is seen
    walk.step(0, 0)
    assert rows.first[6, 0]
    assert rows.acting[6, 0].tolist() == [True, False]


@pytest.mark.parametrize(
    ("share", "names"),
    [
        ("all", [("agents", ("red_0", "blue_0", "blue_1"))]),
        ("type", [("red", ("red_0",)), ("blue", ("blue_0", "blue_1"))]),
        ("none", [("red", ("red_0",)), ("blue_0", ("blue_0",)), ("blue_1", ("blue_1",))]),
    ],
)
def test_who_shares(share, names):
    agents = ["red_0", "blue_0", "blue_1"]
    obs, act = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(3)
    groups = groups_of("x", agents, dict.fromkeys(agents, obs), dict.fromkeys(agents, act), share)

    assert [(group.name, group.agents) for group in groups] == names


def test_types_are_names_without_numbers():
    assert [type_of(name) for name in ("adversary_0", "agent-12", "first", "7")] == ["adversary", "agent", "first", "7"]


def test_box_actions_lie_side_by_side_and_are_scaled_for_each():
    agents = ["a", "b"]
    obs = dict.fromkeys(agents, spaces.Box(0, 1, (1,), np.float32))
    act = {"a": spaces.Box(0.0, 2.0, (2,), np.float32), "b": spaces.Box(-3.0, 3.0, (1,), np.float32)}
    joint = joint_action(groups_of("x", agents, obs, act, "all"))

    assert (joint.shape, joint.low, joint.high) == ((3,), (0.0, 0.0, -3.0), (2.0, 2.0, 3.0))
    assert read_spec(resolve("spread"), 0).action.shape == (3, 2)  # [N, *A] where all have the same shape


def test_box_and_discrete_side_by_side_are_refused():
    agents = ["a", "b"]
    obs = dict.fromkeys(agents, spaces.Box(0, 1, (1,), np.float32))
    act = {"a": spaces.Box(0.0, 2.0, (2,), np.float32), "b": spaces.Discrete(2)}

    with pytest.raises(EnvError, match="the actions of a are Box and those of the others are not"):
        groups_of("x", agents, obs, act, "all")


def test_a_stranger_is_named():
    walk = Walk(Stranger)
    with pytest.raises(EnvFault, match="'nobody_0' is not among `possible_agents`"):
        walk.step(0, 1, 1)


def test_without_possible_agents_there_is_no_room():
    class Nameless(Masked):
        def __init__(self) -> None:
            super().__init__()
            del self.possible_agents

    with pytest.raises(EnvError, match="no `possible_agents`"):
        resolve(Nameless).make()


def test_a_state_is_told_where_there_is_one():
    walk = Walk("two-step")
    walk.step(1, 0)

    assert walk.spec.state_shape == (3,)
    assert walk.rows.state[:2, 0].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert read_spec(resolve("generations"), 0).state_shape is None


@pytest.mark.parametrize("env", [*GAMES, Masked, Pair, MaskedPair])
def test_a_spec_survives_a_checkpoint(env):
    spec = read_spec(resolve(env), 0)

    assert from_json(to_json(spec)) == spec


@pytest.mark.parametrize("env", [*GAMES, Masked, Pair, MaskedPair])
def test_nothing_is_wrong_at_first_sight(env):
    source = resolve(env)

    assert check_env(source, read_spec(source, 0), 0) == []


@pytest.mark.parametrize("env", ["two-step", "spread", "generations", "tic-tac-toe", Masked])
def test_they_are_brought_back_in_mid_episode(env):
    source = resolve(env)

    assert verify(source.make, read_spec(source, 0), 0, seconds=0.2) == "rng"


def test_a_stream_goes_on_from_its_state():
    old = Walk("spread", seed=3)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (40, 1, 3, 2)).astype(np.float32)
    for t in range(13):
        old.env.step(actions[t], old.rows, t)
    old.env.end_unroll(actions[:13], old.rows)
    new = Walk("spread", seed=3)
    new.env.load(old.env.state(), new.rows)
    for t in range(4):
        old.env.step(actions[20 + t], old.rows, 13 + t)
        new.env.step(actions[20 + t], new.rows, t)

    assert not new.rows.first[0, 0]
    assert np.array_equal(new.rows.obs["agent"][1:5, 0], old.rows.obs["agent"][14:18, 0])
    assert np.array_equal(new.rows.reward[:4, 0], old.rows.reward[13:17, 0])


@pytest.mark.parametrize(("permutation", "best"), [(p, (p & 1, p >> 1 & 1, p >> 2 & 1)) for p in range(8)])
def test_the_two_step_game_pays_eight_at_its_best_and_seven_in_the_other_state(permutation, best):
    """As published the first agent's action 1 leads to the matrix with the 8, which stands at (1, 1)."""
    walk = Walk("two-step", permutation=permutation)
    choice, one, other = (1 - bit for bit in best)
    walk.step(choice, 0)
    walk.step(one, other)
    walk.step(0, 0)
    walk.step(1 - choice, 0)
    walk.step(0, 1)

    assert walk.rows.reward[:5, 0].sum(-1).tolist() == [0.0, 8.0, 0.0, 0.0, 7.0]


def test_the_matrix_games_pay_what_is_published():
    walk = Walk("climbing", rounds=9)
    for one in range(3):
        for other in range(3):
            walk.step(one, other)
    assert walk.rows.reward[:9, 0].sum(-1).tolist() == [11, -30, 0, -30, 7, 0, 0, 6, 5]
    assert walk.rows.episode_end(8)[0]

    walk = Walk("penalty", k=-50, rounds=3)
    for action in range(3):
        walk.step(action, 0)
    assert walk.rows.reward[:3, 0].sum(-1).tolist() == [10, 0, -50]


@pytest.mark.parametrize(
    ("env", "kwargs", "text"),
    [
        ("pettingzoo:json", {}, "has neither parallel_env nor env"),
        ("pettingzoo:no_such_game", {}, "there is no module"),
        ("two-stepp", {}, "Did you mean 'two-step'"),
        ("two-step", {"permutations": 1}, "Did you mean 'permutation'"),
    ],
)
def test_mistakes_are_one_line(env, kwargs, text):
    with pytest.raises(EnvError, match=text) as error:
        resolve(env, kwargs).make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (
            "old step",
            "step() of several agents returns five dictionaries by agent, observations, rewards, terminations",
        ),
        ("late mask", "the info of agent 'a_1' has an action mask, and at the reset no info had one"),
        ("state", "state() returned an array of shape (1,), and at the reset one of (2,)"),
    ],
)
def test_what_goes_wrong_while_stepping_says_what_it_is(how, text):
    walk = Walk(Two, how=how)

    with pytest.raises(EnvFault) as error:
        walk.step(0, 0)

    assert text in str(error.value)


def test_what_is_no_reset_of_several_agents_is_one_line():
    with pytest.raises(EnvError, match="two dictionaries by agent, observations and infos; it returned a dict"):
        read_spec(resolve(Two, {"how": "old reset"}), 0)


def test_a_state_that_raises_is_a_fault_of_the_environment():
    """And no sign that there is none."""
    with pytest.raises(Exception, match="the state is broken"):
        read_spec(resolve(Two, {"how": "state raises"}), 0)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(zoo.EXTRAS, "no_such_package", "mpe")

    with pytest.raises(EnvError, match=r"needs an extra: pip install 'rltrain\[mpe\]'"):
        resolve("pettingzoo:no_such_package.spread").make()


def mpe() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mpe2")


def test_pettingzoos_module_of_mpe2():
    mpe()
    walk = Walk("pettingzoo:mpe2.simple_spread_v3", max_cycles=5)
    for _ in range(5):
        walk.step(0, 1, 2)

    assert walk.spec.agents == ("agent_0", "agent_1", "agent_2")
    assert walk.spec.state_shape == (54,)
    assert walk.spec.max_steps == 5
    assert walk.rows.truncated[4, 0].all()
    assert walk.rows.episode_end(4)[0]
    assert np.array_equal(walk.rows.state[3, 0], walk.rows.obs["agent"][3, 0].ravel())
    spec = read_spec(resolve("pettingzoo:mpe2.simple_speaker_listener_v4"), 0)
    assert [group.name for group in spec.groups] == ["speaker", "listener"]


class Hides(games.Spread):
    """Leaves out the observation of a living agent."""

    hidden = "reset"

    def reset(self, seed=None, options=None):
        obs, infos = super().reset(seed=seed)
        return ({a: o for a, o in obs.items() if a != self.agents[-1]} if self.hidden == "reset" else obs), infos

    def step(self, actions):
        obs, *others = super().step(actions)
        return {a: o for a, o in obs.items() if a != self.agents[-1]}, *others


class HidesLater(Hides):
    hidden = "step"


class Nobody(games.Spread):
    def reset(self, seed=None, options=None):
        result = super().reset(seed=seed)
        self.agents = []
        return result


@pytest.mark.parametrize("kind", [Hides, HidesLater])
def test_a_living_agent_without_an_observation_is_refused(kind):
    env = resolve(kind).make()

    def play():
        env.reset(seed=0)
        env.step(np.zeros(env.action_space.shape, env.action_space.dtype))

    with pytest.raises(InvalidValue, match=f"'{env.agents[-1]}' is in `agents` and has no observation"):
        play()


class Forgets(games.Spread):
    """From the second episode on, `agents` is None or `reset` returns None."""

    def __init__(self, what):
        super().__init__()
        self.what, self.resets = what, 0

    def reset(self, seed=None, options=None):
        result = super().reset(seed=seed)
        self.resets += 1
        if self.resets > 1 and self.what == "agents":
            self.agents = None
        return None if self.resets > 1 and self.what == "reset" else result


@pytest.mark.parametrize(
    ("what", "text"),
    [("agents", "`agents` is None; it must be the list"), ("reset", "two dictionaries by agent.* returned a NoneType")],
)
def test_what_is_forgotten_after_the_first_episode_is_one_line(what, text):
    env = resolve(Forgets, {"what": what}).make()
    env.reset(seed=0)

    with pytest.raises(InvalidValue, match=text):
        env.reset()


def test_a_reset_without_a_living_agent_is_refused():
    with pytest.raises((EnvError, EnvFault), match="no agent is present after reset"):
        read_spec(resolve(Nobody), 0)
