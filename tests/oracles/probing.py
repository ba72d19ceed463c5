"""What a policy that was trained on a probe makes of it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch


def values(trained: Any, *obs: float) -> list[float]:
    """V of observations of one number each."""
    with torch.no_grad():
        found: list[float] = trained.policy.value(torch.tensor(obs)[:, None]).tolist()
    return found


def masks() -> list[np.ndarray]:
    """Each way in which two or three of four actions are legal."""
    legal = [*combinations(range(4), 2), *combinations(range(4), 3)]
    return [np.isin(np.arange(4), actions) for actions in legal]


def best_of_the_legal(trained: Any, env: str) -> bool:
    """Whether the legal action of the highest number is chosen under every mask."""
    for mask in masks():
        seen = mask.astype(np.float32)
        obs = seen if env == "masked" else {"seen": seen, "action_mask": mask.astype(np.int8)}
        if trained.act(obs, action_mask=mask) != np.flatnonzero(mask)[-1]:
            return False
    return True
