"""Losses as pure functions.

`valid` marks the rows that count if a batch has padding or reset rows; None means all rows.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

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
        free = (ratio - bounded) * advantage <= 0  # [...]  the minimum of the two objectives is the one that can move
        moving, still = advantage * free, bounded * advantage * ~free
        clip_fraction = masked_mean((ratio != bounded).float(), valid)
        approx_kl = masked_mean(ratio - 1 - log_ratio, valid)
    return Surrogate(-masked_mean(ratio * moving + still, valid), clip_fraction, approx_kl)


def clipped_value(value: Tensor, old_value: Tensor, target: Tensor, clip: float, valid: Tensor | None = None) -> Tensor:
    """Value loss with no gradient beyond a distance of `clip` from the old value (Baselines' ppo2).

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


def td_loss(value: Tensor, target: Tensor, valid: Tensor, kind: Literal["huber", "squared"]) -> Tensor:
    """[] mean over the valid rows [...] of (value - target)^2, or of the Huber loss with threshold 1."""
    error = value - target
    if kind == "squared":
        return masked_mean(error.square(), valid)
    return masked_mean(F.huber_loss(error, torch.zeros_like(error), reduction="none"), valid)


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


def critic_loss(q: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Half the squared errors of n critics: summed over the critics, and the weighted mean over the batch.

    Args:
        q:      [n, B] or [n, B, 1]  carries the gradient.
        target: [B]
        weight: [B]  importance weights of prioritised samples.

    Returns:
        The loss [], and the errors q - target [n, B], without gradient.
    """
    with torch.no_grad():
        error = q.view(len(q), -1) - target
        scaled = error * (1 / len(target)) if weight is None else error * (weight * (1 / len(target)))
        loss = torch.dot(scaled.view(-1), error.view(-1)).mul_(0.5)
    return _with_gradient(loss, q, scaled.view_as(q)), error


def q_loss(
    q: Tensor, action: Tensor, target: Tensor, weight: Tensor | None, kind: Literal["huber", "squared"]
) -> tuple[Tensor, Tensor]:
    """The loss of Q-learning, Mnih et al. 2015: the weighted mean over the batch.

    Args:
        q:      [B, n]  values of all actions; carries the gradient.
        action: [B]     int64
        target: [B]     r + discount * max_a Q'(o', a).
        weight: [B]     importance weights of prioritised samples.
        kind:   squared: (q - target)^2; huber: half of that up to an error of 1, linear beyond.

    Returns:
        The loss [], and the errors q - target [B], without gradient.
    """
    with torch.no_grad():
        share = 1 / len(action) if weight is None else weight / len(action)
        index = action.view(-1, 1)
        error = q.gather(1, index).squeeze(1) - target
        if kind == "huber":
            bounded = error.clamp(-1, 1)
            grad = bounded * share
            loss = grad.dot(torch.sub(error, bounded, alpha=0.5))
        else:
            grad = error * share
            loss = grad.dot(error)
            grad *= 2
        grad = torch.zeros_like(q).scatter_(1, index, grad.view(-1, 1))
    return _with_gradient(loss, q, grad), error


def categorical_loss(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The cross-entropy of C51, Bellemare et al. 2017, algorithm 1: the weighted mean over the batch.

    Args:
        logits: [B, atoms]  carry the gradient, which is softmax(logits) - target.
        target: [B, atoms]  probabilities.
        weight: [B]         importance weights of prioritised samples.

    Returns:
        The loss [], and the cross-entropy -sum(target * log softmax(logits)) of each row [B], without gradient.
    """
    with torch.no_grad():
        share = logits.new_full((len(logits),), 1 / len(logits)) if weight is None else weight / len(logits)
        log_probs = torch.log_softmax(logits, -1)
        each = -(target * log_probs).sum(-1)
        grad = (log_probs.exp() - target) * share.unsqueeze(-1)
    return _with_gradient((each * share).sum(), logits, grad), each


def _with_gradient(loss: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """A loss [] whose gradient along x is known: one node, where autograd's own cost DQN 15% of an update."""
    result: Tensor = _KnownGradient.apply(x, (loss, grad))  # type: ignore[no-untyped-call]
    return result


class _KnownGradient(torch.autograd.Function):
    """If x is the output of a network that is one node, `optim.step` calls that node directly: see there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss_and_grad: tuple[Tensor, Tensor]) -> Tensor:
        loss, ctx.grad = loss_and_grad
        ctx.network = x.grad_fn if getattr(x.grad_fn, "ends_graph", False) else None
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        assert not torch.is_grad_enabled(), "there is no second derivative"  # as once_differentiable, in less time
        return ctx.grad * grad, None


def gather_action(q: Tensor, action: Tensor) -> Tensor:
    """[...] the entry of q [..., n] that action [...] int64 picks."""
    return q.gather(-1, action.unsqueeze(-1)).squeeze(-1)
