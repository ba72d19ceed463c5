"""Losses as pure functions: the paper's symbols, the shapes, nothing else.

`valid` marks the rows that count, where a batch is padded or holds reset rows; None means all of them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync


class Surrogate(NamedTuple):
    """PPO's policy loss and two signs of its health, which carry no gradient."""

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
    """Value loss that does not reward moving further than `clip` from the old value (Baselines' ppo2).

    Args:
        value:     [...]  V(o) of the network being trained; carries the gradient.
        old_value: [...]  V(o) when the target was made.
        target:    [...]  what V(o) should become.
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


def weighted_mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    """[] mean over the batch of losses [B], each times its importance weight [B] if there are weights."""
    return losses.mean() if weight is None else (losses * weight).mean()


def critic_loss(error: Tensor, weight: Tensor | None) -> Tensor:
    """[] half the squared errors [n, B], summed over n critics, the mean over the batch weighted by `weight` [B]."""
    return 0.5 * weighted_mean(error.square().sum(0), weight)


def q_loss(
    q: Tensor, action: Tensor, target: Tensor, weight: Tensor | None, kind: Literal["huber", "squared"]
) -> tuple[Tensor, Tensor]:
    """The loss of Q-learning with its gradient in one node: autograd's own nodes cost a small network 15%.

    Args:
        q:      [B, n]  values of all actions; carries the gradient.
        action: [B]     int64
        target: [B]     r + discount * max_a Q'(o', a).
        weight: [B]     importance weights of prioritized samples.
        kind:   of each row: (q - target)^2, or half of it up to an error of 1 and linear beyond.

    Returns:
        [] the weighted mean over the batch, and [B] the errors q - target, which carry no gradient.
    """
    result: tuple[Tensor, Tensor] = _QLoss.apply(q, action, target, weight, kind)  # type: ignore[no-untyped-call]
    return result


class _QLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, action: Tensor, target: Tensor, weight: Tensor | None, kind: str
    ) -> tuple[Tensor, Tensor]:
        share = 1 / len(action) if weight is None else weight / len(action)
        action = action.view(-1, 1)
        error = q.gather(1, action).squeeze(1) - target
        if kind == "huber":
            bounded = error.clamp(-1, 1)
            grad = bounded * share
            loss = grad.dot(torch.sub(error, bounded, alpha=0.5))
        else:
            grad = error * share
            loss = grad.dot(error)
            grad *= 2
        ctx.grad = torch.zeros_like(q).scatter_(1, action, grad.view(-1, 1))
        ctx.mark_non_differentiable(error)
        ctx.set_materialize_grads(False)
        return loss, error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        return ctx.grad * grad, None, None, None, None


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """[B] -sum(target * log softmax(logits)), for logits and target distributions [B, atoms]: C51, algorithm 1.

    The gradient is softmax(logits) - target, which is shorter than the one autograd finds.
    """
    result: Tensor = _CrossEntropy.apply(logits, target)  # type: ignore[no-untyped-call]
    return result


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        log_probs = torch.log_softmax(logits, -1)
        ctx.save_for_backward(log_probs, target)
        return -(target * log_probs).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        log_probs, target = ctx.saved_tensors
        return (log_probs.exp() - target) * grad.unsqueeze(-1), None


def gather_action(q: Tensor, action: Tensor) -> Tensor:
    """[...] the entry of q [..., n] that action [...] int64 picks."""
    return q.gather(-1, action.unsqueeze(-1)).squeeze(-1)
