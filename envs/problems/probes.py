"""Tiny environments with known answers: a wrong result tells which part of an algorithm is broken.

`--env probe:two-steps`. V is the value of the first observation under the best policy. `PROBES` lists all probes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformObservation

from rltrain.envs.errors import EnvError

Step = tuple[Any, float, bool, bool, dict[str, Any]]
UNIT = spaces.Box(-1.0, 1.0, (1,), np.float32)


def _unit(value: float) -> np.ndarray:
    return np.array([value], np.float32)


class OneStep(gymnasium.Env[Any, Any]):
    """Episodes of one step: draw an observation, take an action, get `reward(observation, action)`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        draw: Callable[[np.random.Generator], Any],
        reward: Callable[[Any, Any], float],
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self._draw, self._reward = draw, reward
        self._obs: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._obs = self._draw(self.np_random)
        return self._obs, {}

    def step(self, action: Any) -> Step:
        return self._obs, float(self._reward(self._obs, action)), True, False, {}


def constant() -> OneStep:
    """One action, reward 1: V = 1. Wrong: the value loss or its optimiser."""
    return OneStep(UNIT, spaces.Discrete(1), lambda rng: _unit(0.0), lambda obs, action: 1.0)


def obs_reward() -> OneStep:
    """One action; the reward is the observation, -1 or 1: V = observation. Wrong: rows of a batch are mixed up."""
    return OneStep(UNIT, spaces.Discrete(1), lambda rng: _unit(2.0 * rng.integers(2) - 1.0), lambda obs, action: obs[0])


def choice() -> OneStep:
    """Two actions, reward 1 for the second, -1 for the first: V = 1. Wrong: the policy's loss or its sign."""
    return OneStep(UNIT, spaces.Discrete(2), lambda rng: _unit(0.0), lambda obs, action: 2.0 * action - 1.0)


def choice_given_obs() -> OneStep:
    """The observation is -1 or 1; reward 1 for action 0 or 1 to match, else -1: V = 1. Wrong: rows are mixed up."""
    return OneStep(
        UNIT,
        spaces.Discrete(2),
        lambda rng: _unit(2.0 * rng.integers(2) - 1.0),
        lambda obs, action: 1.0 if (obs[0] > 0) == bool(action) else -1.0,
    )


def discrete_start() -> OneStep:
    """Observations 5 to 7 and actions 3 to 5, both Discrete with a start; reward 1 for action == obs - 2: V = 1."""
    return OneStep(
        spaces.Discrete(3, start=5),
        spaces.Discrete(3, start=3),
        lambda rng: int(rng.integers(5, 8)),
        lambda obs, action: 1.0 if action == obs - 2 else 0.0,
    )


def box(target: float = 1.5, low: float = -1.0, high: float = 3.0) -> OneStep:
    """One action in [-1, 3], reward -(action - 1.5)^2: the best is 1.5, V = 0. Wrong: scaling to asymmetric bounds."""
    space = spaces.Box(low, high, (1,), np.float32)
    return OneStep(UNIT, space, lambda rng: _unit(0.0), lambda obs, action: -((action[0] - target) ** 2))


def box_given_obs() -> OneStep:
    """The observation is -1 or 1, bounds 0.5 and 3: reward -(action - 0.5)^2 or -(action - 3)^2: V = 0.

    Wrong: rows are mixed up, or a bound is never reached.
    """
    return OneStep(
        UNIT,
        spaces.Box(0.5, 3.0, (1,), np.float32),
        lambda rng: _unit(2.0 * rng.integers(2) - 1.0),
        lambda obs, action: -((action[0] - (3.0 if obs[0] > 0 else 0.5)) ** 2),
    )


def box3() -> OneStep:
    """Three actions with different bounds, reward -|action - (0.5, -1, 3)|^2: V = 0. Wrong: sums over dimensions."""
    low, high = np.array([-1, -2, 0], np.float32), np.array([1, 0, 4], np.float32)
    target = np.array([0.5, -1.0, 3.0])
    return OneStep(
        UNIT, spaces.Box(low, high), lambda rng: _unit(0.0), lambda obs, action: -((action - target) ** 2).sum()
    )


