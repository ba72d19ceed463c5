"""Environments of several agents whose agents come, go, and answer as they should not."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from harmless import late
from pettingzoo import ParallelEnv

NAMES = ["a", "b", "c"]


class Team(ParallelEnv):
    """Three agents that walk on a line for six steps. A twin."""

    EXPECT = {"twin": None}
    metadata = {"name": "team"}
    render_mode = None

    def __init__(self, when: str = "") -> None:
        self.when = when
        self.possible_agents = list(NAMES)
        self.agents: list[str] = []
        self.rng = np.random.default_rng(0)
        self.clock = self.steps = 0

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-20.0, 20.0, (2,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents, self.clock = list(self.possible_agents), 0
        self.places = {name: int(self.rng.integers(-3, 4)) for name in NAMES}
        values = [self.observations(), {}, {}, {}, {name: {} for name in self.agents}]
        if self.when == "reset":
            values = self.spoil(values)
        return values[0], values[4]

    def step(self, actions: dict[str, Any]) -> Any:
        self.steps += 1
        self.clock += 1
        for name, action in actions.items():
            self.places[name] += 1 if action else -1
        living = list(self.agents)
        over = self.clock >= 6
        values: list[Any] = [
            self.observations(),
            {name: float(self.places[name]) for name in living},
            dict.fromkeys(living, False),
            dict.fromkeys(living, over),
            {name: {} for name in living},
        ]
        if over:
            self.agents = []
        if self.when in ("", "step") or (self.when == "later" and late(self.steps)):
            values = self.spoil(values)
        return tuple(values)

    def observations(self) -> dict[str, Any]:
        return {name: np.array([self.places[name], self.clock], np.float32) for name in self.agents}

    def spoil(self, values: Any) -> Any:
        return values


class Dies(Team):
    """An agent terminates at the third step."""

    EXPECT = {"twin": None, "algos": ["ppo", "mappo", "qmix"]}

    def spoil(self, values: Any) -> Any:
        if self.clock == 3 and "b" in values[2]:
            values[2]["b"] = True
            self.agents = [name for name in self.agents if name != "b"]
        return values


class Returns(Team):
    """An agent dies and comes back two steps later."""

    EXPECT = {"twin": None, "status": [0, 1, 2], "says": r"'?b'?"}

    def spoil(self, values: Any) -> Any:
        if self.clock == 2:
            values[2]["b"] = True
            self.agents = [name for name in self.agents if name != "b"]
        elif self.clock == 4:
            self.agents = ["a", "b", "c"]
            values[0]["b"] = np.zeros(2, np.float32)
        return values


class AllDie(Team):
    """All agents terminate, one after the other."""

    EXPECT = {"twin": None}

    def spoil(self, values: Any) -> Any:
        name = NAMES[self.clock % 3]
        if name in values[2]:
            values[2][name] = True
            self.agents = [other for other in self.agents if other != name]
        return values


class Vanishes(Team):
    """A living agent is missing from the observations."""

    EXPECT = {
        "when": ["later"],
        "twin": None,
        "status": [0, 1],
        "says": r"'?b'?.*(missing|no observation|absent)",
        "notes": r"'?b'?",
    }

    def spoil(self, values: Any) -> Any:
        values[0].pop("b", None)
        return values


class Order(Team):
    """The order of agents changes with each step."""

    EXPECT = {"twin": "Team"}

    def spoil(self, values: Any) -> Any:
        self.agents = self.agents[::-1]
        return [dict(reversed(part.items())) for part in values]


class NobodyAtReset(Team):
    """No agent is alive at reset."""

    EXPECT = {"status": 2, "says": r"agent"}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed)
        self.agents = []
        return {}, {}


class NoRewards(Team):
    """The reward of an agent is missing."""

    EXPECT = {"when": ["step", "later"], "status": [0, 1, 2], "twin": None, "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        values[1].pop("b", None)
        return values


class ArrayRewards(Team):
    """Rewards that are arrays of two."""

    EXPECT = {"when": ["step", "later"], "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        values[1] = {name: np.zeros(2) for name in values[1]}
        return values


class NanRewards(Team):
    """nan as the reward of one agent."""

    EXPECT = {"when": ["step", "later"], "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        values[1]["c"] = float("nan")
        return values


class TextRewards(Team):
    """Text as the reward of one agent."""

    EXPECT = {"when": ["step", "later"], "says": r"reward"}

    def spoil(self, values: Any) -> Any:
        values[1]["c"] = "1.0"
        return values


class OneShape(Team):
    """One agent's observation has another shape."""

    EXPECT = {"when": ["reset", "step", "later"], "says": r"shape"}

    def spoil(self, values: Any) -> Any:
        if "c" in values[0]:
            values[0]["c"] = np.zeros(1, np.float32)
        return values


