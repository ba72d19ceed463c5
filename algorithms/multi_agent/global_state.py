"""The global state that centralised critics and mixers see: of the environment, or of all observations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.networks.encoder import Encoder
from rltrain.envs.spec import EnvSpec, Leaf
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Trajectory


class GlobalState(nn.Module):
    """What only training sees, as one vector: the environment's own state, or else what all agents see, side by side.

    Images in it have a network each, as in `networks.Encoder`.
    """

    def __init__(self, spec: EnvSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.told = spec.state_shape is not None
        self.groups = [group.name for group in spec.groups]
        self.encoders = nn.ModuleList()
        if spec.state_shape is not None:
            self.features = math.prod(spec.state_shape)
            return
        encoders = [Encoder(spec.single_agent(group), generator=generator) for group in spec.groups]
        self.encoders.extend(encoders)
        self.features = sum(len(group.agents) * one.features for group, one in zip(spec.groups, encoders, strict=True))

    def forward(self, unrolls: Trajectory) -> Tensor:
        """[T+1, B, S]"""
        if self.told:
            assert unrolls.state is not None
            state: Tensor = unrolls.state.flatten(2)
            return state
        seen = [encoder(unrolls.obs[name]).flatten(2) for name, encoder in zip(self.groups, self.encoders, strict=True)]
        return torch.cat(seen, -1)


def global_state(unrolls: Trajectory, everything: Sequence[Leaf]) -> Tensor:
    """[T+1, B, S] what the environment tells training only, or else all that agents see, side by side.

    Images are divided by the largest number in them, and what is counted is one-hot.
    """
    if unrolls.state is not None:
        told: Tensor = unrolls.state.flatten(2)
        return told
    return torch.cat([_numbers(leaf, x) for leaf, x in zip(everything, leaves(unrolls.obs), strict=True)], -1)


def _numbers(leaf: Leaf, x: Tensor) -> Tensor:
    """[T+1, B, n, *O] to [T+1, B, S], `_width(leaf)` of them."""
    if leaf.nvec:
        each = x.reshape(*x.shape[:3], len(leaf.nvec)).unbind(-1)
        x = torch.cat([F.one_hot(one, size) for one, size in zip(each, leaf.nvec, strict=True)], -1)
    flat = x.flatten(2).float()
    return flat / leaf.high if leaf.kind == "image" else flat


def _width(leaf: Leaf) -> int:
    return leaf.shape[0] * sum(leaf.nvec) if leaf.nvec else math.prod(leaf.shape)
