"""Versioned weights in shared memory: published once, read by all actors, never torn.

There are two copies, written alternately. A copy carries its sequence number at both ends; a reader that finds another
number there after copying was overtaken, and reads again.
"""

from __future__ import annotations

import numpy as np

from rltrain.rollout.shared_memory.memory import ALIGN, SharedMemory, tree_at, tree_bytes
from rltrain.rollout.types import Weights

HEAD = np.zeros(4, np.int64)  # of a copy: its sequence number, version, step, and its sequence number again


class WeightsBoard:
    """Shared memory for the newest weights: the learner publishes, actors read.

    Args:
        like:   arrays with the shapes and dtypes of the weights, by name.
        memory: the board's memory, in an actor; None creates it.
    """

    def __init__(self, like: dict[str, np.ndarray], memory: SharedMemory | None = None) -> None:
        copy = (HEAD, like)
        self.memory = memory or SharedMemory(ALIGN + 2 * tree_bytes(copy))
        self._latest = self.memory.array(0, (1,), np.int64)
        self._copies = [tree_at(self.memory, number, copy, begin=ALIGN) for number in range(2)]

    @property
    def sequence(self) -> int:
        """Number of times that weights were published."""
        return int(self._latest[0])

    def publish(self, weights: Weights) -> None:
        """Write a new version; readers see the previous one until it is complete."""
        sequence = self.sequence + 1
        head, arrays = self._copies[sequence % 2]
        head[0] = sequence
        for name, array in arrays.items():
            array[...] = weights.arrays[name]
        head[1:3] = weights.version, weights.step
        head[3] = sequence
        self._latest[0] = sequence

    def read(self, into: dict[str, np.ndarray]) -> tuple[int, int]:
        """Copy the newest complete version into `into`; returns (version, step).

        Raises:
            RuntimeError: no weights have been published yet.
        """
        while True:
            sequence = self.sequence
            if sequence == 0:
                raise RuntimeError("no weights have been published yet")
            head, arrays = self._copies[sequence % 2]
            if head[3] == sequence:
                for name, array in arrays.items():
                    into[name][...] = array
                version, step = int(head[1]), int(head[2])
                if head[0] == sequence and head[3] == sequence:
                    return version, step


def is_published(memory: SharedMemory) -> bool:
    """True if weights were published to the board with this memory."""
    return int(memory.array(0, (1,), np.int64)[0]) > 0
