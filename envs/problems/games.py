"""Small games of several agents, with what the best play of each is worth. They need nothing beside PettingZoo.

`--env two-step`. What a team earns together is shared out equally, so that the returns of its agents add up to it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo.utils.env import AECEnv, ParallelEnv

CLIMBING = ((11, -30, 0), (-30, 7, 0), (0, 6, 5))  # Claus and Boutilier 1998
TWO_STEP = (((7, 7), (7, 7)), ((0, 1), (1, 8)))  # Rashid et al. 2018: 2A and 2B
Dicts = tuple[dict[str, Any], ...]


class MatrixGame(ParallelEnv[str, np.ndarray, int]):  # type: ignore[misc]
    """Two agents earn `payoff[first's action][second's action]` together.

    Of several matrices the first agent's first action chooses one; then that one is played once. Everybody sees which
    state the game is in, as one-hot: the beginning, or one of the matrices.

    Args:
        payoffs: one or more matrices.
        rounds:  steps of an episode, where there is one matrix.
        swap:    actions that mean their opposite: of the first agent's choice, and of either agent in the matrices.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "matrix_game", "render_modes": []}

    def __init__(self, payoffs: Any, rounds: int = 1, swap: tuple[bool, bool, bool] = (False, False, False)) -> None:
        self.payoffs = [np.array(payoff, float) for payoff in payoffs]
        for axis, swapped in enumerate(swap[1:]):
            self.payoffs = [np.flip(payoff, axis) for payoff in self.payoffs] if swapped else self.payoffs
        if swap[0]:
            self.payoffs.reverse()
        self.rounds, self.render_mode = rounds, None
        self.possible_agents = ["agent_0", "agent_1"]
        self.agents: list[str] = []
        sees = spaces.Box(0.0, 1.0, (1 if len(self.payoffs) == 1 else 1 + len(self.payoffs),), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, sees)
        sizes = zip(self.possible_agents, self.payoffs[0].shape, strict=True)
        self.action_spaces = {agent: spaces.Discrete(size) for agent, size in sizes}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.agents = list(self.possible_agents)
        self._at, self._time = 0, 0
        return self._all(self.state()), self._all({})

    def step(self, actions: dict[str, int]) -> Dicts:
        one, other = (int(actions[agent]) for agent in self.possible_agents)
        chooses = len(self.payoffs) > 1 and self._at == 0
        reward = 0.0 if chooses else float(self.payoffs[max(self._at - 1, 0)][one, other])
        self._time += 1
        if chooses:
            self._at = 1 + one
        over = not chooses and (len(self.payoffs) > 1 or self._time == self.rounds)
        back = self._all(self.state()), self._all(reward / 2), self._all(over), self._all(False), self._all({})
        if over:
            self.agents = []
        return back

    def state(self) -> np.ndarray:
        state = np.zeros(self.observation_spaces["agent_0"].shape, np.float32)
        state[self._at] = 1.0
        return state

    def _all(self, value: Any) -> dict[str, Any]:
        return {agent: value.copy() if hasattr(value, "copy") else value for agent in self.possible_agents}

    def render(self) -> None: ...

    def close(self) -> None: ...


def two_step(permutation: int = 0) -> MatrixGame:
    """The game of the QMIX paper, appendix: 8 is the best, 7 what a sum of values finds.

    Args:
        permutation: 0 to 7; its bits turn round what the first agent's choice means, and the actions in the matrices.
    """
    if not 0 <= permutation < 8:
        raise ValueError(f"permutation must lie between 0 and 7, got {permutation}")
    return MatrixGame(TWO_STEP, swap=(bool(permutation & 1), bool(permutation & 2), bool(permutation & 4)))


def climbing(rounds: int = 1) -> MatrixGame:
    """The climbing game: 11 is the best, and whoever of the two goes for it alone costs 30."""
    return MatrixGame((CLIMBING,), rounds)


def penalty(k: float = -100.0, rounds: int = 1) -> MatrixGame:
    """The penalty game (Claus and Boutilier 1998): 10 where both choose the same end, `k` where they miss."""
    return MatrixGame((((10, 0, k), (0, 2, 0), (k, 0, 10)),), rounds)


