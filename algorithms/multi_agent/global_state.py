"""The global state, input of centralised critics and mixers: the environment's own, or all agents' observations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.networks.encoder import Encoder
from rltrain.envs.spec import EnvSpec, Leaf
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Trajectory


class GlobalState(nn.Module):
    """The global state as one vector: the environment's state, or the observations of all agents concatenated.

    Args:
        spec:      of several agents.
        generator: for the weights of networks that encode images, as in `networks.Encoder`. None: no networks; pixels
                   are divided by the largest possible value, integers are one-hot.
    """

    def __init__(self, spec: EnvSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.groups = [group.name for group in spec.groups]
        self.leaves = spec.leaves()
        self.encoders = nn.ModuleList()
        if spec.state_shape is not None:
            self.features = math.prod(spec.state_shape)
        elif generator is None:
            self.features = sum(map(_width, self.leaves))
        else:
            encoders = [Encoder(spec.single_agent(group), generator=generator) for group in spec.groups]
            self.encoders.extend(encoders)
            sizes = zip(spec.groups, encoders, strict=True)
            self.features = sum(len(group.agents) * encoder.features for group, encoder in sizes)

    def forward(self, batch: Trajectory) -> Tensor:
        """[T+1, B, S]"""
        if batch.state is not None:
            state: Tensor = batch.state.flatten(2)
            return state
        if self.encoders:
            named = zip(self.groups, self.encoders, strict=True)
            return torch.cat([encoder(batch.obs[name]).flatten(2) for name, encoder in named], -1)
        return torch.cat([_vector(leaf, x) for leaf, x in zip(self.leaves, leaves(batch.obs), strict=True)], -1)


def _vector(leaf: Leaf, x: Tensor) -> Tensor:
    """[T+1, B, n, *O] to [T+1, B, `_width(leaf)`]. `leaf` is that of all n agents, with the counts of all of them."""
    if leaf.nvec:
        numbers = x.flatten(2).unbind(-1)
        x = torch.cat([F.one_hot(one, size) for one, size in zip(numbers, leaf.nvec, strict=True)], -1)
    flat = x.flatten(2).float()
    return flat / leaf.high if leaf.kind == "image" else flat


def _width(leaf: Leaf) -> int:
    return sum(leaf.nvec) if leaf.nvec else math.prod(leaf.shape)
