"""Critics of Box and of Discrete actions, and their values of the actions in a batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.off_policy.target_network import make_critics
from rltrain.envs.spec import EnvSpec


def action_critics(spec: EnvSpec, config: Any, generator: torch.Generator) -> EncoderMLP:
    """The critics: a Box action is an input; of Discrete actions each has an output."""
    if spec.action.kind == "box":
        return make_critics(spec, config, math.prod(spec.action.shape), 1, generator)
    (actions,) = spec.action.nvec
    return make_critics(spec, config, 0, actions, generator)


def taken(critics: EncoderMLP, obs: Any, action: Tensor, rng: Rng) -> Tensor:
    """[n, B, 1] the value that each critic gives to the actions at normalised obs.

    Args:
        action: [B, *A] float, or [B] int64.
        rng:    of dropout.
    """
    if action.is_floating_point():
        return critics.forward(obs, action.reshape(len(action), -1), rng=rng)
    q = critics.forward(obs, rng=rng)  # [n, B, actions]
    return q.gather(-1, action.view(1, -1, 1).expand(len(q), -1, 1))