def multi_discrete() -> OneStep:
    """MultiDiscrete([3, 2]), reward 1 if head 0 takes 2, and 1 if head 1 takes 0: V = 2. Wrong: heads are mixed up."""
    return OneStep(
        UNIT,
        spaces.MultiDiscrete([3, 2]),
        lambda rng: _unit(0.0),
        lambda obs, action: float(action[0] == 2) + float(action[1] == 0),
    )


def multi_binary() -> OneStep:
    """MultiBinary(3), reward 1 for each bit equal to the observation's: V = 3. Wrong: bits are mixed up."""
    return OneStep(
        spaces.MultiBinary(3),
        spaces.MultiBinary(3),
        lambda rng: rng.integers(0, 2, 3).astype(np.int8),
        lambda obs, action: float((obs == action).sum()),
    )


def tree() -> OneStep:
    """A Dict of a Box, a Discrete and a Tuple; reward 1 for the action 0..3 that they encode: V = 1."""
    space = spaces.Dict(
        {
            "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
            "number": spaces.Discrete(2),
            "pair": spaces.Tuple((spaces.MultiBinary(1), spaces.MultiDiscrete([2, 3]))),
        }
    )

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        sign = 2.0 * rng.integers(2) - 1.0
        bit = rng.integers(0, 2, 1).astype(np.int8)
        other = np.array([rng.integers(2), rng.integers(3)], np.int64)
        return {"box": np.array([sign, 0.0], np.float32), "number": int(rng.integers(2)), "pair": (bit, other)}

    def reward(obs: dict[str, Any], action: int) -> float:
        return float(action == 2 * (obs["number"] ^ int(obs["box"][0] > 0)) + int(obs["pair"][0][0]))

    return OneStep(space, spaces.Discrete(4), draw, reward)


