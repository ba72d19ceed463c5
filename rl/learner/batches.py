"""Joins unrolls to batches of tensors on the learner's device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltrain.rollout.trajectories import stretched
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory, Transition


def join(unrolls: list[Trajectory], device: torch.device, rows: int = 0) -> Trajectory:
    """One trajectory of tensors on the device; always a copy, so that actors may reuse their arrays.

    Args:
        rows: that it has at least; unrolls that are shorter than the others, or than that, are `stretched`.
    """
    rows = max([rows, *(unroll.rows for unroll in unrolls)])
    cores = max(0 if unroll.core is None else len(unroll.core) for unroll in unrolls)
    unrolls = [stretched(unroll, rows, cores) for unroll in unrolls]

    def along(axis: int) -> Any:
        def joined(*arrays: np.ndarray) -> Tensor:
            return on_device(arrays, axis, device)

        return joined

    beside, stacked = along(1), along(0)
    head = unrolls[0]
    made = [np.full(len(u.stream), rows, np.int64) if u.num_rows is None else u.num_rows for u in unrolls]

    def field(name: str) -> list[Any]:
        return [getattr(unroll, name) for unroll in unrolls]

    return Trajectory(
        obs=tree_map(beside, *field("obs")),
        action=beside(*field("action")),
        reward=beside(*field("reward")),
        terminated=beside(*field("terminated")),
        truncated=beside(*field("truncated")),
        first=beside(*field("first")),
        version=stacked(*field("version")),
        stream=stacked(*field("stream")),
        row=stacked(*field("row")),
        extras={name: beside(*(unroll.extras[name] for unroll in unrolls)) for name in head.extras},
        core=None if head.core is None else beside(*field("core")),
        episodes=tuple(episode for unroll in unrolls for episode in unroll.episodes),
        num_rows=None if all(unroll.num_rows is None for unroll in unrolls) else stacked(*made),
        **{name: beside(*field(name)) for name in head.optional_fields()},
    )


def on_device(arrays: Sequence[np.ndarray], axis: int, device: torch.device) -> Tensor:
    """The arrays joined along `axis`, in one copy; for CUDA by way of pinned memory, so that nobody waits."""
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    joined = torch.empty(shape, dtype=torch.from_numpy(arrays[0]).dtype, pin_memory=device.type == "cuda")
    np.concatenate(arrays, axis, out=joined.numpy())
    return joined.to(device, non_blocking=True)


def tensors(rows: Trajectory | Transition, device: torch.device) -> Any:
    """The same with tensors on the device for arrays; on the CPU they share the arrays' memory."""

    def tensor(array: np.ndarray) -> Tensor:
        found = torch.from_numpy(array)
        return found if device.type == "cpu" else found.to(device)

    def maybe(array: np.ndarray | None) -> Tensor | None:
        return None if array is None else tensor(array)

    if isinstance(rows, Transition):
        return Transition(
            obs=tree_map(tensor, rows.obs),
            action=tensor(rows.action),
            reward=tensor(rows.reward),
            discount=tensor(rows.discount),
            next_obs=tree_map(tensor, rows.next_obs),
            action_mask=maybe(rows.action_mask),
            next_action_mask=maybe(rows.next_action_mask),
            weight=maybe(rows.weight),
            index=maybe(rows.index),
        )
    return Trajectory(
        obs=tree_map(tensor, rows.obs),
        action=tensor(rows.action),
        reward=tensor(rows.reward),
        terminated=tensor(rows.terminated),
        truncated=tensor(rows.truncated),
        first=tensor(rows.first),
        version=tensor(rows.version),
        stream=tensor(rows.stream),
        row=tensor(rows.row),
        extras={name: tensor(array) for name, array in rows.extras.items()},
        core=maybe(rows.core),
        episodes=rows.episodes,
        **{name: tensor(array) for name, array in rows.optional_fields().items()},
    )


def _plain(batch: Trajectory) -> dict[str, Any]:
    """A batch as data for a checkpoint; its episodes were told when it came."""
    names = (field.name for field in dataclasses.fields(batch) if field.name != "episodes")
    return {name: value for name in names if (value := getattr(batch, name)) is not None}


def _unrolls(saved: dict[str, Any], device: torch.device) -> Trajectory:
    """The inverse of `_plain`."""

    def tensor(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: tensor(child) for key, child in x.items()}
        if isinstance(x, list):  # a tuple, before it was written
            return tuple(tensor(child) for child in x)
        return torch.as_tensor(np.array(x)).to(device)

    return Trajectory(**{name: tensor(value) for name, value in saved.items()})
