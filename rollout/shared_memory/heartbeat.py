"""Progress of an actor in shared memory, so that the learner's process notices an actor that hangs."""

from __future__ import annotations

import numpy as np

from rltrain.rollout.shared_memory.memory import SharedMemory

# Numbers of 8 bytes for each actor: steps, begun, outside, leaf, stopped (int64); acted, waited (float64).
HEARTBEAT = 7
COUNTS = 5  # that are int64


def heartbeat_numbers(memory: SharedMemory, worker: int) -> np.ndarray:
    """The HEARTBEAT numbers of an actor as int64, to be copied as a whole."""
    return memory.array(8 * HEARTBEAT * worker, (HEARTBEAT,), np.int64)


class Heartbeat:
    """Counters that an actor updates while it acts and its supervisor reads."""

    def __init__(self, memory: SharedMemory, worker: int) -> None:
        numbers = heartbeat_numbers(memory, worker)
        self._counts, self._seconds = numbers[:COUNTS], numbers[COUNTS:].view(np.float64)
        self._steps = memoryview(numbers[:1])  # type: ignore[arg-type]  # a fifth of the time of an array's item

    @property
    def steps(self) -> int:
        """Vector steps made."""
        return int(self._counts[0])

    @property
    def begun(self) -> int:
        """Unrolls that have read their weights."""
        return int(self._counts[1])

    @property
    def outside(self) -> int:
        """Numbers in observations so far that were outside of the bounds of their float Box."""
        return int(self._counts[2])

    @property
    def outside_leaf(self) -> int:
        """The index of the array of the observation with the first of them."""
        return int(self._counts[3])

    @property
    def acted(self) -> float:
        """Seconds spent on unrolls."""
        return float(self._seconds[0])

    @property
    def waited(self) -> float:
        """Seconds between unrolls, in which the actor waited for the learner."""
        return float(self._seconds[1])

    @property
    def stopped(self) -> bool:
        """True if no more unrolls are wanted, not even those already asked for."""
        return bool(self._counts[4])

    def stop(self) -> None:
        self._counts[4] = 1

    def step(self) -> None:
        self._steps[0] += 1

    def begin(self) -> None:
        self._counts[1] += 1

    def count_outside(self, by_leaf: dict[int, int]) -> None:
        """Add numbers outside of their float Boxes, given by the index of the array."""
        if by_leaf:
            if not self._counts[2]:
                self._counts[3] = next(iter(by_leaf))
            self._counts[2] += sum(by_leaf.values())

    def add_seconds(self, waited: float, acted: float) -> None:
        self._seconds[0] += acted
        self._seconds[1] += waited

    def add(self, base: np.ndarray, numbers: np.ndarray) -> None:
        """Set the counters to the sum of two copies of `heartbeat_numbers`; `stopped` is not changed."""
        self._counts[:3] = base[:3] + numbers[:3]
        self._counts[3] = numbers[3]
        self._seconds[:] = base[COUNTS:].view(np.float64) + numbers[COUNTS:].view(np.float64)
