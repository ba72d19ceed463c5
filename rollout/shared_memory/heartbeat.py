"""Progress of an actor in shared memory, so that the learner's process notices an actor that hangs."""

from __future__ import annotations

import numpy as np

from rltrain.rollout.shared_memory.memory import SharedMemory

HEARTBEAT = 5  # numbers of an actor in the memory they all share, 8 bytes each: see `Heartbeat`


class Heartbeat:
    """What an actor lets its supervisor see while it acts: views of `HEARTBEAT` numbers in shared memory."""

    def __init__(self, memory: SharedMemory, worker: int) -> None:
        base = 8 * HEARTBEAT * worker
        self._counts = memory.array(base, (3,), np.int64)
        self._seconds = memory.array(base + 24, (2,), np.float64)

    @property
    def steps(self) -> int:
        """Vector steps, the evidence of life."""
        return int(self._counts[0])

    @property
    def begun(self) -> int:
        """Unrolls that have read their weights."""
        return int(self._counts[1])

    @property
    def acted(self) -> float:
        """Seconds spent on unrolls."""
        return float(self._seconds[0])

    @property
    def waited(self) -> float:
        """Seconds between unrolls: the learner was not ready for more."""
        return float(self._seconds[1])

    @property
    def stopped(self) -> bool:
        """Whether no more unrolls are wanted, those that were asked for included."""
        return bool(self._counts[2])

    def end(self) -> None:
        self._counts[2] = 1

    def step(self) -> None:
        self._counts[0] += 1

    def begin(self) -> None:
        self._counts[1] += 1

    def count(self, waited: float, acted: float) -> None:
        self._seconds[0] += acted
        self._seconds[1] += waited
