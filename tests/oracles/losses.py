"""PPO's losses, one row at a time in plain Python. Slow on purpose."""

from __future__ import annotations

import math


def clipped_surrogate(log_prob, behaviour, advantage, clip) -> tuple[float, float, float]:  # type: ignore[no-untyped-def]
    """Loss, clip fraction and k3 of equation 7 of Schulman et al. 2017."""
    loss = clipped = kl = 0.0
    for new, old, a in zip(log_prob, behaviour, advantage, strict=True):
        r = math.exp(new - old)
        bounded = min(max(r, 1 - clip), 1 + clip)
        loss += max(-a * r, -a * bounded)
        clipped += abs(r - 1) > clip
        kl += (r - 1) - (new - old)
    n = len(log_prob)
    return loss / n, clipped / n, kl / n


def clipped_value(value, old, target, clip) -> float:  # type: ignore[no-untyped-def]
    """Half the mean of the larger of the two squared errors."""
    total = 0.0
    for v, o, r in zip(value, old, target, strict=True):
        bounded = o + min(max(v - o, -clip), clip)
        total += max((v - r) ** 2, (bounded - r) ** 2)
    return 0.5 * total / len(value)
