"""Stacks of frames on their way to the learner: each frame once, and the stacks made of them anew where they arrive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rltrain.envs.spec import EnvSpec, Leaf, Padding
from rltrain.rollout.tree import leaves, tree_map
from rltrain.rollout.types import Trajectory


@dataclass(frozen=True, slots=True)
class CompressedFrames:
    """The stacks [T+1, B, k, *frame] of an unroll, as single frames."""

    newest: np.ndarray  # [T+1, B, *frame]
    before: np.ndarray  # [k-1, B, *frame]  the older ones of row 0, oldest first
    padding: Padding

    @property
    def nbytes(self) -> int:
        """As an array says it."""
        return self.newest.nbytes + self.before.nbytes

    def stacks(self, first: np.ndarray) -> np.ndarray:
        """[T+1, B, k, *frame], as they were.

        Args:
            first: [T+1, B]  where an episode begins.
        """
        depth, (rows, streams) = len(self.before), first.shape
        frames = np.concatenate([self.before, self.newest])  # [k-1 + T+1, B, *frame]
        row = np.arange(rows)[:, None]
        begins = first.copy()
        begins[0] = False  # that stack is here, whatever it begins
        began = np.maximum.accumulate(np.where(begins, row, -depth), 0)  # [T+1, B] its episode's first row, or any
        wanted = row[..., None] - np.arange(depth, -1, -1)  # [T+1, 1, k]
        at = np.maximum(wanted, began[..., None])  # [T+1, B, k]
        found: np.ndarray = frames[at + depth, np.arange(streams)[:, None]]
        if self.padding == "zero":
            found[wanted < began[..., None]] = 0
        return found


def are_stacks(leaf: Leaf, array: np.ndarray, first: np.ndarray) -> bool:
    """Whether stacks [T+1, B, k, *frame] are the newest frames of their episodes, which begin at `first` [T+1, B]."""
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
    """Whether there is anything to save."""
    return any(leaf.stack for leaf in leaves(spec.obs))


def compressed(unroll: Trajectory, spec: EnvSpec) -> Trajectory:
    """The same with a `CompressedFrames` for stacks of frames; what is none in spite of its name stays as it is."""

    def film(leaf: Leaf, array: np.ndarray) -> Any:
        if not leaf.stack or not are_stacks(leaf, array, unroll.first):
            return array
        older = np.ascontiguousarray(array[0, :, :-1].swapaxes(0, 1))
        return CompressedFrames(np.ascontiguousarray(array[:, :, -1]), older, leaf.padding)

    return replace(unroll, obs=tree_map(film, spec.obs, unroll.obs))


def decompressed(unroll: Trajectory) -> Trajectory:
    """The inverse of `compressed`."""

    def show(leaf: Any) -> Any:
        return leaf.stacks(unroll.first) if isinstance(leaf, CompressedFrames) else leaf

    return replace(unroll, obs=tree_map(show, unroll.obs))
