"""Environments with one fault each, and sound ones. KINDS says with which level and kind `rldoctor` must find it."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

KINDS: dict[str, tuple[str, str]] = {}  # class: level and kind
SOUND: list[str] = []


def planted(level: str, kind: str) -> Any:
    def add(cls: type) -> type:
        KINDS[cls.__name__] = (level, kind)
        return cls

    return add


def sound(cls: type) -> type:
    SOUND.append(cls.__name__)
    return cls


@sound
class Walk(gymnasium.Env[Any, Any]):
    """A walk on a line with noise; ends at its borders or after 30 steps."""

    observation_space = spaces.Box(-20, 20, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.time = float(self.np_random.normal()), 0
        return self.look(), self.info()

    def step(self, action: Any) -> tuple[Any, ...]:  # type: ignore[override]
        self.x += (1.0 if action else -1.0) + float(self.np_random.normal()) * 0.1
        self.time += 1
        return self.look(), self.reward(), bool(abs(self.x) > 8), self.time >= 30, self.info()

    def look(self) -> Any:
        return np.array([self.x, self.time / 30], np.float32)

    def reward(self) -> Any:
        return -abs(self.x)

    def info(self) -> dict[str, Any]:
        return {}


@sound
class Masked(Walk):
    def info(self) -> dict[str, Any]:
        return {"action_mask": np.array([1, self.time % 3 != 1], np.int8)}


@sound
class Continuous(Walk):
    action_space = spaces.Box(-2, 2, (2,), np.float32)

    def step(self, action: Any) -> tuple[Any, ...]:
        self.x += float(action[0])
        return super().step(action[1] > 0)


@sound
class RaisesAfterTheEnd(Walk):
    def step(self, action: Any) -> tuple[Any, ...]:
        assert self.time < 30
        assert abs(self.x) <= 8
        return super().step(action)


@planted("warning", "interface")
class OutOfBounds(Walk):
    def look(self) -> Any:
        return super().look() * 100


@planted("warning", "interface")
class OtherPrecision(Walk):
    def look(self) -> Any:
        return super().look().astype(np.float64)


@planted("fault", "interface")
class OtherShape(Walk):
    def look(self) -> Any:
        return super().look()[None]


@planted("fault", "interface")
class PixelsAsFloats(Walk):
    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def look(self) -> Any:
        return self.np_random.random((8, 8, 3), np.float32)


@planted("fault", "interface")
class LateNan(Walk):
    def look(self) -> Any:
        return super().look() * (np.nan if self.time == 6 else 1)


@planted("fault", "interface")
class InfiniteReward(Walk):
    def reward(self) -> Any:
        return -np.inf if self.time == 4 else 1.0


@planted("warning", "reward")
class RewardInArray(Walk):
    def reward(self) -> Any:
        return np.array([1.0])


@planted("warning", "reward")
class LargeRewards(Walk):
    def reward(self) -> Any:
        return 1e5 * self.x


@planted("note", "reward")
class NoReward(Walk):
    def reward(self) -> Any:
        return 0


@planted("fault", "interface")
class ResetWithoutInfo(Walk):
    def reset(self, **options: Any) -> Any:
        return super().reset(**options)[0]


@planted("fault", "interface")
class FourValues(Walk):
    def step(self, action: Any) -> tuple[Any, ...]:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


@planted("fault", "interface")
class EndInArray(Walk):
    def step(self, action: Any) -> tuple[Any, ...]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, np.array([terminated]), truncated, info


@planted("fault", "seed")
class IgnoresTheSeed(Walk):
    def reset(self, **options: Any) -> Any:
        super().reset()
        self.x = random.random()
        return self.look(), {}


@planted("fault", "determinism")
class LaterResets(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is None:
            self.x = float(np.random.normal())
        return self.look(), {}


@planted("fault", "determinism")
class GlobalNoise(Walk):
    def look(self) -> Any:
        noise = np.random.normal() if self.time > 7 else 0.0
        return super().look() + np.float32(noise)


@planted("fault", "determinism")
class Clock(Walk):
    def reward(self) -> Any:
        return time.perf_counter() % 1


@planted("fault", "reset")
class StateSurvives(Walk):
    energy = 0

    def step(self, action: Any) -> tuple[Any, ...]:
        self.energy += 1
        return super().step(action)

    def reward(self) -> Any:
        return float(self.energy)


@planted("fault", "shared")
class SharedState(Walk):
    places: dict[str, float] = {}  # noqa: RUF012  of all instances: this is the fault

    def reset(self, **options: Any) -> Any:
        result = super().reset(**options)
        self.places["x"] = self.x
        return result

    def step(self, action: Any) -> tuple[Any, ...]:
        self.x = self.places["x"]
        result = super().step(action)
        self.places["x"] = self.x
        return result


@planted("fault", "spaces")
class SpacesDiffer(Walk):
    count = itertools.count()

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-20 - next(self.count), 20, (2,), np.float32)


@planted("warning", "buffer")
class OneBuffer(Walk):
    def __init__(self) -> None:
        self.buffer = np.zeros(2, np.float32)

    def look(self) -> Any:
        self.buffer[:] = super().look()
        return self.buffer


@planted("warning", "action")
class ChangesTheAction(Continuous):
    def step(self, action: Any) -> tuple[Any, ...]:
        action *= 0.5
        return super().step(action)


@planted("warning", "actions")
class NoBounds(Continuous):
    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)


@planted("warning", "actions")
class WideActions(Continuous):
    action_space = spaces.Box(0, 255, (2,), np.float32)


@planted("fault", "exception")
class CountsFromZero(Walk):
    action_space = spaces.Discrete(2, start=1)

    def step(self, action: Any) -> tuple[Any, ...]:
        return super().step([0, 1][action])


@planted("fault", "exception")
class RaisesLate(Walk):
    def step(self, action: Any) -> tuple[Any, ...]:
        return super().step(action if self.time < 13 else self.nothing)


@planted("warning", "end")
class NoEnd(Walk):
    def step(self, action: Any) -> tuple[Any, ...]:
        self.x = float(np.clip(self.x, -5, 5))
        obs, reward, _, _, info = super().step(action)
        return np.clip(obs, -20, 20), reward, False, False, info


@planted("note", "end")
class LimitAsTermination(Walk):
    def step(self, action: Any) -> tuple[Any, ...]:
        obs, reward, _, truncated, info = super().step(action)
        return np.clip(obs, -20, 20), reward, truncated, False, info


@planted("note", "effect")
class NoEffect(Walk):
    def step(self, action: Any) -> tuple[Any, ...]:
        return super().step(0)


@planted("warning", "observation")
class NothingToSee(Walk):
    def look(self) -> Any:
        return np.zeros(2, np.float32)


@planted("fault", "interface")
class MaskTooLong(Masked):
    def info(self) -> dict[str, Any]:
        return {"action_mask": np.ones(3, np.int8)}


@planted("fault", "interface")
class NothingIsLegal(Masked):
    def info(self) -> dict[str, Any]:
        return {"action_mask": np.full(2, self.time != 3, np.int8)}


@planted("fault", "global")
class SetsTheGlobalSeed(Walk):
    def reset(self, **options: Any) -> Any:
        np.random.seed(3)
        return super().reset(**options)


@planted("warning", "global")
class ChangesTheFolder(Walk):
    def reset(self, **options: Any) -> Any:
        os.chdir(tempfile.mkdtemp())
        return super().reset(**options)


@planted("fault", "second")
class OnlyOnce(Walk):
    open = False

    def __init__(self) -> None:
        if OnlyOnce.open:
            raise RuntimeError("the port is in use")
        OnlyOnce.open = True

    def close(self) -> None:
        OnlyOnce.open = False


@planted("warning", "time")
class SlowReset(Walk):
    def reset(self, **options: Any) -> Any:
        time.sleep(0.06)
        return super().reset(**options)


@planted("fault", "leak")
class LeavesFiles(Walk):
    def reset(self, **options: Any) -> Any:
        os.open(os.devnull, os.O_RDONLY)
        return super().reset(**options)


@planted("fault", "leak")
class LeavesThreads(Walk):
    end = threading.Event()  # set by the test

    def reset(self, **options: Any) -> Any:
        threading.Thread(target=self.end.wait, args=(60,), daemon=True).start()
        return super().reset(**options)


@planted("fault", "leak")
class LeavesChildren(Walk):
    left: list[Any] = []  # noqa: RUF012  of all instances

    def __init__(self) -> None:
        self.left.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]))


@planted("fault", "leak")
class KeepsMemory(Walk):
    """Each array is larger than 32 MiB, so that the C library does not take it from memory that tests have freed."""

    def reset(self, **options: Any) -> Any:
        self.kept = [*getattr(self, "kept", []), np.ones(33 * 2**20 // 8)]
        return super().reset(**options)


class Two(ParallelEnv[str, Any, Any]):
    """Two agents that walk."""

    metadata = {"name": "two", "render_modes": []}  # noqa: RUF012
    possible_agents = ["a", "b"]  # noqa: RUF012

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-100, 100, (1,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.rng, self.agents, self.time = np.random.default_rng(seed or 0), ["a", "b"], 0
        self.x = dict.fromkeys(self.agents, 0.0)
        return self.look(), {agent: {} for agent in self.agents}

    def look(self) -> Any:
        return {agent: np.array([x], np.float32) for agent, x in self.x.items()}

    def step(self, actions: dict[str, Any]) -> Any:
        self.time += 1
        for agent, action in actions.items():
            self.x[agent] += 1.0 if action else -1.0
        ends, over = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, self.time >= 12)
        result = self.look(), dict(self.x), ends, over, {agent: {} for agent in self.agents}
        if self.time >= 12:
            self.agents = []
        return result


SOUND.append("Two")


@planted("fault", "interface")
class UnknownAgent(Two):
    def step(self, actions: dict[str, Any]) -> Any:
        obs, rewards, *rest = super().step(actions)
        return obs, {**rewards, "c": 0.0}, *rest


@planted("fault", "interface")
class AgentWithoutObservation(Two):
    def step(self, actions: dict[str, Any]) -> Any:
        obs, *rest = super().step(actions)
        return {"a": obs["a"]}, *rest
