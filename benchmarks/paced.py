"""CartPole-v1 whose steps take additional time: computing, or sleeping."""

from __future__ import annotations

import time
from typing import Any

import gymnasium

from rltrain.envs.seeding import stream_seed


class Working(gymnasium.Wrapper):  # type: ignore[misc]
    """Adds `work` iterations of a Python loop to every step, which need a CPU core."""

    def __init__(self, env: gymnasium.Env[Any, Any], work: int) -> None:
        super().__init__(env)
        self._turns = range(work)

    def step(self, action: Any) -> Any:
        total = 0.0
        for _ in self._turns:
            total += 0.5
        return self.env.step(action)


class Sleeping(gymnasium.Wrapper):  # type: ignore[misc]
    """Adds a pause without CPU load to every step, and a longer one in some streams.

    Args:
        pause: seconds.
        slow:  in how many streams, the first ones, pauses are `times` longer; of a run whose seed is 0.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], pause: float, slow: int, times: float) -> None:
        super().__init__(env)
        self._pause, self._longer = pause, pause * times
        self._slow = {stream_seed(0, stream) for stream in range(slow)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed in self._slow:
            self._pause = self._longer
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        time.sleep(self._pause)
        return self.env.step(action)


def working(work: int = 0, **_: Any) -> gymnasium.Env[Any, Any]:
    return Working(gymnasium.make("CartPole-v1"), work)


def sleeping(pause: float = 0.001, slow: int = 0, times: float = 20.0, **_: Any) -> gymnasium.Env[Any, Any]:
    return Sleeping(gymnasium.make("CartPole-v1"), pause, slow, times)
