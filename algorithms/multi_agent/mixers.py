"""Mixers: from the values of the agents' actions to what is learnt, given a state that only training sees."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.multi_agent.global_state import GlobalState
from rltrain.algorithms.networks.mlp import MLP, Init
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory


class Sum(nn.Module):
    """VDN, Sunehag et al. 2018 (arXiv:1706.05296): the team's value is the sum of its agents'."""

    joint = True  # one value for the team

    def state(self, unrolls: Trajectory) -> None:
        """It needs none."""

    def forward(self, q: Tensor, state: Tensor | None) -> Tensor:
        """[..., N] values to [...]"""
        return q.sum(-1)


class Each(nn.Module):
    """Independent Q-learning (Tan 1993): every agent learns from its own reward, as if it were alone."""

    joint = False

    def state(self, unrolls: Trajectory) -> None:
        """It needs none."""

    def forward(self, q: Tensor, state: Tensor | None) -> Tensor:
        """[..., N] as they are"""
        return q


class Monotonic(nn.Module):
    """QMIX, Rashid et al. 2018 (arXiv:1803.11485): a network that no agent's value can lower the team's through.

    Its weights are made from the state, and their absolute values taken; its biases may have any sign, the last one is
    a network of two layers. So what is best for each agent is best for the team, in every state.

    Args:
        spec:        of several agents.
        width:       units of the hidden layer.
        hyper_width: units between the state and those weights; 0: they are linear in it.
        generator:   for the first weights.
        init:        their kind, see `networks.MLP`.
    """

    joint = True

    def __init__(
        self, spec: EnvSpec, width: int, hyper_width: int, generator: torch.Generator, init: Init = "uniform"
    ) -> None:
        super().__init__()
        self.agents, self.width = len(spec.agents), width
        self.seen = GlobalState(spec, generator)
        size, between = self.seen.features, (hyper_width,) if hyper_width else ()
        mlp = partial(MLP, activation="relu", generator=generator, init=init)
        self.weight1 = mlp(size, between, self.agents * width)
        self.bias1 = mlp(size, (), width)
        self.weight2 = mlp(size, between, width)
        self.bias2 = mlp(size, (width,), 1)

    def state(self, unrolls: Trajectory) -> Tensor:
        """[T+1, B, S]"""
        state: Tensor = self.seen(unrolls)
        return state

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        """[..., N] values and [..., S] to [...], which grows with each of them or stays."""
        weight1 = self.weight1.forward(state).abs().view(*state.shape[:-1], self.agents, self.width)
        hidden = F.elu((q.unsqueeze(-1) * weight1).sum(-2) + self.bias1.forward(state))
        weight2 = self.weight2.forward(state).abs()
        return (hidden * weight2).sum(-1) + self.bias2.forward(state).squeeze(-1)
