"""Random play for examinations: each value is copied when the environment returns it."""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rltrain.envs.errors import Watch
from rltrain.envs.spaces import action_reader, mask_in_obs, mask_of, random_action
from rltrain.envs.spec import EnvSpec
from rltrain.envs.values import described, end_flag, reward_number
from rltrain.envs.vector.plain_data import same


class Row(NamedTuple):
    """What a reset or a step returned, as copies."""

    obs: Any
    reward: float
    terminated: bool
    truncated: bool
    mask: np.ndarray | None
    agents: Any  # rewards and ends of several agents; None for one

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


class Play:
    """An environment that takes random legal actions.

    Args:
        watch:   gets the name of each call of the environment before it is made.
        careful: look for arrays that are changed in place, too.

    Attributes:
        overwritten:    step at which the observation before had been overwritten in place; -1: never.
        changed_action: the environment has changed the action that it got.
        array_reward:   what a reward was that was no plain number, in words; "" if all were.
        seconds:        of each reset and of each step.
    """

    def __init__(self, env: Any, spec: EnvSpec, watch: Watch, careful: bool = True) -> None:
        self.env, self.spec, self._watch, self._careful = env, spec, watch, careful
        self._reader = action_reader(spec.action, env.action_space.dtype)
        self._in_obs = mask_in_obs(env.observation_space)
        self._raw: Any = None
        self._copied: Any = None
        self.overwritten = -1
        self.changed_action = False
        self.array_reward = ""
        self.steps = 0
        self.seconds: dict[str, list[float]] = {"reset": [], "step": []}
        self.row: Row | None = None

    def reset(self, seed: int | None = None) -> Row:
        self._watch("reset")
        begin = time.perf_counter()
        obs, info = self.env.reset() if seed is None else self.env.reset(seed=seed)
        self.seconds["reset"].append(time.perf_counter() - begin)
        return self._row(obs, 0.0, False, False, info)

    def step(self, action: np.ndarray) -> Row:
        given = self._reader(action[None])[0]
        before = copy.deepcopy(given) if self._careful else None
        self._watch("step")
        begin = time.perf_counter()
        obs, reward, terminated, truncated, info = self.env.step(given)
        self.seconds["step"].append(time.perf_counter() - begin)
        self.steps += 1
        if self._careful:
            self.changed_action |= isinstance(given, np.ndarray) and not same(given, before)
            if self.overwritten < 0 and not same(self._raw, self._copied):
                self.overwritten = self.steps
            if getattr(reward, "shape", ()) != () or isinstance(reward, list | tuple):
                self.array_reward = described(reward)
        ends = end_flag(terminated, "terminated"), end_flag(truncated, "truncated")
        return self._row(obs, reward_number(reward), *ends, info)

    def choose(self, rng: np.random.Generator) -> np.ndarray:
        """A random legal action."""
        assert self.row is not None
        return random_action(rng, self.spec.action, self.row.mask)

    def _row(self, obs: Any, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]) -> Row:
        self._raw, self._copied = obs, copied(obs)
        mask = None
        if self.spec.action_mask and not (terminated or truncated):
            mask = mask_of(obs, info, self._in_obs, self.spec.action.mask_size).copy()
        agents = copy.deepcopy(info["agents"]) if self.spec.groups else None
        self.row = Row(self._copied, reward, terminated, truncated, mask, agents)
        return self.row


class Recording(NamedTuple):
    """Rows of play from a reset with a seed on, and the action before each; None before a reset."""

    seed: int
    rows: list[Row]
    actions: list[np.ndarray | None]


class Budget:
    """Time for play: of the processor, so that other programs do not shorten it, but at most four times that in all."""

    def __init__(self, seconds: float) -> None:
        self._processor, self._clock = time.process_time() + seconds, time.monotonic() + 4 * seconds

    @property
    def is_left(self) -> bool:
        return time.process_time() < self._processor and time.monotonic() < self._clock


def record(play: Play, seed: int, steps: int, seconds: float) -> Recording:
    """At least one step, then as many as `steps` and `seconds` allow; episodes after the first are not seeded."""
    rng, budget = np.random.default_rng(seed), Budget(seconds)
    rows, actions = [play.reset(seed)], [None]
    result = Recording(seed, rows, actions)  # type: ignore[arg-type]
    while len(rows) <= steps and (len(rows) < 2 or budget.is_left):
        action = None if rows[-1].over else play.choose(rng)
        rows.append(play.reset() if action is None else play.step(action))
        result.actions.append(action)
    if not rows[-1].over and len(rows) > 2:  # so that a second reset is always among them
        rows.append(play.reset())
        result.actions.append(None)
    return result


class Difference(NamedTuple):
    """The first row that differs when a recording is played again."""

    row: int
    what: str
    size: float  # of the numbers of observation and reward, relative; inf if something else differs


def first_difference(play: Play, recording: Recording) -> Difference | None:
    """Takes the same actions again; None if all rows are the same to the bit."""
    for number, (row, action) in enumerate(zip(recording.rows, recording.actions, strict=True)):
        if number == 0:
            again = play.reset(recording.seed)
        else:
            again = play.reset() if action is None else play.step(action)
        what = different(row, again)
        if what:
            return Difference(number, what, _size(row, again))
    return None


def _size(one: Row, other: Row) -> float:
    if different(one._replace(obs=0, reward=0.0, agents=None), other._replace(obs=0, reward=0.0, agents=None)):
        return np.inf
    first, second = (np.append(numbers(row.obs), row.reward) for row in (one, other))
    if first.shape != second.shape:
        return np.inf
    return float(np.max(np.abs(first - second) / (1 + np.abs(first))))


def different(one: Row, other: Row) -> str:
    """What differs between two rows; "" if nothing does."""
    for name in ("obs", "reward", "terminated", "truncated", "mask", "agents"):
        if not same(getattr(one, name), getattr(other, name)):
            return {"obs": "observation", "mask": "action mask", "agents": "values of single agents"}.get(name, name)
    return ""


def copied(obs: Any) -> Any:
    if isinstance(obs, np.ndarray):
        return obs.copy()
    if isinstance(obs, dict):
        return {key: copied(child) for key, child in obs.items()}
    if isinstance(obs, tuple):
        return tuple(copied(child) for child in obs)
    return copy.deepcopy(obs)


def numbers(obs: Any) -> np.ndarray:
    """All numbers of an observation in one flat array; text is left out."""
    if isinstance(obs, dict):
        parts: Sequence[Any] = [obs[key] for key in sorted(obs)]
    elif isinstance(obs, tuple):
        parts = obs
    else:
        array = np.asarray(obs)
        return array.reshape(-1).astype(np.float64) if array.dtype.kind in "biuf" else np.empty(0)
    return np.concatenate([numbers(part) for part in parts]) if parts else np.empty(0)


def set_global_generators(seed: int) -> None:
    """Other numbers for code that draws from the generators of the process instead of its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


def global_generators() -> dict[str, Any]:
    """The states of the generators of the process, by name."""
    state: Any = np.random.get_state()
    return {"Python's random": random.getstate(), "numpy.random": (state[1].tobytes(), state[2:])}
