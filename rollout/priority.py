"""A sum tree: draws numbered leaves with probabilities in proportion to their values, all of a batch at once."""

from __future__ import annotations

import numpy as np

TOP = 2048  # sums at most on the uppermost level, which is searched by its running sum


class SumTree:
    """`size` leaves of float64, not a power of two in general; each node above holds the sum of two.

    A node is always computed from its two children, never by adding a difference, so that there is no drift: the tree
    is to the bit what its leaves make of it.
    """

    def __init__(self, size: int) -> None:
        depth = 0
        while -(-size >> depth) > TOP:
            depth += 1
        top = -(-size >> depth)
        self.size = size
        self._levels = [np.zeros(top << level) for level in range(depth + 1)]  # sums first, leaves last
        self.leaves = self._levels[-1][:size]

    @staticmethod
    def bytes_needed(size: int) -> int:
        """What a tree of `size` leaves takes."""
        return 2 * 8 * size

    def total(self) -> float:
        """The sum of all leaves."""
        return float(self._levels[0].cumsum()[-1])

    def set(self, index: np.ndarray, value: np.ndarray | float) -> None:
        """Give the leaves `index` [n] the values `value` [n], none negative; of repeated ones the last value stays."""
        self.leaves[index] = value
        for above, below in zip(self._levels[-2::-1], self._levels[:0:-1], strict=True):
            index = index >> 1
            left = index << 1
            pair = below.take(left, mode="clip")
            left += 1
            pair += below.take(left, mode="clip")
            above[index] = pair

    def rebuild(self) -> None:
        """All sums anew, after `leaves` was written to."""
        for above, below in zip(self._levels[-2::-1], self._levels[:0:-1], strict=True):
            np.add(below[::2], below[1::2], out=above)

    def sample(self, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The leaves at the shares `where` [n], ascending, in [0, 1), of the total: (index, value). None is empty.

        ValueError where all leaves are empty.
        """
        running = np.zeros(len(self._levels[0]) + 1)
        self._levels[0].cumsum(out=running[1:])
        if not running[-1] > 0:
            raise ValueError("all leaves of the sum tree are empty")
        rest = where * running[-1]
        index = running[1:].searchsorted(rest, "right")
        np.minimum(index, len(running) - 2, out=index)
        rest -= running.take(index)
        sums, right = np.empty(len(where)), np.empty(len(where), bool)
        for below in self._levels[1:]:
            index <<= 1
            below.take(index, out=sums, mode="clip")
            np.greater_equal(rest, sums, out=right)
            sums *= right
            rest -= sums
            index += right
        value = self._levels[-1].take(index, out=sums, mode="clip")
        if not value.all():  # rounding led past the end of a subtree: to the last leaf before that is not empty
            for bad in np.flatnonzero(value == 0):
                index[bad] = self._filled(int(index[bad]))
            value = self.leaves.take(index)
        return index, value

    def _filled(self, leaf: int) -> int:
        """The last leaf up to `leaf` that is not empty, or the first after it."""
        before = np.flatnonzero(self.leaves[: leaf + 1])
        return int(before[-1]) if len(before) else int(leaf + np.flatnonzero(self.leaves[leaf:])[0])
