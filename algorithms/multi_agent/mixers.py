"""Mixers: from the values of the agents' actions and the global state to the value of the team."""

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
    """VDN, Sunehag et al. 2018 (arXiv:1706.05296): the value of the team is the sum of the agents' values."""

    joint = True  # one value for the team

    def state(self, batch: Trajectory, rows: slice) -> None:
        """VDN does not use the global state."""

    def forward(self, q: Tensor, state: Tensor | None) -> Tensor:
        """[..., N] values to [...]"""
        return q.sum(-1)


class Each(nn.Module):
    """Independent Q-learning (Tan 1993): no mixing, each agent learns from its own reward."""

    joint = False

    def state(self, batch: Trajectory, rows: slice) -> None:
        """IQL does not use the global state."""

    def forward(self, q: Tensor, state: Tensor | None) -> Tensor:
        """[..., N] values, unchanged."""
        return q


class Monotonic(nn.Module):
    """The mixing network of QMIX, Rashid et al. 2018 (arXiv:1803.11485): dQ_tot / dQ_a >= 0 for each agent a.

    Hypernetworks of the state produce its weights, as absolute values, and its biases, of any sign; the last bias has a
    hypernetwork of two layers. Therefore the greedy actions of the agents are the greedy joint action in every state.

    Args:
        spec:        of several agents.
        width:       units of the hidden layer.
        hyper_width: units of the hidden layer of the hypernetworks for the weights; 0: they are linear.
        seed:        of the first weights.
        init:        of the weights, see `networks.MLP`.
    """

    joint = True

    def __init__(self, spec: EnvSpec, width: int, hyper_width: int, seed: int, init: Init = "uniform") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.agents, self.width = len(spec.agents), width
        self.seen = GlobalState(spec, generator)  # checkpoints have this name
        size, between = self.seen.features, (hyper_width,) if hyper_width else ()
        mlp = partial(MLP, activation="relu", generator=generator, init=init)
        self.weight1 = mlp(size, between, self.agents * width)
        self.bias1 = mlp(size, (), width)
        self.weight2 = mlp(size, between, width)
        self.bias2 = mlp(size, (width,), 1)

    def state(self, batch: Trajectory, rows: slice) -> Tensor:
        """[rows, B, S] the global state at some rows of the batch."""
        state: Tensor = self.seen(batch)
        return state[rows]

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        """[..., N] values and [..., S] states to [...], which does not decrease with any of the values."""
        weight1 = self.weight1.forward(state).abs().view(*state.shape[:-1], self.agents, self.width)
        hidden = F.elu((q.unsqueeze(-1) * weight1).sum(-2) + self.bias1.forward(state))
        weight2 = self.weight2.forward(state).abs()
        return (hidden * weight2).sum(-1) + self.bias2.forward(state).squeeze(-1)
