"""Versioned weights in shared memory: published once, read by all, never torn.

Two copies take turns. A copy carries its sequence number at both ends; a reader that finds another number there after
copying was overtaken, and reads again.
"""

from __future__ import annotations

import numpy as np

from rltrain.rollout.shared_memory.memory import SharedMemory, layout
from rltrain.rollout.types import Weights

HEAD = 4  # int64s before a copy: sequence at the beginning, version, step, sequence at the end


def published(memory: SharedMemory) -> bool:
    """Whether anything was, into a board's memory."""
    return int(memory.array(0, (1,), np.int64)[0]) > 0


class WeightsBoard:
    """Where the learner publishes and actors read.

    Args:
        like:   arrays of the shapes and types to come, by name.
        memory: an attached memory in actors; the learner's side makes it.
    """

    def __init__(self, like: dict[str, np.ndarray], memory: SharedMemory | None = None) -> None:
        kinds = [(array.shape, array.dtype) for array in like.values()]
        offsets, size = layout([((HEAD,), np.int64), *kinds])
        self.memory = memory or SharedMemory(64 + 2 * size)
        self._latest = self.memory.array(0, (1,), np.int64)
        self._copies: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        for copy in range(2):
            base = 64 + copy * size
            head = self.memory.array(base, (HEAD,), np.int64)
            arrays = {
                name: self.memory.array(base + offset, *kind)
                for name, offset, kind in zip(like, offsets[1:], kinds, strict=True)
            }
            self._copies.append((head, arrays))

    def publish(self, weights: Weights) -> None:
        """Write a new version; readers see the old one until it is whole."""
        sequence = int(self._latest[0]) + 1
        head, arrays = self._copies[sequence % 2]
        head[0] = sequence
        for name, array in arrays.items():
            array[...] = weights.arrays[name]
        head[1:3] = weights.version, weights.step
        head[3] = sequence
        self._latest[0] = sequence

    def read(self, into: dict[str, np.ndarray]) -> tuple[int, int]:
        """Copy the newest whole version into `into`; returns (version, step). Nothing published yet: an error."""
        while True:
            sequence = int(self._latest[0])
            if sequence == 0:
                raise RuntimeError("no weights have been published yet")
            head, arrays = self._copies[sequence % 2]
            if head[3] == sequence:
                for name, array in arrays.items():
                    into[name][...] = array
                version, step = int(head[1]), int(head[2])
                if head[0] == sequence and head[3] == sequence:
                    return version, step

    @property
    def sequence(self) -> int:
        """How often something was published."""
        return int(self._latest[0])
