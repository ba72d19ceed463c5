"""Environments of several agents whose agents come, go, and answer as they should not."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from harmless import late
from pettingzoo import AECEnv, ParallelEnv

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


class NoneAtReset(Team):
    """reset returns None."""

    EXPECT = {"status": 2, "says": r"reset\(\)"}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed)


class NoneAtLaterReset(Team):
    """reset returns None from the third time on."""

    EXPECT = {"status": [1, 2], "says": r"reset"}
    resets = 0

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        result = super().reset(seed)
        return None if self.resets > 2 else result


class ObservationNone(Team):
    """The observation of a living agent is None."""

    EXPECT = {"when": ["reset", "step", "later"], "says": r"observation.*None"}

    def spoil(self, values: Any) -> Any:
        values[0]["a"] = None
        return values


class OneInfoNone(Team):
    """The info of an agent is a list: taken, or refused."""

    EXPECT = {"when": ["reset", "step", "later"], "status": [0, 1, 2], "says": r"info", "twin": "Team"}

    def spoil(self, values: Any) -> Any:
        values[4]["b"] = [1]
        return values


class AgentsNone(Team):
    """`agents` is None after the end of an episode."""

    EXPECT = {"status": [0, 1, 2], "says": r"agents", "twin": "Team"}

    def spoil(self, values: Any) -> Any:
        if not self.agents:
            self.agents = None  # type: ignore[assignment]
        return values


class LeavesSilently(Team):
    """An agent leaves `agents` at the third step without an end, and is in no dict any more."""

    EXPECT = {"twin": None}

    def spoil(self, values: Any) -> Any:
        if self.clock == 3 and "b" in self.agents:
            self.agents = [name for name in self.agents if name != "b"]
            for part in values:
                part.pop("b", None)
        return values


class DieInOrder(Team):
    """The agents terminate one after the other, the last one at the third step, and the order is that of the names."""

    EXPECT = {"twin": None, "algos": ["ppo", "mappo", "qmix"]}

    def spoil(self, values: Any) -> Any:
        name = NAMES[min(self.clock, 3) - 1]
        if name in values[2]:
            values[2][name] = True
            self.agents = [other for other in self.agents if other != name]
        return values


class OneLeft(Team):
    """Each episode begins with another single agent."""

    EXPECT = {"twin": None, "algos": ["ppo", "mappo"]}
    episodes = 0

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed)
        self.episodes += 1
        self.agents = [NAMES[self.episodes % 3]]
        return self.observations(), {name: {} for name in self.agents}


class DeadRewards(Team):
    """A dead agent still gets rewards, observations and infos."""

    EXPECT = {"twin": None}

    def spoil(self, values: Any) -> Any:
        if self.clock == 2:
            values[2]["b"] = True
            self.agents = [name for name in self.agents if name != "b"]
        if self.clock > 2:
            values[0]["b"], values[1]["b"], values[2]["b"], values[3]["b"], values[4]["b"] = (
                np.zeros(2, np.float32), 5.0, True, False, {},
            )  # fmt: skip
        return values


class EndsButStays(Team):
    """An agent terminates and stays in `agents`."""

    EXPECT = {"twin": None, "status": [0, 1, 2], "says": "'b'|agents"}

    def spoil(self, values: Any) -> Any:
        if self.clock >= 3 and "b" in values[2]:
            values[2]["b"] = True
        return values


class OddNames(Team):
    """Agents whose names are empty, or have slashes, line ends and other letters."""

    EXPECT = {"twin": None, "flags": "--share none"}
    names = ("", "a/b\n", "\u00e9\u4e2d")

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.possible_agents = list(self.names)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.clock = list(self.names), 0
        self.places = dict.fromkeys(self.names, 0)
        return self.observations(), {name: {} for name in self.agents}


class SpacesChange(Team):
    """An agent's observation space has another shape after the first reset."""

    EXPECT = {"status": 2, "says": r"shape|space"}
    resets = 0

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        return super().reset(seed)

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-20.0, 20.0, (2 if self.resets < 2 else 3,), np.float32)

    def observations(self) -> dict[str, Any]:
        return {name: np.zeros(2 if self.resets < 2 else 3, np.float32) for name in self.agents}


class OneMask(Team):
    """One agent of three has an action mask in its info."""

    EXPECT = {"twin": None}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        obs, infos = super().reset(seed)
        return obs, self.mark(infos)

    def spoil(self, values: Any) -> Any:
        self.mark(values[4])
        return values

    def mark(self, infos: Any) -> Any:
        if "a" in infos:
            infos["a"]["action_mask"] = np.array([1, 0], np.int8)
        return infos


class Game(AECEnv):
    """Two agents that act in turns for six turns. A twin."""

    EXPECT = {"twin": None, "algos": ["ppo", "mappo", "qmix"]}
    metadata = {"name": "game", "is_parallelizable": False}
    render_mode = None

    def __init__(self, when: str = "") -> None:
        self.when = when
        self.possible_agents = ["a", "b"]

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-20.0, 20.0, (2,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2)

    def observe(self, agent: str) -> Any:
        return np.array([self.place, self.clock], np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = list(self.possible_agents)
        self.place = self.clock = 0
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {name: {} for name in self.agents}
        self.agent_selection = self.agents[0]

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self.clock += 1
        self.place += 1 if action else -1
        self._cumulative_rewards[agent] = 0.0
        self.rewards = dict.fromkeys(self.agents, float(self.place))
        if self.clock >= 6:
            self.truncations = dict.fromkeys(self.agents, True)
        self.disturb(agent)
        self._accumulate_rewards()
        number = self.agents.index(agent) + 1
        others = [name for name in self.agents[number:] + self.agents[:number] if not self.terminations[name]]
        self.agent_selection = others[0] if others else agent
        self._deads_step_first()

    def disturb(self, agent: str) -> None:
        """What a hostile game does."""


class GameOneDies(Game):
    """In a game of turns the agent that acts terminates at the third turn; the other goes on."""

    EXPECT = {"twin": None, "algos": ["ppo", "mappo", "qmix"]}

    def disturb(self, agent: str) -> None:
        if self.clock == 3:
            self.terminations[agent] = True


class GameOtherDies(Game):
    """In a game of turns the agent that does not act terminates at the third turn."""

    EXPECT = {"twin": None}

    def disturb(self, agent: str) -> None:
        if self.clock == 3:
            self.terminations["b" if agent == "a" else "a"] = True


class GameObservesNone(Game):
    """In a game of turns observe() returns None for the agent that does not act."""

    EXPECT = {"status": 2, "says": "observation"}

    def observe(self, agent: str) -> Any:
        return super().observe(agent) if agent == self.agent_selection else None


class GameStops(Game):
    """In a game of turns the next agent is one that is not there."""

    EXPECT = {"status": [1, 2], "says": "nobody|agent", "traceback": None}

    def step(self, action: Any) -> None:
        super().step(action)
        self.agent_selection = "nobody"


class GameHangs(Game):
    """In a game of turns a terminated agent never leaves, whatever it is asked."""

    EXPECT = {"status": [1, 2], "says": "actor-timeout|agent|leave", "flags": "--actor-timeout 3", "workers": [2]}

    def disturb(self, agent: str) -> None:
        if self.clock == 2:
            self.terminations[agent] = True

    def step(self, action: Any) -> None:
        if self.terminations[self.agent_selection]:
            return
        super().step(action)
