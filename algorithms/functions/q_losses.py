"""Losses of Q-learning and of critics, whose gradients are known and computed together with the loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rltrain.algorithms.functions.losses import masked_mean


def td_loss(value: Tensor, target: Tensor, valid: Tensor, kind: Literal["huber", "squared"]) -> Tensor:
    """[] mean over the valid rows [...] of (value - target)^2, or of the Huber loss with threshold 1."""
    error = value - target
    if kind == "squared":
        return masked_mean(error.square(), valid)
    return masked_mean(F.huber_loss(error, torch.zeros_like(error), reduction="none"), valid)


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


def quantile_loss(z: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The Huber loss of quantile regression with threshold 1, Dabney et al. 2018 (arXiv:1710.10044), equation 10.

    Args:
        z:      [n, B, M]  of each critic the quantiles at (2 m - 1) / (2 M), m from 1 to M; carries the gradient.
        target: [B, K]     samples of the return.
        weight: [B]        importance weights of prioritised samples.

    Returns:
        The mean [] over critics, rows, quantiles and samples; and the differences of means [n, B], without gradient.
    """
    with torch.no_grad():
        quantiles = z.shape[-1]
        level = (torch.arange(quantiles, device=z.device, dtype=z.dtype) + 0.5) / quantiles  # [M]
        error = target.unsqueeze(1) - z.unsqueeze(-1)  # [n, B, M, K]
        bounded = error.clamp(-1, 1)
        slope = (level.unsqueeze(-1) - (error < 0).to(z.dtype)).abs_().mul_(bounded)  # [n, B, M, K]
        share = 1 / slope.numel() if weight is None else weight.view(-1, 1, 1) / slope.numel()
        loss = (slope * error.sub_(bounded, alpha=0.5) * share).sum()
        grad = -(slope * share).sum(-1)
    return _with_gradient(loss, z, grad), z.detach().mean(-1) - target.mean(-1)


def expectile_loss(value: Tensor, target: Tensor, expectile: float) -> tuple[Tensor, Tensor]:
    """The loss of expectile regression, Kostrikov et al. 2021 (arXiv:2110.06169), equation 5.

    Args:
        value:     [1, B, 1] or [B]  carries the gradient.
        target:    [B]
        expectile: weight of errors where the target is above the value; 1 - expectile is that of the others.

    Returns:
        The mean [] of weight * error^2, and the errors target - value [B], without gradient.
    """
    with torch.no_grad():
        error = target - value.view(-1)
        scaled = torch.where(error < 0, 1 - expectile, expectile) * error * (1 / len(target))
        loss = scaled.dot(error)
    return _with_gradient(loss, value, (-2 * scaled).view_as(value)), error


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
