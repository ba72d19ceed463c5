"""Distributions over actions, cheap enough for actors: no checks, no broadcasting, lazy evaluation.

Samples are functions of noise that the actor draws, so they do not depend on the number of rows in a batch:

  Categorical, MultiCategorical   argmax(logits + gumbel)
  Bernoulli                       logits + logistic > 0
  DiagGaussian                    mean + exp(log_std) * normal
  TanhGaussian                    tanh(mean + exp(log_std) * normal)

softplus and sigmoid are written with exp and log1p, because the last bit of torch's own differs between the vectorised
part of a row and its tail. Code that only learners run may use torch's.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rltrain.algorithms.protocol import Noise
from rltrain.envs.spec import ActionSpec

FORCED = 1e9  # logit of a bit with only one legal value
EDGE = 1 - 2.0**-16  # up to it, atanh of an action in float32 has an error below 0.002


def _require(legal: Tensor, rule: str) -> None:
    """ValueError if an element of `legal` is False. An exported graph does not check: its caller does."""
    if not torch.compiler.is_compiling() and not bool(legal.all()):
        raise ValueError(f"a row of the action mask is all False: {rule}")


class Categorical:
    """One of n actions, some of which a mask may forbid.

    Args:
        logits: [..., n]
        mask:   [..., n]  bool, legal actions.

    Raises:
        ValueError: if a row of the mask leaves no legal action.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        self.mask = mask
        if mask is not None:
            _require(mask.any(-1), "at least one action must be legal")
            # The smallest finite number, not -inf: 0 * inf would make the gradients NaN.
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        self.logits = logits

    @cached_property
    def log_probs(self) -> Tensor:
        """[..., n] log probability of each action."""
        return torch.log_softmax(self.logits, -1)

    def sample(self, noise: Tensor) -> Tensor:
        """[...] int64, from noise [..., n], standard Gumbel."""
        return (self.logits + noise).argmax(-1)

    def mode(self) -> Tensor:
        """[...] int64, the most likely action."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] for action [...] int64."""
        if action.ndim == 1:  # one operation instead of three
            return -F.nll_loss(self.log_probs, action, reduction="none")
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """[...] in nats, over the legal actions."""
        log_probs = self.log_probs
        if self.mask is not None:
            log_probs = log_probs.masked_fill(~self.mask, 0.0)
        return -(self.log_probs.exp() * log_probs).sum(-1)


