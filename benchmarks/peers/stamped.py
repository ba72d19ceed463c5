"""CartPole-v1 that writes down when it made its first step, and in which process. For benchmarks/start.py."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium

STAMPS = "BENCH_STAMPS"  # the environment variable that names the file


class Stamped(gymnasium.Wrapper):  # type: ignore[misc]
    """Adds a line `pid time` to the file after its first step."""

    fresh = True

    def step(self, action: Any) -> Any:
        answer = self.env.step(action)
        if self.fresh:
            self.fresh = False
            with open(os.environ[STAMPS], "a") as file:
                file.write(f"{os.getpid()} {time.time()}\n")
        return answer


def make(**_: Any) -> gymnasium.Env[Any, Any]:
    return Stamped(gymnasium.make("CartPole-v1"))
