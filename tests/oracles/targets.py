"""Targets written out as their definitions, one stream and one row at a time, in plain Python. Slow on purpose.

They read the flags of the environment, not `discount` and `trace`, so that a mistake in those shows too.
"""

from __future__ import annotations

import numpy as np


def _episode_end(t: int, b: int, terminated: np.ndarray, truncated: np.ndarray) -> int:
    """The last row of the episode that row t belongs to, or of the unroll."""
    while t < len(terminated) - 1 and not terminated[t, b] and not truncated[t, b]:
        t += 1
    return t


def td_error(reward, value, terminated, gamma, t, b) -> float:  # type: ignore[no-untyped-def]
    """r + gamma V(next) - V, where a terminated episode has no next value; terminated wins over truncated."""
    follow = 0.0 if terminated[t, b] else float(value[t + 1, b])
    return float(reward[t, b]) + gamma * follow - float(value[t, b])


def gae_by_definition(reward, value, terminated, truncated, valid, gamma, lam) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Equation 16 of Schulman et al. 2016 summed forward, episode by episode; NaN at reset rows."""
    rows, streams = reward.shape
    advantage = np.full((rows, streams), np.nan)
    for b in range(streams):
        for t in range(rows):
            if not valid[t, b]:
                continue
            total = 0.0
            for k in range(t, _episode_end(t, b, terminated, truncated) + 1):
                total += (gamma * lam) ** (k - t) * td_error(reward, value, terminated, gamma, k, b)
            advantage[t, b] = total
    return advantage


def lambda_returns_by_definition(reward, value, terminated, truncated, valid, gamma, lam) -> np.ndarray:  # type: ignore[no-untyped-def]
    """(1 - lam) sum lam^(n-1) G_n, with the last n-step return taking the weight that is left; NaN at reset rows."""
    rows, streams = reward.shape
    target = np.full((rows, streams), np.nan)
    for b in range(streams):
        for t in range(rows):
            if not valid[t, b]:
                continue
            end = _episode_end(t, b, terminated, truncated)
            total, weight = 0.0, 1.0
            for last in range(t, end + 1):
                g = sum(gamma ** (k - t) * float(reward[k, b]) for k in range(t, last + 1))
                if not terminated[last, b]:
                    g += gamma ** (last + 1 - t) * float(value[last + 1, b])
                share = weight if last == end else weight * (1 - lam)
                total += share * g
                weight *= lam
            target[t, b] = total
    return target


def discounted_return_of_each_step(reward, ended, valid, gamma) -> list[float]:  # type: ignore[no-untyped-def]
    """What ReturnScale sees: at each valid row the discounted sum of the episode so far, newest reward undiscounted."""
    seen = []
    for b in range(reward.shape[1]):
        episode: list[float] = []
        for t in range(reward.shape[0]):
            if not valid[t, b]:
                episode = []
                continue
            episode.append(float(reward[t, b]))
            seen.append(sum(gamma ** (len(episode) - 1 - i) * r for i, r in enumerate(episode)))
            if ended[t, b]:
                episode = []
    return seen
