"""Converts unrolls and samples to batches of tensors on the learner's device, and batches to checkpoint data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rltrain.rollout.trajectories import AXES, join_columns, map_arrays
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory, Transition

Batch = TypeVar("Batch", bound=Trajectory | Transition)
OLD_NAMES = {"made": "num_rows"}  # fields in checkpoints of version 0.1


def join(unrolls: list[Trajectory], device: torch.device, rows: int = 0) -> Trajectory:
    """One trajectory of tensors on the device: always a copy, so that actors may reuse their arrays.

    Args:
        rows: the least number of rows of the result; shorter unrolls are stretched.
    """
    return join_columns(unrolls, lambda arrays, axis: on_device(arrays, axis, device), rows)


def on_device(arrays: Sequence[np.ndarray], axis: int, device: torch.device) -> Tensor:
    """The arrays joined along `axis` in one copy; for CUDA in pinned memory, which transfers asynchronously."""
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    joined = torch.empty(shape, dtype=torch.from_numpy(arrays[0]).dtype, pin_memory=device.type == "cuda")
    np.concatenate(arrays, axis, out=joined.numpy())
    return joined.to(device, non_blocking=True)


def tensors(batch: Batch, device: torch.device) -> Batch:
    """The batch with tensors on the device for arrays; on the CPU they share the arrays' memory."""
    if device.type == "cpu":
        return map_arrays(torch.from_numpy, batch)
    return map_arrays(lambda array: torch.from_numpy(array).to(device), batch)


def to_checkpoint(batch: Trajectory) -> dict[str, Any]:
    """The arrays of a batch, by field. Its episodes are left out: they were reported when the batch arrived."""
    return {name: value for name in AXES if (value := getattr(batch, name)) is not None}


def from_checkpoint(saved: dict[str, Any], device: torch.device) -> Trajectory:
    """The inverse of `to_checkpoint`, of trees in which a checkpoint has turned tuples into lists."""

    def tuples(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: tuples(child) for key, child in tree.items()}
        return tuple(map(tuples, tree)) if isinstance(tree, list) else tree

    def tensor(array: Any) -> Tensor:
        return torch.as_tensor(np.array(array)).to(device)

    fields = {OLD_NAMES.get(name, name): value for name, value in saved.items()}
    return Trajectory(**{name: tree_map(tensor, tuples(value)) for name, value in fields.items()})