class MultiCategorical:
    """Several independent Categorical heads.

    Args:
        logits: [..., sum(nvec)]
        nvec:   the number of actions of each head.
        mask:   [..., sum(nvec)]  bool, legal actions of all heads.
    """

    def __init__(self, logits: Tensor, nvec: tuple[int, ...], mask: Tensor | None = None) -> None:
        self.nvec = list(nvec)
        masks = torch.split(mask, self.nvec, -1) if mask is not None else (None,) * len(nvec)
        self.heads = [
            Categorical(head, legal) for head, legal in zip(torch.split(logits, self.nvec, -1), masks, strict=True)
        ]

    def sample(self, noise: Tensor) -> Tensor:
        """[..., heads] int64, from noise [..., sum(nvec)], standard Gumbel."""
        parts = torch.split(noise, self.nvec, -1)
        return torch.stack([head.sample(part) for head, part in zip(self.heads, parts, strict=True)], -1)

    def mode(self) -> Tensor:
        """[..., heads] int64."""
        return torch.stack([head.mode() for head in self.heads], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] summed over the heads, for action [..., heads] int64."""
        parts = [head.log_prob(part) for head, part in zip(self.heads, action.unbind(-1), strict=True)]
        return torch.stack(parts, -1).sum(-1)

    def entropy(self) -> Tensor:
        """[...] in nats, summed over the heads."""
        return torch.stack([head.entropy() for head in self.heads], -1).sum(-1)


class Bernoulli:
    """n independent bits.

    Args:
        logits: [..., n]   log odds of a 1.
        mask:   [..., 2n]  bool, for each bit: whether 0 is legal, whether 1 is legal.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        if mask is not None:
            zero, one = mask[..., 0::2], mask[..., 1::2]  # [..., n] each
            _require(zero | one, "each bit must be free to be 0 or 1")
            logits = logits.masked_fill(~zero, FORCED).masked_fill(~one, -FORCED)
        self.logits = logits

    @cached_property
    def log_one(self) -> Tensor:
        """[..., n] log probability of a 1; that of a 0 is `log_one - logits`."""
        # minimum, not clamp: at 0 its gradient is one half, as it should be.
        below = torch.minimum(self.logits, torch.zeros_like(self.logits))
        return below - torch.log1p(torch.exp(-self.logits.abs()))

    def sample(self, noise: Tensor) -> Tensor:
        """[..., n] int64, from noise [..., n], standard logistic."""
        return (self.logits + noise > 0).long()

    def mode(self) -> Tensor:
        """[..., n] int64."""
        return (self.logits > 0).long()

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] summed over the bits, for action [..., n] of 0 and 1."""
        return (self.log_one - (1 - action) * self.logits).sum(-1)

    def entropy(self) -> Tensor:
        """[...] in nats, summed over the bits."""
        log_zero = self.log_one - self.logits
        return -(self.log_one.exp() * self.log_one + log_zero.exp() * log_zero).sum(-1)


class DiagGaussian:
    """Independent normal numbers, unbounded: the environment's adapter clips and scales them, after they are stored.

    Args:
        mean:    [..., n]
        log_std: [n] or [..., n]
        shape:   *A of an action, prod(shape) = n.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, shape: tuple[int, ...]) -> None:
        self.mean, self.log_std = mean, log_std
        self.shape = shape

    def sample(self, noise: Tensor) -> Tensor:
        """[..., *A] float, from noise [..., n], standard normal."""
        return self._shaped(self.mean + self.log_std.exp() * noise)

    def mode(self) -> Tensor:
        """[..., *A] float."""
        return self._shaped(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] summed over the dimensions, for action [..., *A]."""
        z = (action.reshape(self.mean.shape) - self.mean) * torch.exp(-self.log_std)  # [..., n]
        return (-0.5 * z * z - self.log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * self.mean.shape[-1]

    def entropy(self) -> Tensor:
        """[...] in nats, summed over the dimensions."""
        constant = 0.5 * (1 + math.log(2 * math.pi)) * self.mean.shape[-1]
        return (self.log_std.sum(-1) + constant).expand(self.mean.shape[:-1])

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat if len(self.shape) == 1 else flat.reshape(*flat.shape[:-1], *self.shape)


class TanhGaussian:
    """tanh of independent normal numbers: actions in (-1, 1), Haarnoja et al. 2018, appendix C.

    Args:
        mean:    [..., n]  of the numbers u before tanh.
        log_std: [..., n]
        shape:   *A of an action, prod(shape) = n.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, shape: tuple[int, ...]) -> None:
        self.mean, self.log_std = mean, log_std
        self.shape = shape

    def sample(self, noise: Tensor) -> Tensor:
        """[..., *A] float, from noise [..., n], standard normal."""
        return self._shaped(torch.tanh(self.mean + self.log_std.exp() * noise))

    def mode(self) -> Tensor:
        """[..., *A] float: tanh of the mean, which is the median of each number."""
        return self._shaped(torch.tanh(self.mean))

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] log density of action [..., *A] in the policy's units [-1, 1].

        Near 1, float32 rounds tanh(u) so much that u is lost. All values of a number from EDGE on count as one event:
        the term of this number is the log probability of the event. So the gradient has mean 0 under the policy, and
        vanishes if all samples are beyond EDGE.
        """
        flat = action.reshape(self.mean.shape)
        beyond = flat.abs() >= EDGE  # [..., n]
        bounded = flat.clamp(-EDGE, EDGE)
        one, other = torch.log1p(bounded), torch.log1p(-bounded)
        u = 0.5 * (one - other)  # [..., n] before tanh; log(1 - tanh(u)^2) = one + other
        z = (u - self.mean) * torch.exp(-self.log_std)
        distance = (z * flat.sign()).clamp(max=12.0)  # to the event, in deviations; from 15 on erfc is 0 in float32
        event = torch.log(0.5 * torch.erfc(distance / math.sqrt(2)))
        density = -0.5 * z * z - self.log_std - one - other - 0.5 * math.log(2 * math.pi)
        return torch.where(beyond, event, density).sum(-1)

    def entropy(self) -> Tensor:
        """[...] in nats, summed over the dimensions: that of u, plus the mean of log(1 - tanh(u)^2) by quadrature."""
        nodes, weights = (torch.as_tensor(x, dtype=self.mean.dtype, device=self.mean.device) for x in QUADRATURE)
        u = self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * nodes  # [..., n, nodes]
        squash = 2 * (math.log(2) - u.abs() - torch.log1p(torch.exp(-2 * u.abs())))
        each = 0.5 * (1 + math.log(2 * math.pi)) + self.log_std + squash @ weights  # [..., n]
        return each.sum(-1)

    def sample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A sample [..., *A] and its log density [...], in the policy's units [-1, 1]; both carry gradients.

        The density is computed from u, never from the inverse of an action that may have been rounded to 1:
        log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)).
        """
        action, log_prob = _Squashed.apply(self.mean, self.log_std, noise)  # type: ignore[no-untyped-call]
        return self._shaped(action), log_prob

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat if len(self.shape) == 1 else flat.reshape(*flat.shape[:-1], *self.shape)


