"""Allocates the arrays of an unroll, padded to a width at which a network computes each row with the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.unroll_rows import UnrollBuffer
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Noise

WIDTH = 16  # a row has the same bits in every batch whose width is a multiple of this


def padded(streams: int) -> int:
    """The width of arrays for `streams` columns: rounded up to a multiple of WIDTH."""
    return -(-streams // WIDTH) * WIDTH


def obs_arrays(spec: EnvSpec, rows: int, width: int) -> Tree:
    """Arrays of zeros [rows, width, *O], one for each leaf of the observation."""
    return tree_map(lambda leaf: np.zeros((rows, width, *leaf.shape), leaf.dtype), spec.obs)


def policy_inputs(
    spec: EnvSpec, noise: Noise, core_size: int, width: int
) -> tuple[Tree, torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """Inputs of `Policy.act` for `width` rows: obs, core and noise are zero, the action mask allows all actions."""
    obs = tree_map(lambda array: torch.from_numpy(array[0]), obs_arrays(spec, 1, width))
    core = torch.zeros(width, core_size) if core_size else None
    mask = torch.ones(width, spec.action.mask_size, dtype=torch.bool) if spec.action_mask else None
    return obs, core, mask, torch.zeros(width, noise.columns)


def empty_rows(spec: EnvSpec, unroll: int, streams: int, obs: Tree | None = None) -> UnrollBuffer:
    """Arrays for an unroll of `unroll` rows, `padded(streams)` wide: zeros, and masks that allow all actions."""
    width, agents = padded(streams), spec.agents_shape
    optional: dict[str, Any] = {
        name: np.full((unroll + 1, width, *shape), name == "action_mask", dtype)
        for name, (shape, dtype) in spec.optional_fields().items()
    }
    return UnrollBuffer(
        obs=obs_arrays(spec, unroll + 1, width) if obs is None else obs,
        reward=np.zeros((unroll, width, *agents), np.float32),
        terminated=np.zeros((unroll, width, *agents), bool),
        truncated=np.zeros((unroll, width, *agents), bool),
        first=np.zeros((unroll + 1, width), bool),
        episode_continues=np.zeros((unroll, width), bool),
        **{"action_mask": None, **optional},
    )


def to_next_step(rows: UnrollBuffer) -> None:
    """Copy row 1 to row 0: a buffer of one row then begins with the newest observations."""
    rows.first[0] = rows.first[1]
    tree_map(lambda array: np.copyto(array[0], array[1]), rows.obs)
    for array in rows.optional_fields():
        array[0] = array[1]


def clear_absent(core: torch.Tensor, alive: np.ndarray | None) -> torch.Tensor:
    """The recurrent state [B, N * H] with zeros for agents that are not in `alive` [B, N]; None: a single agent."""
    if alive is None:
        return core
    return (core.view(*alive.shape, -1) * torch.from_numpy(alive).unsqueeze(-1)).view_as(core)
