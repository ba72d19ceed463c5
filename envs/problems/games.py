"""Small games of several agents with known optimal returns. They only need PettingZoo.

`--env two-step`. A team's reward is divided equally, so that the returns of its agents add up to the team's return.
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
    """Two agents get the reward `payoff[action of the first][action of the second]` together.

    If there are several matrices, the first agent's first action chooses one, which is then played once. All agents
    observe the state of the game as one-hot: the beginning, or one of the matrices.

    Args:
        payoffs: one or more matrices.
        rounds:  steps of an episode with a single matrix.
        swap:    whether to reverse the order of the actions: of the choice, and of each agent in the matrices.
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
        states = 1 if len(self.payoffs) == 1 else 1 + len(self.payoffs)
        one_hot = spaces.Box(0.0, 1.0, (states,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, one_hot)
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
        first, second = (int(actions[agent]) for agent in self.possible_agents)
        chooses = len(self.payoffs) > 1 and self._at == 0
        reward = 0.0 if chooses else float(self.payoffs[max(self._at - 1, 0)][first, second])
        self._time += 1
        if chooses:
            self._at = 1 + first
        over = not chooses and (len(self.payoffs) > 1 or self._time == self.rounds)
        result = self._all(self.state()), self._all(reward / 2), self._all(over), self._all(False), self._all({})
        if over:
            self.agents = []
        return result

    def state(self) -> np.ndarray:
        state = np.zeros(self.observation_spaces["agent_0"].shape, np.float32)
        state[self._at] = 1.0
        return state

    def _all(self, value: Any) -> dict[str, Any]:
        return {agent: value.copy() if hasattr(value, "copy") else value for agent in self.possible_agents}

    def render(self) -> None: ...

    def close(self) -> None: ...


def two_step(permutation: int = 0) -> MatrixGame:
    """The two-step game of the QMIX paper, appendix: the best return is 8; methods that sum values find 7.

    Args:
        permutation: 0 to 7; each bit reverses the actions of a decision: the choice, and each agent's in the matrices.
    """
    if not 0 <= permutation < 8:
        raise ValueError(f"permutation must lie between 0 and 7, got {permutation}")
    return MatrixGame(TWO_STEP, swap=(bool(permutation & 1), bool(permutation & 2), bool(permutation & 4)))


def climbing(rounds: int = 1) -> MatrixGame:
    """The climbing game: the best reward is 11; if only one of the agents tries for it, the reward is -30."""
    return MatrixGame((CLIMBING,), rounds)


def penalty(k: float = -100.0, rounds: int = 1) -> MatrixGame:
    """The penalty game (Claus and Boutilier 1998): 10 if both choose the same corner, `k` for different corners."""
    return MatrixGame((((10, 0, k), (0, 2, 0), (k, 0, 10)),), rounds)


class Spread(ParallelEnv[str, np.ndarray, np.ndarray]):  # type: ignore[misc]
    """Agents cover as many places in the plane. Team reward: minus the distances from each place to the nearest agent.

    An action is a velocity. An agent observes its position, and the places and other agents relative to it. Episodes
    are truncated after `max_cycles` steps. The return of three agents that do not move is -48 on average.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "spread", "render_modes": []}
    SPEED = 0.15  # per step, in a plane from -1 to 1

    def __init__(self, agents: int = 3, max_cycles: int = 25) -> None:
        self.max_cycles, self.render_mode = max_cycles, None
        self.possible_agents = [f"agent_{number}" for number in range(agents)]
        self.agents: list[str] = []
        positions = spaces.Box(-np.inf, np.inf, (4 * agents,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, positions)
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
        self._positions = self.np_random.uniform(-1.0, 1.0, (len(self.agents), 2))
        self._places = self.np_random.uniform(-1.0, 1.0, (len(self.agents), 2))
        return self._observations(), {agent: {} for agent in self.possible_agents}

    def step(self, actions: dict[str, np.ndarray]) -> Dicts:
        moves = np.stack([actions[agent] for agent in self.possible_agents])
        self._positions = np.clip(self._positions + self.SPEED * np.clip(moves, -1.0, 1.0), -1.5, 1.5)
        self._time += 1
        distance = np.linalg.norm(self._places[:, None] - self._positions, axis=-1)  # [places, agents]
        reward = -float(distance.min(1).sum()) / len(self.possible_agents)
        over = self._time >= self.max_cycles
        if over:
            self.agents = []
        rewards, terminated, truncated = (dict.fromkeys(self.possible_agents, x) for x in (reward, False, over))
        return self._observations(), rewards, terminated, truncated, {agent: {} for agent in self.possible_agents}

    def _observations(self) -> dict[str, np.ndarray]:
        observations = {}
        for number, agent in enumerate(self.possible_agents):
            own = self._positions[number]
            others = np.delete(self._positions, number, 0)
            parts = [own[None], self._places - own, others - own]
            observations[agent] = np.concatenate(parts).ravel().astype(np.float32)
        return observations

    def render(self) -> None: ...

    def close(self) -> None: ...


class Generations(ParallelEnv[str, np.ndarray, int]):  # type: ignore[misc]
    """Agents that join and leave during an episode, with known returns.

    Agent i gets the reward `WAGE[i]` per step, 1 more for action 1, and `PARTING[i]` in its last step. It observes the
    time and its remaining steps. Agents in `LATE` are truncated, the others terminated. The best action is always 1,
    with the returns `BEST`.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "generations", "render_modes": []}
    LIVES = ((0, 6), (0, 2), (1, 4), (3, 6))  # the steps before which an agent joins and after which it leaves
    WAGE = (1.0, 2.0, 3.0, 4.0)
    PARTING = (10.0, 20.0, 30.0, 40.0)
    LATE = ("agent_0", "agent_2")
    BEST = (22.0, 26.0, 42.0, 55.0)

    def __init__(self) -> None:
        self.render_mode = None
        self.possible_agents = [f"agent_{number}" for number in range(len(self.LIVES))]
        self.agents: list[str] = []
        times = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, times)
        self.action_spaces = {agent: spaces.Discrete(2) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._time = 0
        self.agents = [agent for agent in self.possible_agents if self._life(agent)[0] == 0]
        return {agent: self._observation(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Dicts:
        self._time += 1
        rewards = {}
        for agent in self.agents:
            number = self.possible_agents.index(agent)
            rewards[agent] = self.WAGE[number] + float(actions[agent]) + self.PARTING[number] * self._leaves(agent)
        born = [agent for agent in self.possible_agents if self._life(agent)[0] == self._time]
        present = [*self.agents, *born]
        terminated = {agent: self._leaves(agent) and agent not in self.LATE for agent in present}
        truncated = {agent: self._leaves(agent) and agent in self.LATE for agent in present}
        self.agents = [agent for agent in present if not self._leaves(agent)]
        obs = {agent: self._observation(agent) for agent in present}
        return obs, {**dict.fromkeys(born, 0.0), **rewards}, terminated, truncated, {agent: {} for agent in present}

    def _life(self, agent: str) -> tuple[int, int]:
        return self.LIVES[self.possible_agents.index(agent)]

    def _leaves(self, agent: str) -> bool:
        return self._life(agent)[1] == self._time

    def _observation(self, agent: str) -> np.ndarray:
        last = max(end for _, end in self.LIVES)
        return np.array([self._time / last, (self._life(agent)[1] - self._time) / last], np.float32)

    def render(self) -> None: ...

    def close(self) -> None: ...


class TicTacToe(AECEnv[str, dict[str, np.ndarray], int]):  # type: ignore[misc]
    """Two agents in turns: reward 1 for three in a row, -1 for the other agent, 0 for a draw, the optimal result.

    An agent observes its own marks, the other's, and the free cells, which are its legal actions when it is its turn.
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
