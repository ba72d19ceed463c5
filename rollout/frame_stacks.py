"""Compresses stacks of frames for the network: sends each frame once and rebuilds the stacks at the receiver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rltrain.envs.spec import EnvSpec, Leaf, Padding
from rltrain.rollout.tree import leaves, tree_map
from rltrain.rollout.types import Trajectory


@dataclass(frozen=True, slots=True)
class CompressedFrames:
    """The stacks [T+1, B, k, *frame] of an unroll as single frames."""

    newest: np.ndarray  # [T+1, B, *frame]
    before: np.ndarray  # [k-1, B, *frame]  the older frames of row 0, oldest first
    padding: Padding

    @property
    def nbytes(self) -> int:
        """Bytes of the frames, like `ndarray.nbytes`."""
        return self.newest.nbytes + self.before.nbytes

    def stacks(self, first: np.ndarray) -> np.ndarray:
        """The original stacks [T+1, B, k, *frame].

        Args:
            first: [T+1, B]  rows that begin an episode.
        """
        depth, (rows, streams) = len(self.before), first.shape
        frames = np.concatenate([self.before, self.newest])  # [k-1 + T+1, B, *frame]
        row = np.arange(rows)[:, None]
        begins = first.copy()
        begins[0] = False  # all frames of row 0 are stored
        began = np.maximum.accumulate(np.where(begins, row, -depth), 0)  # [T+1, B] first row of the episode, or -depth
        wanted = row[..., None] - np.arange(depth, -1, -1)  # [T+1, 1, k]
        available = np.maximum(wanted, began[..., None])  # [T+1, B, k]
        stacks: np.ndarray = frames[available + depth, np.arange(streams)[:, None]]
        if self.padding == "zero":
            stacks[wanted < began[..., None]] = 0
        return stacks


def are_stacks(leaf: Leaf, array: np.ndarray, first: np.ndarray) -> bool:
    """True if stacks [T+1, B, k, *frame] hold the newest frames of their episodes, which begin at `first` [T+1, B]."""
    for column in range(first.shape[1]):
        stack, begins = array[:, column], first[:, column]
        begun = stack[begins]
        padding = begun[:, -1:] if leaf.padding == "reset" else 0
        if not (begun[:, :-1] == padding).all():
            return False
        if not (stack[1:, :-1] == stack[:-1, 1:])[~begins[1:]].all():
            return False
    return True


def has_stacks(spec: EnvSpec) -> bool:
    """True if an observation of the environment contains a stack of frames."""
    return any(leaf.stack for leaf in leaves(spec.obs))


def compressed(unroll: Trajectory, spec: EnvSpec) -> Trajectory:
    """The unroll with `CompressedFrames` in place of stacks. Leaves declared as stacks that are none are unchanged."""

    def compress(leaf: Leaf, array: np.ndarray) -> Any:
        if not leaf.stack or not are_stacks(leaf, array, unroll.first):
            return array
        older = np.ascontiguousarray(array[0, :, :-1].swapaxes(0, 1))
        return CompressedFrames(np.ascontiguousarray(array[:, :, -1]), older, leaf.padding)

    return replace(unroll, obs=tree_map(compress, spec.obs, unroll.obs))


def decompressed(unroll: Trajectory) -> Trajectory:
    """The inverse of `compressed`."""

    def decompress(leaf: Any) -> Any:
        return leaf.stacks(unroll.first) if isinstance(leaf, CompressedFrames) else leaf

    return replace(unroll, obs=tree_map(decompress, unroll.obs))
