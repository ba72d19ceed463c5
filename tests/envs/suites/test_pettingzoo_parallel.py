"""PettingZoo's parallel view and ours of the same environment in turns tell the same, step for step."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
from pettingzoo.utils.conversions import aec_to_parallel, aec_to_parallel_wrapper, parallel_to_aec
from pettingzoo.utils.env import AECEnv
from pettingzoo.utils.wrappers import AssertOutOfBoundsWrapper, BaseWrapper, OrderEnforcingWrapper

from rltrain.envs.multi_agent.joint_env import as_joint_env
from rltrain.envs.problems.games import Generations, Spread
from rltrain.envs.suites.pettingzoo_parallel import AecToParallel

GAMES = {
    "mpe2.simple_spread_v3": ("mpe2", {"max_cycles": 12}),
    "mpe2.simple_speaker_listener_v4": ("mpe2", {"max_cycles": 12, "continuous_actions": True}),
    "mpe2.simple_tag_v3": ("mpe2", {"max_cycles": 12}),
    "pettingzoo.butterfly.knights_archers_zombies_v11": ("pymunk", {"max_cycles": 400}),
    "pettingzoo.sisl.multiwalker_v9": ("Box2D", {"max_cycles": 40}),
}


def game(module: str) -> Any:
    needs, kwargs = GAMES[module]
    if not all(importlib.util.find_spec(name) for name in (needs, module.partition(".")[0])):
        pytest.skip(f"needs {needs}, of an extra")
    return importlib.import_module(module).parallel_env(**kwargs)


@pytest.mark.filterwarnings("ignore::Warning")  # those of the games, about themselves
@pytest.mark.parametrize("module", GAMES)
def test_a_game_tells_the_same_with_fewer_questions(module: str) -> None:
    theirs, mine = game(module), AecToParallel(game(module))
    rng, sizes = np.random.default_rng(3), set()
    for seed in range(3):
        told, again = (env.reset(seed=seed) for env in (theirs, mine))
        while True:
            np.testing.assert_equal(told, again)
            assert theirs.agents == mine.agents
            assert mine.agents == mine.aec_env.agents
            sizes.add(len(mine.agents))
            if not mine.agents:
                break
            for agent in mine.agents:
                mine.action_space(agent).seed(int(rng.integers(2**31)))
            actions = {agent: mine.action_space(agent).sample() for agent in mine.agents}
            told, again = theirs.step(dict(actions)), mine.step(dict(actions))
    assert len(sizes) > 1
    assert mine.unwrapped is mine.aec_env.unwrapped
    assert (mine.metadata, mine.render_mode) == (theirs.metadata, theirs.render_mode)
    for env in (theirs, mine):
        env.close()


def test_who_is_born_in_the_midst_is_told_of_too() -> None:
    """Of four agents two are there at first; the others come, and all leave, each at its own time."""
    theirs = aec_to_parallel_wrapper(parallel_to_aec(Generations()))
    mine = AecToParallel(aec_to_parallel_wrapper(parallel_to_aec(Generations())))
    told, again = (env.reset(seed=1) for env in (theirs, mine))
    there = []
    while mine.agents:
        there.append(len(mine.agents))
        np.testing.assert_equal(told, again)
        actions = dict.fromkeys(mine.agents, 1)
        told, again = theirs.step(dict(actions)), mine.step(dict(actions))
    np.testing.assert_equal(told, again)
    assert theirs.agents == []
    assert sorted(set(there)) == [2, 3]


class Round(AECEnv[str, np.ndarray, int]):
    """Two agents in turns; it counts what it is asked to observe. If `late`, "b" never has its turn."""

    metadata = {"name": "round", "is_parallelizable": True}  # noqa: RUF012
    render_mode = None

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.possible_agents, self.late, self.seen = ["a", "b"], late, 0
        self.done: list[tuple[str, Any]] = []
        one = Spread()
        self.observation_spaces = {agent: one.observation_space("agent_0") for agent in self.possible_agents}
        self.action_spaces = {agent: one.action_space("agent_0") for agent in self.possible_agents}

    def observation_space(self, agent: str) -> Any:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Any:
        return self.action_spaces[agent]

    def observe(self, agent: str) -> np.ndarray:
        self.seen += 1
        found: np.ndarray = np.zeros(self.observation_spaces[agent].shape, np.float32)
        return found

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.agent_selection = self.possible_agents[:], "a"
        self.terminations, self.truncations = dict.fromkeys("ab", False), dict.fromkeys("ab", False)
        self.rewards, self._cumulative_rewards = dict.fromkeys("ab", 0.0), dict.fromkeys("ab", 0.0)
        self.infos: dict[str, Any] = {"a": {}, "b": {}}

    def step(self, action: Any) -> None:
        self.done.append((self.agent_selection, action))
        self.rewards = {"a": 1.0, "b": 10.0}
        self.agent_selection = "a" if self.late or self.agent_selection == "b" else "b"


def doubled(base: Any) -> Any:
    """A user's wrapper, which changes what is read through it."""

    class Doubled(base):  # type: ignore[misc]
        @property
        def rewards(self) -> dict[str, float]:
            return {agent: 2 * reward for agent, reward in self.env.rewards.items()}

        @rewards.setter
        def rewards(self, value: Any) -> None:
            """Not here."""

    return Doubled


def test_everybody_is_observed_once_and_all_actions_go_through_the_wrappers() -> None:
    env = Round()
    mine = AecToParallel(aec_to_parallel(OrderEnforcingWrapper(AssertOutOfBoundsWrapper(env))))
    mine.reset()
    env.seen = 0
    action = env.action_space("a").sample()
    _, rewards, *_ = mine.step({"a": action, "b": action})

    assert env.seen == 2
    assert rewards == {"a": 2.0, "b": 20.0}
    assert [agent for agent, _ in env.done] == ["a", "b"]
    with pytest.raises(AssertionError, match="action is not in action space"):
        mine.step({"a": np.full(99, 7.0), "b": action})


@pytest.mark.parametrize("base", [BaseWrapper, OrderEnforcingWrapper])
def test_what_a_wrapper_of_a_users_own_changes_is_seen(base: Any) -> None:
    env = Round()
    view = aec_to_parallel(OrderEnforcingWrapper(doubled(base)(AssertOutOfBoundsWrapper(env))))
    mine = AecToParallel(view)
    action = env.action_space("a").sample()
    for each in (view, mine):
        each.reset()
        _, rewards, *_ = each.step({"a": action, "b": action})
        assert rewards == {"a": 4.0, "b": 40.0}


def test_who_acts_out_of_turn_is_named() -> None:
    mine = AecToParallel(aec_to_parallel(Round(late=True)))
    mine.reset()
    action = mine.action_space("a").sample()

    with pytest.raises(AssertionError, match="agent 'b' should act, and 'a' does"):
        mine.step({"a": action, "b": action})


def test_only_pettingzoos_own_view_is_replaced() -> None:
    class Own(aec_to_parallel_wrapper[str, np.ndarray, int]):
        """A user's, which may do other things in a step."""

    view, own, spread, patched = aec_to_parallel(Round()), Own(Round()), Spread(), aec_to_parallel(Round())
    plain = patched.step
    patched.step = lambda actions: plain(actions)  # type: ignore[method-assign]

    assert type(as_joint_env(view, "round", "all").game) is AecToParallel
    for game in (own, spread, patched):
        assert as_joint_env(game, "round", "all").game is game