class Spread(ParallelEnv[str, np.ndarray, np.ndarray]):  # type: ignore[misc]
    """Agents cover as many places in the plane; together they lose the distance from each place to whoever is nearest.

    An action is a velocity. An agent sees itself, the places and the others from where it is. Out of time after
    `max_cycles` steps; nothing else ends it. Three agents that stand still lose 48 on average.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "spread", "render_modes": []}
    SPEED = 0.15  # per step, in a plane from -1 to 1

    def __init__(self, agents: int = 3, max_cycles: int = 25) -> None:
        self.max_cycles, self.render_mode = max_cycles, None
        self.possible_agents = [f"agent_{number}" for number in range(agents)]
        self.agents: list[str] = []
        sees = spaces.Box(-np.inf, np.inf, (4 * agents,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, sees)
        self.action_spaces = {agent: spaces.Box(-1.0, 1.0, (2,), np.float32) for agent in self.possible_agents}
        self.np_random = seeding.np_random(0)[0]

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.np_random = seeding.np_random(seed)[0]
        self.agents, self._time = list(self.possible_agents), 0
        self._where = self.np_random.uniform(-1.0, 1.0, (len(self.agents), 2))
        self._places = self.np_random.uniform(-1.0, 1.0, (len(self.agents), 2))
        return self._seen(), {agent: {} for agent in self.possible_agents}

    def step(self, actions: dict[str, np.ndarray]) -> Dicts:
        moves = np.stack([actions[agent] for agent in self.possible_agents])
        self._where = np.clip(self._where + self.SPEED * np.clip(moves, -1.0, 1.0), -1.5, 1.5)
        self._time += 1
        apart = np.linalg.norm(self._places[:, None] - self._where, axis=-1)  # [places, agents]
        reward = -float(apart.min(1).sum()) / len(self.possible_agents)
        over = self._time >= self.max_cycles
        if over:
            self.agents = []
        each = self.possible_agents
        truncated = dict.fromkeys(each, over)
        return self._seen(), dict.fromkeys(each, reward), dict.fromkeys(each, False), truncated, {a: {} for a in each}

    def _seen(self) -> dict[str, np.ndarray]:
        seen = {}
        for number, agent in enumerate(self.possible_agents):
            mine = self._where[number]
            others = np.delete(self._where, number, 0)
            parts = [mine[None], self._places - mine, others - mine]
            seen[agent] = np.concatenate(parts).ravel().astype(np.float32)
        return seen

    def render(self) -> None: ...

    def close(self) -> None: ...


class Generations(ParallelEnv[str, np.ndarray, int]):  # type: ignore[misc]
    """Agents that leave and come in the midst of an episode. What each earns is known in advance.

    Agent i gets `WAGE[i]` for each step, 1 more for action 1, and `PARTING[i]` with the last one. It sees the time, and
    how long it will stay. Those of `LATE` run out of time, the others die. With action 1 always, they earn `BEST`.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "generations", "render_modes": []}
    LIVES = ((0, 6), (0, 2), (1, 4), (3, 6))  # the step an agent comes with (0: it is there at first), and leaves with
    WAGE = (1.0, 2.0, 3.0, 4.0)
    PARTING = (10.0, 20.0, 30.0, 40.0)
    LATE = ("agent_0", "agent_2")
    BEST = (22.0, 26.0, 42.0, 55.0)

    def __init__(self) -> None:
        self.render_mode = None
        self.possible_agents = [f"agent_{number}" for number in range(len(self.LIVES))]
        self.agents: list[str] = []
        sees = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, sees)
        self.action_spaces = {agent: spaces.Discrete(2) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._time = 0
        self.agents = [agent for agent in self.possible_agents if self._life(agent)[0] == 0]
        return {agent: self._sees(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Dicts:
        self._time += 1
        rewards = {}
        for agent in self.agents:
            number = self.possible_agents.index(agent)
            rewards[agent] = self.WAGE[number] + float(actions[agent]) + self.PARTING[number] * self._leaves(agent)
        born = [agent for agent in self.possible_agents if self._life(agent)[0] == self._time]
        there = [*self.agents, *born]
        terminated = {agent: self._leaves(agent) and agent not in self.LATE for agent in there}
        truncated = {agent: self._leaves(agent) and agent in self.LATE for agent in there}
        self.agents = [agent for agent in there if not self._leaves(agent)]
        obs = {agent: self._sees(agent) for agent in there}
        return obs, {**dict.fromkeys(born, 0.0), **rewards}, terminated, truncated, {agent: {} for agent in there}

    def _life(self, agent: str) -> tuple[int, int]:
        return self.LIVES[self.possible_agents.index(agent)]

    def _leaves(self, agent: str) -> bool:
        return self._life(agent)[1] == self._time

    def _sees(self, agent: str) -> np.ndarray:
        last = max(end for _, end in self.LIVES)
        return np.array([self._time / last, (self._life(agent)[1] - self._time) / last], np.float32)

    def render(self) -> None: ...

    def close(self) -> None: ...


class TicTacToe(AECEnv[str, dict[str, np.ndarray], int]):  # type: ignore[misc]
    """Two agents in turns; 1 for three in a row, -1 for the other, 0 for a draw. The best play is worth 0.

    An agent sees its own marks, the other's and the free cells; its `action_mask` has these when it is its turn.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "tic_tac_toe", "render_modes": [], "is_parallelizable": False}
    LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))

    def __init__(self) -> None:
        super().__init__()
        self.render_mode = None
        self.possible_agents = ["player_0", "player_1"]
        self.agents: list[str] = []
        marks, free = spaces.Box(0, 1, (3, 9), np.int8), spaces.Box(0, 1, (9,), np.int8)
        self.observation_spaces = {
            agent: spaces.Dict({"observation": marks, "action_mask": free}) for agent in self.possible_agents
        }
        self.action_spaces = {agent: spaces.Discrete(9) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.agents = list(self.possible_agents)
        self.board = np.full(9, -1)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations, self.truncations = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.agent_selection = self.agents[0]

    def observe(self, agent: str) -> dict[str, np.ndarray]:
        me = self.possible_agents.index(agent)
        marks = np.stack([self.board == me, self.board == 1 - me, self.board < 0]).astype(np.int8)
        turn = agent == self.agent_selection and not any(self.terminations.values())
        return {"observation": marks, "action_mask": ((self.board < 0) & turn).astype(np.int8)}

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        if action is None or self.board[action] >= 0:
            raise ValueError(
                f"{agent} cannot play {action}: it is not one of {np.flatnonzero(self.board < 0).tolist()}"
            )
        me, other = self.possible_agents.index(agent), self.possible_agents[agent == self.possible_agents[0]]
        self.board[action] = me
        self._cumulative_rewards[agent] = 0.0
        won = any((self.board[list(line)] == me).all() for line in self.LINES)
        self.rewards = {agent: float(won), other: -float(won)}
        if won or (self.board >= 0).all():
            self.terminations = dict.fromkeys(self.agents, True)
        self.agent_selection = other
        self._accumulate_rewards()

    def render(self) -> None: ...

    def close(self) -> None: ...
