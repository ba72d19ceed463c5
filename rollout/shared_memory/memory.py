"""Shared memory without a name, so that a killed process leaves nothing behind; trees of arrays inside it.

A nameless file (memfd, or an unlinked temporary file) is mapped. Its descriptor travels to another process inside a
`multiprocessing` Connection, which every start method can pass on.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from rltrain.rollout.tree import Tree, leaves, unflatten

ALIGN = 64  # bytes of a cache line


Ticket = tuple[Connection, int]  # what another process needs to attach the memory; passed on when it is started


class SharedMemory:
    """`size` bytes, zero at first. Created in the parent process; other processes `attach` it."""

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("rltrain")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, self.size)
        self._connection = Connection(descriptor)
        self._map = mmap.mmap(descriptor, self.size)

    def ticket(self) -> Ticket:
        return self._connection, self.size

    @property
    def descriptor(self) -> int:
        """Of the nameless file, in this process."""
        return self._connection.fileno()

    @classmethod
    def attach(cls, source: Ticket | SharedMemory) -> SharedMemory:
        """The memory of a ticket from another process; memory of this process is returned as it is."""
        if isinstance(source, SharedMemory):
            return source
        memory = cls.__new__(cls)
        memory._connection, memory.size = source
        memory._map = mmap.mmap(memory._connection.fileno(), memory.size)
        return memory

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A view of the memory, which stays mapped as long as the view exists."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)

    def close(self) -> None:
        """Close the descriptor. Views stay valid."""
        self._connection.close()


def tree_bytes(like: Tree) -> int:
    """Bytes of one slot that holds the arrays of `like`."""
    return _layout(leaves(like))[1]


def tree_at(memory: SharedMemory, slot: int, like: Tree, begin: int = 0) -> Tree:
    """Views of the arrays in slot number `slot`; slots follow each other from byte `begin` on.

    Args:
        like: a tree whose leaves have the shape and dtype of the arrays.
    """
    offsets, size = _layout(leaves(like))
    base = begin + slot * size
    views = [
        memory.array(base + offset, leaf.shape, leaf.dtype) for offset, leaf in zip(offsets, leaves(like), strict=True)
    ]
    return unflatten(like, views)


def _layout(arrays: list[Any]) -> tuple[list[int], int]:
    """Offsets of the arrays in one slot, each at a cache line, and the bytes of the slot."""
    offsets, end = [], 0
    for array in arrays:
        offsets.append(end)
        size = int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize
        end += -(-size // ALIGN) * ALIGN
    return offsets, end
