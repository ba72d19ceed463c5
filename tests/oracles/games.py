"""Environments of several agents that do one thing each, for tests."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv


class Masked(ParallelEnv):
    """Two kinds of agents, masks in the infos of one kind; raises at an illegal action. Ends after three steps."""

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
        back = self.see(), dict.fromkeys(each, 1.0), dict.fromkeys(each, over and not self.late)
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


class Stranger(Masked):
    """Somebody comes in who was not announced."""

    def step(self, actions: dict[str, int]) -> Any:
        back = super().step(actions)
        self.agents = [*self.agents, "nobody_0"]
        return back
