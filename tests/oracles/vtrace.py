"""V-trace written out as equation 1 of Espeholt et al. 2018: sums of products, one stream and one row at a time.

It reads the flags of the environment, not `discount` and `trace`, so that a mistake in those shows too.
"""

from __future__ import annotations

import numpy as np
from oracles.targets import _episode_end, td_error


def vtrace_by_definition(  # type: ignore[no-untyped-def]
    ratio, reward, value, terminated, truncated, valid, gamma, lam, rho_bar, c_bar, rho_bar_pg
) -> tuple[np.ndarray, np.ndarray]:
    """v_s = V(x_s) + sum over t of gamma^(t-s) (prod of lam min(c_bar, ratio)) min(rho_bar, ratio_t) delta_t, and the
    weights of the policy gradient, min(rho_bar_pg, ratio_s) (r_s + gamma v_{s+1} - V(x_s)); NaN at reset rows.

    Where the clock ran out or the unroll ends, v_{s+1} is the value of the observation that followed.
    """
    rows, streams = reward.shape
    target, advantage = np.full((rows, streams), np.nan), np.full((rows, streams), np.nan)
    for b in range(streams):
        for s in range(rows):
            if not valid[s, b]:
                continue
            total = float(value[s, b])
            for t in range(s, _last(s, b, terminated, truncated, valid) + 1):
                product = 1.0
                for i in range(s, t):
                    product *= lam * min(c_bar, float(ratio[i, b]))
                rho = min(rho_bar, float(ratio[t, b]))
                total += gamma ** (t - s) * product * rho * td_error(reward, value, terminated, gamma, t, b)
            target[s, b] = total
        for s in range(rows):
            if not valid[s, b]:
                continue
            if terminated[s, b]:
                follow = 0.0
            elif s == _last(s, b, terminated, truncated, valid):
                follow = float(value[s + 1, b])
            else:
                follow = target[s + 1, b]
            weight = min(rho_bar_pg, float(ratio[s, b]))
            advantage[s, b] = weight * (float(reward[s, b]) + gamma * follow - float(value[s, b]))
    return target, advantage


def _last(t: int, b: int, terminated: np.ndarray, truncated: np.ndarray, valid: np.ndarray) -> int:
    """The last row of the episode that row t belongs to, or of the unroll, or before its padding."""
    end = _episode_end(t, b, terminated, truncated)
    while not valid[t : end + 1, b].all():
        end -= 1
    return end
