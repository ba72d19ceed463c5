"""Losses as pure functions.

`valid` marks the rows that count if a batch has padding or reset rows; None means all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync


class Surrogate(NamedTuple):
    """PPO's policy loss, and two diagnostics without gradient."""

    loss: Tensor  # []
    clip_fraction: Tensor  # []  share of rows whose ratio lies outside the clip range
    approx_kl: Tensor  # []  k3 estimator of KL(behaviour || policy), never negative


def clipped_surrogate(
    log_prob: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, clip: float, valid: Tensor | None = None
) -> Surrogate:
    """PPO's objective with the sign of a loss, Schulman et al. 2017, equation 7.

    Args:
        log_prob:           [...]  log pi(a|o) under the policy being trained; carries the gradient.
        behaviour_log_prob: [...]  log mu(a|o) as recorded by the actor.
        advantage:          [...]  constant with respect to the parameters.
        clip:               epsilon; the ratio is kept within [1 - clip, 1 + clip].
        valid:              [...]  bool, the rows that count.
    """
    log_ratio = log_prob - behaviour_log_prob
    if valid is not None:  # a padded row may hold anything, and inf * 0 is not 0
        log_ratio = log_ratio.masked_fill(~valid, 0.0)
    ratio = torch.exp(log_ratio)
    with torch.no_grad():
        bounded = ratio.clamp(1 - clip, 1 + clip)
        # min(ratio * A, clip(ratio) * A), with a gradient only where the first is the smaller one
        free = (ratio - bounded) * advantage <= 0  # [...]
        moving, still = advantage * free, bounded * advantage * ~free
        clip_fraction = masked_mean((ratio != bounded).float(), valid)
        approx_kl = masked_mean(ratio - 1 - log_ratio, valid)
    return Surrogate(-masked_mean(ratio * moving + still, valid), clip_fraction, approx_kl)


def clipped_value(value: Tensor, old_value: Tensor, target: Tensor, clip: float, valid: Tensor | None = None) -> Tensor:
    """Value loss that does not reward moving further than `clip` from the old value (Baselines' ppo2).

    Args:
        value:     [...]  V(o) of the network being trained; carries the gradient.
        old_value: [...]  V(o) at the time the target was computed.
        target:    [...]  the target of V(o).
        clip:      epsilon, in the unit of the value.
        valid:     [...]  bool, the rows that count.

    Returns:
        [] 0.5 * mean(max(both squared errors)): the larger one, so that clipping never hides an error.
    """
    bounded = old_value + torch.clamp(value - old_value, -clip, clip)
    return 0.5 * masked_mean(torch.maximum((value - target).square(), (bounded - target).square()), valid)


def squared_error(value: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """[] 0.5 * mean of (value - target)^2 over the rows [...] that are valid."""
    if valid is None:
        return 0.5 * F.mse_loss(value, target)
    return 0.5 * masked_mean((value - target).square(), valid)


def normalised(advantage: Tensor, valid: Tensor | None = None, sync: GradientSync = SINGLE) -> Tensor:
    """Advantages [...] with mean 0 and standard deviation 1 over the valid rows of all learners; other rows become 0.

    Equal advantages, and a single one, become 0.
    """
    mean, variance = sync.moments(advantage, valid)
    scaled = (advantage - mean) / (variance.sqrt() + 1e-8)
    return scaled if valid is None else scaled.masked_fill(~valid, 0.0)


def explained_variance(value: Tensor, target: Tensor, valid: Tensor, sync: GradientSync = SINGLE) -> Tensor:
    """[] 1 - Var(target - value) / Var(target) over the valid rows [...] of all learners; 1 if there is one row."""
    residual = sync.moments((target - value)[valid]).variance
    return 1 - residual / sync.moments(target[valid]).variance.clamp_min(1e-8)


def masked_mean(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """[] mean over the rows of x [...] that are valid; 0 if none is."""
    if valid is None:
        return x.mean()
    return x.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)


def gather_action(q: Tensor, action: Tensor) -> Tensor:
    """[...] the entry of q [..., n] that action [...] int64 picks."""
    return q.gather(-1, action.unsqueeze(-1)).squeeze(-1)