def image(size: int = 36, high: int = 255, dtype: type[np.generic] = np.uint8) -> OneStep:
    """uint8 [36, 36, 3], noise and a white square on one side; reward 1 for action 0 if left, 1 if right: V = 1."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        pixels = rng.integers(0, max(1, 60 * high // 255), (size, size, 3)).astype(dtype)
        left = int(rng.integers(2)) * size // 2
        pixels[size // 4 : size // 2, left + size // 8 : left + 3 * size // 8] = high
        return pixels

    def reward(obs: np.ndarray, action: int) -> float:
        return float(action == (obs[:, size // 2 :].sum(dtype=int) > obs[:, : size // 2].sum(dtype=int)))

    return OneStep(spaces.Box(0, high, (size, size, 3), dtype), spaces.Discrete(2), draw, reward)


class TwoSteps(gymnasium.Env[Any, Any]):
    """One action, two steps, reward 1 at the end: V(0) = gamma, V(1) = 1. Wrong: discounting or the bootstrap."""

    observation_space, action_space = UNIT, spaces.Discrete(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return _unit(0.0), {}

    def step(self, action: Any) -> Step:
        self._t += 1
        return _unit(1.0), float(self._t == 2), self._t == 2, False, {}


class Masked(gymnasium.Env[Any, Any]):
    """Four actions, two or three of them legal at random; an illegal one raises. The reward is the action's number.

    Episodes of 3 steps. A step is worth the expected highest legal action. The mask is in info or in the observation.
    """

    def __init__(self, in_obs: bool = False) -> None:
        inner = spaces.Box(0.0, 1.0, (4,), np.float32)
        self.in_obs = in_obs
        self.action_space = spaces.Discrete(4)
        self.observation_space: spaces.Space[Any] = inner
        if in_obs:
            self.observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(4), "seen": inner})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return self._draw()

    def step(self, action: Any) -> Step:
        if not self._mask[action]:
            raise ValueError(f"action {action} is illegal; legal: {np.flatnonzero(self._mask).tolist()}")
        self._t += 1
        obs, info = self._draw()
        return obs, float(action), self._t == 3, False, info

    def _draw(self) -> tuple[Any, dict[str, Any]]:
        self._mask = np.zeros(4, np.int8)
        self._mask[self.np_random.choice(4, int(self.np_random.integers(2, 4)), replace=False)] = 1
        seen = self._mask.astype(np.float32)
        if self.in_obs:
            return {"action_mask": self._mask, "seen": seen}, {}
        return seen, {"action_mask": self._mask}


class MemoryTask(gymnasium.Env[Any, Any]):
    """A cue of -1 or 1 in the first of 4 observations; at the end reward 1 for the action 0 or 1 that matches, else -1.

    With memory V = gamma^3; without it the return is 0 on average. Observation: (cue, time).
    """

    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, length: int = 4) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._cue, self._t = int(self.np_random.integers(2)), 0
        return np.array([2.0 * self._cue - 1.0, 0.0], np.float32), {}

    def step(self, action: Any) -> Step:
        self._t += 1
        over = self._t == self.length
        reward = (1.0 if int(action) == self._cue else -1.0) if over else 0.0
        return np.array([0.0, self._t / self.length], np.float32), reward, over, False, {}


class Counter(gymnasium.Env[Any, Any]):
    """Observation (step, length): the steps of this episode, and its length, 3 to 9, random. The reward is the step.

    For exact tests, since each row determines the next. Episodes with a length divisible by 3 are truncated. The
    action, Discrete(3), is ignored.
    """

    observation_space, action_space = spaces.Box(0.0, 100.0, (2,), np.float32), spaces.Discrete(3)

    def __init__(self) -> None:
        self._t = self._length = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._t, self._length = 0, int(self.np_random.integers(3, 10))
        return self._obs(), {}

    def step(self, action: Any) -> Step:
        self._t += 1
        over, cut = self._t == self._length, self._length % 3 == 0
        return self._obs(), float(self._t), over and not cut, over and cut, {}

    def _obs(self) -> np.ndarray:
        return np.array([self._t, self._length], np.float32)


class Endless(gymnasium.Env[Any, Any]):
    """Reward 1 in each step, always the same observation; see `endless`."""

    observation_space = UNIT

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return _unit(0.0), {}

    def step(self, action: Any) -> Step:
        return _unit(0.0), 1.0, False, False, {}


def endless(limit: int = 10) -> gymnasium.Env[Any, Any]:
    """Reward 1 per step, truncated after 10: V = 1 / (1 - gamma), 10 at 0.9. Wrong (6.51): a time limit is a death."""
    return TimeLimit(Endless(spaces.Discrete(1)), limit)


def endless_box(limit: int = 10) -> gymnasium.Env[Any, Any]:
    """`endless` with a Box action, which is ignored."""
    return TimeLimit(Endless(UNIT), limit)


def stateless(name: str, shown: list[int]) -> gymnasium.Env[Any, Any]:
    """The environment `name` with some numbers of its observation only: without velocities it needs a memory."""
    env = gymnasium.make(name)
    space = env.observation_space
    assert isinstance(space, spaces.Box)
    part = spaces.Box(space.low[shown], space.high[shown], dtype=np.float32)
    return TransformObservation(env, lambda obs: obs[shown], part)


PROBES: dict[str, Callable[..., gymnasium.Env[Any, Any]]] = {
    "constant": constant,
    "obs-reward": obs_reward,
    "two-steps": TwoSteps,
    "choice": choice,
    "choice-given-obs": choice_given_obs,
    "discrete-start": discrete_start,
    "box": box,
    "box-given-obs": box_given_obs,
    "box3": box3,
    "multi-discrete": multi_discrete,
    "multi-binary": multi_binary,
    "masked": Masked,
    "masked-obs": lambda: Masked(in_obs=True),
    "memory": MemoryTask,
    "dict": tree,
    "image": image,
    "board": lambda: image(10, 1, np.bool_),
    "endless": endless,
    "endless-box": endless_box,
    "counter": Counter,
    "stateless-cartpole": lambda: stateless("CartPole-v1", [0, 2]),
    "stateless-pendulum": lambda: stateless("Pendulum-v1", [0, 1]),
}


def probe(name: str) -> Callable[..., gymnasium.Env[Any, Any]]:
    """The factory of the probe `name`; EnvError with a list of all probes if there is none."""
    try:
        return PROBES[name.replace("_", "-")]
    except KeyError:
        raise EnvError(f"there is no probe {name!r}; probes: {', '.join(PROBES)}") from None