class OneNan(Team):
    """One agent's observation holds nan."""

    EXPECT = {"when": ["reset", "step", "later"], "says": r"nan|finite"}

    def spoil(self, values: Any) -> Any:
        if "c" in values[0]:
            values[0]["c"] = np.full(2, np.nan, np.float32)
        return values


class Stranger(Team):
    """An agent that was never announced."""

    EXPECT = {"when": ["step", "later"], "says": r"stranger"}

    def spoil(self, values: Any) -> Any:
        for part, value in zip(values, (np.zeros(2, np.float32), 0.0, False, False, {}), strict=True):
            part["stranger"] = value
        self.agents = [*self.agents, "stranger"]
        return values


class FlagNone(Team):
    """None as terminated of one agent."""

    EXPECT = {"when": ["step", "later"], "says": r"terminat"}

    def spoil(self, values: Any) -> Any:
        values[2]["a"] = None
        return values


class NoInfos(Team):
    """Infos without agents."""

    EXPECT = {"twin": "Team"}

    def spoil(self, values: Any) -> Any:
        return [*values[:4], {}]


class FourDicts(Team):
    """step returns four dicts."""

    EXPECT = {"when": ["step", "later"], "says": r"4|5|five"}

    def spoil(self, values: Any) -> Any:
        return values[:4]


class SpacesAsDicts(Team):
    """observation_spaces and action_spaces as dicts, without the methods."""

    EXPECT = {"twin": "Team"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.observation_spaces = {name: Team.observation_space(self, name) for name in NAMES}
        self.action_spaces = {name: Team.action_space(self, name) for name in NAMES}


class NoNames(Team):
    """No possible_agents."""

    EXPECT = {"twin": None, "status": [0, 2], "says": r"possible_agents"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        del self.possible_agents

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.possible_agents = list(NAMES)
        values = super().reset(seed)
        del self.possible_agents
        return values


class TwoOfOneName(Team):
    """Two agents of one name."""

    EXPECT = {"twin": None, "status": 2, "says": r"name|twice|possible_agents"}

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.possible_agents = ["a", "b", "b"]


class StateShape(Team):
    """state() has another shape than state_space."""

    EXPECT = {"status": 2, "says": r"state", "algos": ["mappo", "qmix"]}
    state_space = spaces.Box(-20.0, 20.0, (3,), np.float32)

    def state(self) -> Any:
        return np.zeros(4, np.float32)


class StateNan(Team):
    """state() holds nan."""

    EXPECT = {"status": [1, 2], "says": r"state|nan|finite", "algos": ["mappo", "qmix"]}
    state_space = spaces.Box(-20.0, 20.0, (3,), np.float32)

    def state(self) -> Any:
        return np.full(3, np.nan, np.float32)


class StateRaises(Team):
    """state() raises."""

    EXPECT = {"status": [1, 2], "says": r"no state", "traceback": None, "algos": ["mappo", "qmix"]}
    state_space = spaces.Box(-20.0, 20.0, (3,), np.float32)

    def state(self) -> Any:
        raise RuntimeError("no state")


class ManySpaces(Team):
    """Observations that are a Dict with Discrete and MultiDiscrete parts, and MultiDiscrete actions."""

    EXPECT = {"twin": None, "algos": ["ppo", "mappo", "qmix", "iql", "vdn"]}

    def observation_space(self, agent: str) -> Any:
        return spaces.Dict(
            place=spaces.Box(-20.0, 20.0, (1,)), clock=spaces.MultiDiscrete([7, 2]), own=spaces.Discrete(3)
        )

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3, start=-1)

    def observations(self) -> dict[str, Any]:
        return {
            name: {"place": np.array([self.places[name]], np.float32), "clock": np.array([self.clock, 1]), "own": 2}
            for name in self.agents
        }
