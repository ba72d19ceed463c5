"""Environments of several agents that do one thing each, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import AECEnv, ParallelEnv


class Masked(ParallelEnv):
    """Two kinds of agents, masks in the infos of one kind; raises at an illegal action. Ends after three steps.

    Rewards are 1, 2, 3 in the order of `possible_agents`.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "masked"}

    def __init__(self, late: bool = False) -> None:
        self.possible_agents = ["scout_0", "guard_0", "scout_1"]
        self.agents: list[str] = []
        self.late = late  # out of time, in place of dead

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-9.0, 9.0, (2 if agent.startswith("scout") else 3,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2, start=5) if agent.startswith("scout") else spaces.Discrete(4)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.time = list(self.possible_agents), 0
        return self.see(), self.tell()

    def see(self) -> dict[str, np.ndarray]:
        shapes = {agent: self.observation_space(agent).shape for agent in self.possible_agents}
        return {a: np.full(shapes[a], self.time + 0.1 * n, np.float32) for n, a in enumerate(self.possible_agents)}

    def tell(self) -> dict[str, Any]:
        return {"scout_0": {}, "scout_1": {}, "guard_0": {"action_mask": np.arange(4) == 1 + self.time % 3}}

    def step(self, actions: dict[str, int]) -> Any:
        assert set(actions) == set(self.possible_agents)
        assert actions["guard_0"] == 1 + self.time % 3
        assert {actions["scout_0"], actions["scout_1"]} <= {5, 6}
        self.time += 1
        over = self.time == 3
        each = self.possible_agents
        back = self.see(), {agent: 1.0 + n for n, agent in enumerate(each)}, dict.fromkeys(each, over and not self.late)
        if over:
            self.agents = []
        return *back, dict.fromkeys(each, over and self.late), self.tell()


class Pair(gymnasium.Env[Any, Any]):
    """A tuple of two agents with other spaces each, as lbforaging makes them. Out of time after four steps."""

    observation_space = spaces.Tuple((spaces.Box(0.0, 9.0, (2,), np.float32), spaces.Discrete(5, start=3)))
    action_space = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3)))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def see(self) -> Any:
        return np.full(2, self.time, np.float32), 3 + self.time

    def step(self, action: Any) -> Any:
        assert isinstance(action, tuple)
        self.time += 1
        return self.see(), [float(action[0]), float(-action[1])], False, self.time == 4, {}


class MaskedPair(Pair):
    """Its info has a mask for each agent: what was done last is not legal next, and at first the first is not.

    Args:
        told: what its info has instead, of the masks [2] and [3] and the time.
    """

    def __init__(self, told: Callable[[Any, int], Any] = lambda masks, time: masks) -> None:
        self.told = told

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0], self.info((0, 0))

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], self.info(action)

    def info(self, action: Any) -> Any:
        return {"action_mask": self.told((np.arange(2) != action[0], np.arange(3) != action[1]), self.time)}


class Stranger(Masked):
    """Somebody comes in who was not announced."""

    def step(self, actions: dict[str, int]) -> Any:
        back = super().step(actions)
        self.agents = [*self.agents, "nobody_0"]
        return back


