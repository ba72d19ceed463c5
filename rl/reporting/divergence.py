"""Notices values and temperatures that are far beyond what the rewards of a run allow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FACTOR = 10.0  # a mean value this many times beyond the largest possible return is no estimate of it any more
ADVICE = "try a smaller --lr or --max-grad-norm, or --normalize-obs"
VALUES = (
    f"{ADVICE}; of algorithms with target networks a slower target (--tau, --target-every), with --algo dqn --double"
)


class Divergence:
    """Compares the metrics of a run with the largest return that its rewards allow.

    Args:
        settings: of the algorithm: its `gamma`, `clip_reward` and `normalize_return`, as far as it has them.
    """

    def __init__(self, settings: Any) -> None:
        self._gamma = float(getattr(settings, "gamma", 1.0))
        self._clips = bool(getattr(settings, "clip_reward", False))
        self._scales = bool(getattr(settings, "normalize_return", False))
        self._reported = False

    def note(self, values: Mapping[str, float], reward: float, longest: float) -> str | None:
        """One line, at most once per run: what diverges; None if nothing does.

        Args:
            values:  the metrics of an interval.
            reward:  the largest absolute reward so far.
            longest: the length of the longest of the last episodes; 0 if there is none.
        """
        largest = max(1.0, min(reward, 1.0) if self._clips else reward)  # an untrained network is not 0 either
        horizon = 1 / (1 - self._gamma) if self._gamma < 1 else longest
        if self._reported or not reward or not horizon:
            return None
        temperature = values.get("learner/temperature", 0.0)
        entropy = temperature * abs(values.get("learner/entropy", 0.0))
        error = 0.0 if self._scales else math.sqrt(2 * max(values.get("learner/loss_value", 0.0), 0.0))
        means = {"the mean value": abs(values.get("learner/q_mean", 0.0)), "the mean error of the value": error}
        limit = largest * horizon
        text = None
        if temperature > limit:
            text = (
                f"the temperature is {temperature:.3g}: one nat of entropy is worth more than all rewards together, at "
            )
            text += f"most {limit:.3g}; --target-entropy cannot be reached, or --lr-temperature is too large"
        for name, value in means.items():
            if text is None and value > FACTOR * (largest + entropy) * horizon:
                text = f"{name} is {value:.3g}, but the rewards so far, of at most {reward:.3g}, allow a return of "
                text += f"{limit:.3g}: the values diverge; {VALUES}"
        self._reported = text is not None
        return text
