"""Arrays for observations: their layout, empty rows, and batches padded to the width a network computes exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.unroll_rows import UnrollBuffer
from rltrain.rollout.tree import Tree

WIDTH = 16  # a network's row has the same bits in every batch whose width is a multiple of this


def padded(streams: int) -> int:
    """The width of the arrays that hold `streams` columns."""
    return -(-streams // WIDTH) * WIDTH


def obs_arrays(spec: EnvSpec, rows: int, width: int) -> Tree:
    """Zeroed observation arrays [rows, width, *O] for each leaf of the spec."""

    def node(obs: Any) -> Tree:
        if isinstance(obs, dict):
            return {key: node(obs[key]) for key in sorted(obs)}
        if isinstance(obs, tuple):
            return tuple(node(child) for child in obs)
        return np.zeros((rows, width, *obs.shape), obs.dtype)

    return node(spec.obs)


def empty_rows(spec: EnvSpec, unroll: int, streams: int, obs: Tree | None = None) -> UnrollBuffer:
    """Arrays for an unroll of `unroll` rows, as wide as `padded(streams)`. Masks begin as all legal."""
    width, each = padded(streams), spec.agents_shape
    beside: dict[str, Any] = {
        name: np.full((unroll + 1, width, *shape), name == "action_mask", dtype)
        for name, (shape, dtype) in spec.optional_fields().items()
    }
    return UnrollBuffer(
        obs=obs_arrays(spec, unroll + 1, width) if obs is None else obs,
        reward=np.zeros((unroll, width, *each), np.float32),
        terminated=np.zeros((unroll, width, *each), bool),
        truncated=np.zeros((unroll, width, *each), bool),
        first=np.zeros((unroll + 1, width), bool),
        episode_continues=np.zeros((unroll, width), bool),
        **{"action_mask": None, **beside},
    )


def kept(core: torch.Tensor, alive: np.ndarray | None) -> torch.Tensor:
    """The memory [B, N * H] after a row in which the agents `alive` [B, N] were there; that of the others is empty."""
    if alive is None:
        return core
    return (core.view(*alive.shape, -1) * torch.from_numpy(alive).unsqueeze(-1)).view_as(core)