class Leaves(gymnasium.Env[Any, Any]):
    """A tuple of two agents, of which the first runs out of time in step 2; it goes on to say so, and to pay both 1.

    The second dies in step 4.
    """

    observation_space = spaces.Tuple((spaces.Box(0.0, 9.0, (1,), np.float32),) * 2)
    action_space = spaces.Tuple((spaces.Discrete(2),) * 2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def see(self) -> Any:
        return (np.full(1, self.time, np.float32),) * 2

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.see(), [1.0, 1.0], [False, self.time == 4], [self.time >= 2, False], {}


class Forages(Pair):
    """As lbforaging and rware, which say that an episode is over when its time is: `found` the food, or not."""

    def __init__(self, found: bool = False, rware: bool = False) -> None:
        self.found, self.rware = found, rware
        if rware:
            self.max_steps = 4
        else:
            self._max_episode_steps = 4

    def step(self, action: Any) -> Any:
        obs, rewards, _, over, info = super().step(action)
        if self.rware:
            self._cur_steps = self.time
        else:
            self.current_step, self.field = self.time, np.zeros((2, 2)) if self.found else np.eye(2)
        return obs, rewards, over, False, info


class Two(ParallelEnv):
    """Two agents alike that see the time. `how` it is not as it should be: see `step` and `reset`."""

    metadata: ClassVar[dict[str, Any]] = {"name": "two"}

    def __init__(self, how: str = "") -> None:
        self.possible_agents, self.how = ["a_0", "a_1"], how
        self.agents: list[str] = []
        self.render_mode = None
        if how.startswith("state"):
            self.state = self.state_of

    def state_of(self) -> np.ndarray:
        if self.how == "state raises":
            raise TypeError("the state is broken")
        return np.concatenate([np.full(1, self.time, np.float32) for _ in self.agents or [None]])

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(0.0, 9.0, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.time = list(self.possible_agents), 0
        return self.see() if self.how == "old reset" else (self.see(), {agent: {} for agent in self.agents})

    def see(self) -> dict[str, np.ndarray]:
        return {agent: np.full(1, self.time, np.float32) for agent in self.possible_agents}

    def step(self, actions: dict[str, int]) -> Any:
        self.time += 1
        each = self.possible_agents
        none: dict[str, Any] = {agent: {} for agent in each}
        if self.how == "old step":
            return self.see(), dict.fromkeys(each, 0.0), dict.fromkeys(each, False), none
        if self.how == "late mask":
            none["a_1"] = {"action_mask": np.array([0, 1])}
        if self.time == 3:
            self.agents = []  # without a word
        elif self.how == "state":
            self.agents = ["a_0"]
        return self.see(), dict.fromkeys(each, 1.0), dict.fromkeys(each, False), dict.fromkeys(each, False), none


class InTurns(AECEnv):
    """Two agents that act in turns, two actions each; what they see is made by `observe`, who is paid what by `pay`."""

    metadata: ClassVar[dict[str, Any]] = {"name": "in_turns", "is_parallelizable": False}
    players, actions = 2, 2

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = [f"a_{number}" for number in range(self.players)]
        self.render_mode = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(0.0, 9.0, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(self.actions)

    def observe(self, agent: str) -> np.ndarray:
        return np.ones(1, np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.time = list(self.possible_agents), 0
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations, self.truncations = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.agent_selection = "a_0"

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        other = self.possible_agents[1 - self.possible_agents.index(agent)]
        self.time += 1
        over = self.pay(agent, other, action)
        self.terminations = dict.fromkeys(self.agents, over)
        self.agent_selection = other

    def pay(self, agent: str, other: str, action: Any) -> bool:
        """Make the rewards of this turn, and say whether it is the last."""
        raise NotImplementedError


class EndOfRound(InTurns):
    """Three rounds; who plays 1 is paid 1, the other twice that, both when the round is over."""

    def observe(self, agent: str) -> np.ndarray:
        return np.full(1, self.time // 2, np.float32)

    def pay(self, agent: str, other: str, action: Any) -> bool:
        if agent == "a_0":  # `rewards` stand as they are until the round is over
            self.first = action
        else:
            self.rewards = {"a_0": float(self.first + 2 * action), "a_1": float(action + 2 * self.first)}
            self._accumulate_rewards()
        return self.time == 6


class Toll(InTurns):
    """Ten turns each, in which nobody sees anything. Action 0 costs its agent 1; each turn of the other pays it 10.

    The best is never 0, and worth 200 together.
    """

    def pay(self, agent: str, other: str, action: Any) -> bool:
        self.rewards = {agent: -float(action == 0), other: 10.0}
        self._accumulate_rewards()
        return self.time == 20


class ThreeInTurns(InTurns):
    """Three players in turns, three rounds, four actions. A player's return is the sum of its actions.

    They see the time only. The third player is out after the second round.

    Args:
        late: the third player is out of time then, and so are the others at the end.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "three_in_turns", "is_parallelizable": False}
    players, actions = 3, 4

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late = late

    def observe(self, agent: str) -> np.ndarray:
        return np.full(1, self.time, np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        super().reset(seed, options)
        self.order = [agent for _ in range(2) for agent in self.possible_agents] + ["a_0", "a_1"]

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        self.rewards = {name: float(action) * (name == agent) for name in self.agents}
        self.time += 1
        ends = self.truncations if self.late else self.terminations
        if self.time == 6:
            ends["a_2"] = True
        if self.time == len(self.order):
            ends.update(dict.fromkeys(self.agents, True))
        else:
            self.agent_selection = self.order[self.time]
        self._accumulate_rewards()
        self._deads_step_first()


class ThreeAtOnce(ParallelEnv):
    """Three players at once, four steps, four actions. A player's return is the sum of its actions.

    They see the time only. The third player is out after three steps.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "three_at_once"}

    def __init__(self) -> None:
        self.possible_agents = ["a_0", "a_1", "a_2"]
        self.render_mode = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(0.0, 9.0, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(4)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.time = list(self.possible_agents), 0
        return self.see(self.agents), {agent: {} for agent in self.agents}

    def see(self, agents: list[str]) -> dict[str, np.ndarray]:
        return {agent: np.full(1, self.time, np.float32) for agent in agents}

    def step(self, actions: dict[str, int]) -> Any:
        self.time += 1
        now = self.agents
        out = {agent: self.time == (3 if agent == "a_2" else 4) for agent in now}
        self.agents = [agent for agent in now if not out[agent]]
        rewards = {agent: float(actions[agent]) for agent in now}
        return self.see(now), rewards, out, dict.fromkeys(now, False), {agent: {} for agent in now}
