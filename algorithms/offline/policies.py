"""Policies of the algorithms that learn from recorded data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.networks.distributions import DiagGaussian
from rltrain.algorithms.networks.normalize import NormalizedPolicy
from rltrain.algorithms.off_policy.continuous_policy import Deterministic, SoftCategorical
from rltrain.algorithms.protocol import Act, Noise, check_bounded
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree

LOG_STD = (-5.0, 2.0)  # bounds of the log standard deviation, those of the authors of implicit Q-learning


def require_one_of(spec: EnvSpec, *kinds: str) -> None:
    """ValueError with one line if the kind of the actions is not one of `kinds`."""
    if spec.action.kind not in kinds:
        known = " or ".join({"box": "Box", "discrete": "Discrete"}[kind] for kind in kinds)
        others = ". Use awac, bc, cql, implicit_q or marwil" if spec.action.kind == "discrete" else ""
        raise ValueError(f"this algorithm needs {known} actions; {spec.id} has {spec.action.kind} actions{others}")


def cloned(spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> Deterministic | SoftCategorical:
    """The policy of behaviour cloning: deterministic for Box actions, a categorical distribution for Discrete ones."""
    require_one_of(spec, "box", "discrete")
    kind = Deterministic if spec.action.kind == "box" else SoftCategorical
    return kind(spec, config, streams, generator)


class BoundedGaussian(NormalizedPolicy):
    """Box actions: a normal distribution around tanh of the output; its deviations are parameters.

    Actions of the data may be -1 or 1, where the density of a squashed distribution is not finite; this one is finite
    everywhere. Samples are clipped to [-1, 1]. Without exploration the action is the mean.
    """

    def __init__(self, spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__(spec, config)
        check_bounded(spec)
        self.size = math.prod(spec.action.shape)
        self.noise = Noise("normal", self.size)
        self.actor = EncoderMLP(spec, config, 0, self.size, 1, generator, acts=True)
        self.log_std = nn.Parameter(torch.zeros(self.size))

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision for B streams, from noise [B, A]."""
        out, core = self.actor.step(self.normalised(obs), core)
        action = torch.tanh(out)  # [B, A]
        if explore:
            action = (action + self.log_std.clamp(*LOG_STD).exp() * noise).clamp(-1.0, 1.0)
        return Act(action.reshape(-1, *self.spec.action.shape), {}, core)

    def distribution(self, obs: Tree, action_mask: Tensor | None) -> DiagGaussian:
        """The distribution at normalised obs, before its samples are clipped; with gradients."""
        mean = torch.tanh(self.actor.forward(obs).squeeze(0))
        return DiagGaussian(mean, self.log_std.clamp(*LOG_STD), self.spec.action.shape)


def weighted(spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> BoundedGaussian | SoftCategorical:
    """The policy of algorithms that weight the likelihood of the data's actions."""
    require_one_of(spec, "box", "discrete")
    kind = BoundedGaussian if spec.action.kind == "box" else SoftCategorical
    return kind(spec, config, streams, generator)
