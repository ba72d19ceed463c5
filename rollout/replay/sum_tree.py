"""A sum tree: draws a batch of leaves with probabilities in proportion to their values."""

from __future__ import annotations

import numpy as np

TOP = 2048  # at most so many nodes on the uppermost level, which is searched by binary search
WIDTH = 8  # children of a node: their cumulative sums fill one cache line
SHIFT, MASK = 3, WIDTH - 1
ONES, BYTE = 0x0101010101010101, 56


class SumTree:
    """`size` leaves of float64; each node above them has 8 children and stores their cumulative sums.

    A node is always computed from its children, never by adding a difference. So rounding errors do not accumulate: the
    tree is a function of its leaves, to the bit.
    """

    def __init__(self, size: int) -> None:
        depth = 0
        while -(-size >> SHIFT * depth) > TOP:
            depth += 1
        top = -(-size >> SHIFT * depth)
        self.size = size
        self._sums = [np.zeros(top << SHIFT * level) for level in range(depth + 1)]  # of nodes; leaves last
        self._before = [np.zeros((len(sums), WIDTH)) for sums in self._sums[:-1]]  # [node, child] sum before the child
        self.leaves = self._sums[-1][:size]

    @staticmethod
    def bytes_needed(size: int) -> int:
        """Approximate bytes of a tree of `size` leaves."""
        return 8 * size * 16 // 7

    def set(self, index: np.ndarray, value: np.ndarray | float) -> None:
        """Sets the leaves `index` [n] to `value` [n], none negative. Of a repeated leaf the last value counts."""
        self.leaves[index] = value
        for level in range(len(self._before) - 1, -1, -1):
            index = index >> SHIFT
            running = self._sums[level + 1].reshape(-1, WIDTH).take(index, 0, mode="clip").cumsum(1)
            self._sums[level][index] = running[:, -1]
            before = np.zeros_like(running)
            before[:, 1:] = running[:, :-1]
            self._before[level][index] = before

    def rebuild(self) -> None:
        """Computes all sums, after `leaves` was written to."""
        for level in range(len(self._before) - 1, -1, -1):
            running = self._sums[level + 1].reshape(-1, WIDTH).cumsum(1)
            self._sums[level][:] = running[:, -1]
            self._before[level][:, 1:] = running[:, :-1]

    def sample(self, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The leaves at the shares where / n of the total sum: (index, value), [n] each. Their values are above 0.

        Args:
            where: [n] ascending, in [0, n).

        Raises:
            ValueError: all leaves are 0.
        """
        running = np.zeros(len(self._sums[0]) + 1)
        self._sums[0].cumsum(out=running[1:])
        if not running[-1] > 0:
            raise ValueError("all leaves of the sum tree are 0")
        rest = where * (running[-1] / len(where))
        index = running[1:].searchsorted(rest, "right")
        np.minimum(index, len(running) - 2, out=index)
        rest -= running.take(index)
        rows = np.arange(0, WIDTH * len(where), WIDTH)
        for before in self._before:
            left = before.take(index, 0, mode="clip")
            child = (left.ravel() <= rest.repeat(WIDTH)).view(np.int64)  # 8 bytes: 1 up to the wanted child, 0 after it
            child *= ONES  # the uppermost byte is the sum of the bytes
            child >>= BYTE
            child -= 1
            rest -= left.ravel().take(rows + child, mode="clip")
            index <<= SHIFT
            index += child
        value = self._sums[-1].take(index, mode="clip")
        if np.count_nonzero(value) < len(value):  # rounding led to an empty leaf
            for bad in np.flatnonzero(value == 0):
                index[bad] = self._nearest_nonzero(int(index[bad]))
            value = self.leaves.take(index)
        return index, value

    def _nearest_nonzero(self, leaf: int) -> int:
        """The last leaf up to `leaf` that is not 0, or the first one after it."""
        before = np.flatnonzero(self.leaves[: leaf + 1])
        return int(before[-1]) if len(before) else int(leaf + np.flatnonzero(self.leaves[leaf:])[0])
