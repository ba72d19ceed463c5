"""Whole updates of the algorithms that learn from data alone, written out by formulas, from first weights on.

Nets are the lists of weights and biases of `oracles.off_policy`; gradients and Adam are torch's own. All is float64.
"""

from __future__ import annotations

from typing import Any

import torch
from oracles.off_policy import Net, flat, nets, run
from torch import Tensor
from torch.distributions import Categorical

from rltrain.rollout.types import Transition


class Reference:
    """What the algorithms share: nets that begin with those of `algorithm`, and an Adam for each of them."""

    def __init__(self, algorithm: Any) -> None:
        self.config, self.spec = algorithm.config, algorithm.policy.spec
        self.box = self.spec.action.kind == "box"
        self.actor = self.learned(algorithm.policy.actor)
        self.of_actor = self.adam(flat(self.actor))

    def learned(self, network: Any) -> list[Net]:
        found = nets(network.dense)
        for x in flat(found):
            x.requires_grad_()
        return found

    def adam(self, params: list[Tensor], lr: float | None = None) -> torch.optim.Adam:
        return torch.optim.Adam(params, lr=lr or self.config.lr, eps=self.config.adam_eps)

    def apply(self, optimizer: torch.optim.Adam, loss: Tensor) -> None:
        """One step of these parameters alone."""
        params = optimizer.param_groups[0]["params"]
        for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = grad
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(params, self.config.max_grad_norm)
        optimizer.step()

    def of(self, net: Net, *inputs: Tensor) -> Tensor:
        return run(net, *inputs, activation=self.config.activation)

    def probabilities(self, obs: Tensor, mask: Tensor | None) -> Tensor:
        """[B, n] probabilities of actions, 0 where the mask forbids."""
        logits = self.of(self.actor[0], obs)
        return Categorical(logits=logits if mask is None else torch.where(mask, logits, -1e30)).probs


class BCReference(Reference):
    """Squared error of the mean action (Fujimoto and Gu 2021, section 4), or the log-likelihood of a class."""

    def update(self, batch: Transition) -> None:
        rows = len(batch.reward)
        if self.box:
            action = torch.tanh(self.of(self.actor[0], batch.obs))
            loss = sum(((action[b] - batch.action[b]) ** 2).mean() for b in range(rows)) / rows
        else:
            probs = self.probabilities(batch.obs, batch.action_mask)
            loss = -sum(torch.log(probs[b, batch.action[b]]) for b in range(rows)) / rows
        self.apply(self.of_actor, loss)
