"""Whole episodes of a trained policy, the same ones for every library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

FIRST_SEED = 10_000  # of the episodes


def returns(env: str, act: Callable[[Any], Any], episodes: int) -> list[float]:
    """The return of each episode; `act` gives an action of the environment for one observation."""
    made, found = gymnasium.make(env), []
    for seed in range(FIRST_SEED, FIRST_SEED + episodes):
        obs, total, ended = made.reset(seed=seed)[0], 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = made.step(act(obs))
            total, ended = total + float(reward), terminated or truncated
        found.append(total)
    made.close()
    return found
