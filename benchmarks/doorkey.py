"""MiniGrid-DoorKey-5x5-v0 as a vector: the 7 x 7 x 3 view and the direction as one-hot, without the mission text.

rltrain --algo ppo --env benchmarks/doorkey.py:DoorKey5x5
"""

from __future__ import annotations

from typing import Any

import gymnasium
import minigrid  # noqa: F401  registers the environments
import numpy as np


class Vector(gymnasium.ObservationWrapper[np.ndarray, Any, Any]):
    """The observation dict as one float32 vector [151]."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0.0, 10.0, (7 * 7 * 3 + 4,), np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        direction = np.eye(4, dtype=np.float32)[observation["direction"]]
        return np.concatenate([observation["image"].reshape(-1).astype(np.float32), direction])


def DoorKey5x5(**settings: Any) -> gymnasium.Env[Any, Any]:
    """Makes the environment; `settings` are keyword arguments of gymnasium.make, such as render_mode."""
    return Vector(gymnasium.make("MiniGrid-DoorKey-5x5-v0", **settings))
