"""Values of observations, from the critics of a learner: recordings store them if the actors have no critics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.off_policy.continuous_policy import SquashedGaussian
from rltrain.rollout.tree import Tree, leaves

DRAWS = 16  # actions of which the mean is taken: 8 draws of noise, and each of them with the opposite sign


def sampled_value(
    policy: Any,
    critics: EncoderMLP,
    obs: Tree,
    size: int,
    temperature: Tensor | float,
    q_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """[B] mean of Q(o, a) - temperature * log pi(a | o) over actions of a policy with Box actions.

    The noise of the actions is the same for each row and in each call, so the value depends on the observation alone.

    Args:
        policy: has `sample`, as SAC needs it.
        obs:    not yet normalised, [B, *O].
        size:   A, the numbers of an action.
        q_of:   from the critics' result [n, D, B, outputs] to [D, B].
    """
    obs, rows = policy.normalised(obs), len(leaves(obs)[0])
    noise = fixed_noise(size).to(leaves(obs)[0].device).unsqueeze(1).expand(DRAWS, rows, size)
    if type(policy).sample is SquashedGaussian.sample:  # encodes the observations once
        action, log_prob = policy.sample(obs, noise)
    else:
        action, log_prob = (torch.stack(x) for x in zip(*(policy.sample(obs, one) for one in noise), strict=True))
    q = critics.of_actions(obs, action.reshape(DRAWS, rows, size))
    values: Tensor = q_of(q) - temperature * log_prob
    return values.mean(0)


def smallest(q: Tensor) -> Tensor:
    """[D, B] the smallest of the critics' values [n, D, B, 1]."""
    return q.amin(0).squeeze(-1)


def fixed_noise(size: int) -> Tensor:
    """[DRAWS, A] normal numbers, the second half of which is the first one with the opposite sign."""
    half = np.random.default_rng(0).standard_normal((DRAWS // 2, size), np.float32)
    return torch.from_numpy(np.concatenate([half, -half]))
