"""A small environment that behaves well. The hostile ones are made of it, and are compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

HERE = Path(__file__).resolve().parent
RUNS, LATE = HERE / "runs", HERE / "late"  # the first exists when training has begun; the second since a first fault


def late(steps: int) -> bool:
    """Whether an environment that has made these steps shall be hostile now, and from now on also when it restarts."""
    if not (LATE.exists() or (steps >= 20 and RUNS.exists())):
        return False
    LATE.touch()
    return True


class Harmless(gymnasium.Env):
    """Walks on a line, for seven steps at most.

    Args:
        when: the only event at which `disturb` is called; "later" is each step from the 20th on, of the training alone.
              Empty: it is called at each event.
    """

    observation_space: Any = spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, when: str = "") -> None:
        self.when = when
        self.place = self.clock = self.steps = 0
        self.at("init")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.at("reset")
        self.place, self.clock = int(self.np_random.integers(-3, 4)), 0
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.at("step")
        if self.late():
            self.at("later")
        self.place += self.moved(action)
        self.clock += 1
        return self.observation(), float(self.place), abs(self.place) > 4, self.clock >= 7, {}

    def close(self) -> None:
        self.at("close")

    def observation(self) -> Any:
        return np.array([self.place, self.clock], np.float32)

    def moved(self, action: Any) -> int:
        return 1 if np.sum(action) > 0.5 else -1

    def late(self) -> bool:
        return self.when == "later" and late(self.steps)

    def at(self, event: str) -> None:
        if self.when in ("", event):
            self.disturb()

    def disturb(self) -> None:
        """What a hostile environment does."""


class Spoilt(Harmless):
    """Returns from `reset`, `step` or late steps what `spoil` makes of the right values."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, info = super().reset(seed=seed)
        if self.when not in ("reset", ""):
            return obs, info
        values = self.spoil([obs, 0.0, False, False, info])
        return values[0], values[4]

    def step(self, action: Any) -> Any:
        values = list(super().step(action))
        if self.when in ("step", "") or self.late():
            values = self.spoil(values)
        return tuple(values) if isinstance(values, list) else values

    def spoil(self, values: Any) -> Any:
        """Wrong values in place of [observation, reward, terminated, truncated, info]."""
        return values