class _Squashed(torch.autograd.Function):
    """tanh(u) and its log density, u = mean + exp(log_std) * noise, with a hand-written backward pass.

    d log_prob / du = 2 tanh(u), and d log_prob / d log_std = -1 at constant u.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        spread = log_std.exp().mul_(noise)  # [..., n]
        u = mean + spread
        action = torch.tanh(u)
        each = u.add_(F.softplus(-2 * u)).mul_(2).sub_(log_std).sub_(0.5 * noise.square())
        constant = (0.5 * math.log(2 * math.pi) + 2 * math.log(2)) * mean.shape[-1]
        ctx.save_for_backward(action, spread)
        return action, each.sum(-1).sub_(constant)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_action: Tensor, of_log_prob: Tensor) -> tuple[Tensor, Tensor, None]:
        action, spread = ctx.saved_tensors
        of_each = of_log_prob.unsqueeze(-1)  # [..., 1]
        of_u = torch.addcmul(of_action, action, 2 * of_each - of_action * action)
        return of_u, of_u * spread - of_each, None


def _normal_quadrature(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the Gauss-Hermite quadrature of an expectation under the standard normal distribution."""
    x, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return x, weights / weights.sum()


QUADRATURE = _normal_quadrature(32)
Distribution = Categorical | MultiCategorical | Bernoulli | DiagGaussian | TanhGaussian


def kl_divergence(one: Distribution, other: Distribution) -> Tensor:
    """[...] KL(one || other) in nats, in closed form, summed over heads or dimensions; both of the same class.

    Raises:
        TypeError: if the classes differ.
    """
    if isinstance(one, Categorical) and isinstance(other, Categorical):
        difference = one.log_probs - other.log_probs  # [..., n]
        if one.mask is not None:
            difference = difference.masked_fill(~one.mask, 0.0)
        return (one.log_probs.exp() * difference).sum(-1)
    if isinstance(one, MultiCategorical) and isinstance(other, MultiCategorical):
        return torch.stack([kl_divergence(a, b) for a, b in zip(one.heads, other.heads, strict=True)], -1).sum(-1)
    if isinstance(one, Bernoulli) and isinstance(other, Bernoulli):
        of_one = one.log_one.exp() * (one.log_one - other.log_one)
        log_zero, other_log_zero = one.log_one - one.logits, other.log_one - other.logits
        return (of_one + log_zero.exp() * (log_zero - other_log_zero)).sum(-1)
    if (isinstance(one, DiagGaussian) and isinstance(other, DiagGaussian)) or (
        isinstance(one, TanhGaussian) and isinstance(other, TanhGaussian)  # tanh of both changes nothing
    ):
        wider = other.log_std - one.log_std
        square = (2 * one.log_std).exp() + (one.mean - other.mean).square()
        return (wider + 0.5 * square * torch.exp(-2 * other.log_std) - 0.5).sum(-1)
    raise TypeError(f"no KL between {type(one).__name__} and {type(other).__name__}")


def head_size(action: ActionSpec) -> int:
    """Size of a network's output for an action: logits, or the mean of a Box."""
    if action.kind in ("discrete", "multi_discrete"):
        return sum(action.nvec)
    return math.prod(action.shape)


def noise_of(action: ActionSpec) -> Noise:
    """The noise that `sample` needs."""
    if action.kind in ("discrete", "multi_discrete"):
        return Noise("gumbel", head_size(action))
    return Noise("logistic" if action.kind == "multi_binary" else "normal", head_size(action))


def distribution(
    action: ActionSpec,
    head: Tensor,
    mask: Tensor | None = None,
    log_std: Tensor | None = None,
    squash: bool = False,
) -> Distribution:
    """The distribution over actions for a network's output [..., head_size].

    Args:
        mask:    [..., mask_size]  bool, legal actions. Not for Box.
        log_std: [n] or [..., n]   Box only.
        squash:  for Box: tanh of a Gaussian, so that actions are in [-1, 1].
    """
    if action.kind == "discrete":
        return Categorical(head, mask)
    if action.kind == "multi_discrete":
        return MultiCategorical(head, action.nvec, mask)
    if action.kind == "multi_binary":
        return Bernoulli(head, mask)
    if log_std is None:
        raise ValueError("a Box action needs log_std")
    return (
        TanhGaussian(head, log_std.expand_as(head), action.shape)
        if squash
        else DiagGaussian(head, log_std, action.shape)
    )
