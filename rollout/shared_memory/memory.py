"""Memory that several processes see, without a name that could be left behind.

A nameless file (memfd, or an unlinked temporary file) is mapped; its descriptor travels to an actor inside a
`multiprocessing` Connection, which every start method knows how to hand over.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from rltrain.rollout.tree import Tree, leaves, unflatten

ALIGN = 64  # bytes; arrays begin at cache lines


class SharedMemory:
    """`size` bytes, zero at first. Create it in the parent, `attach` it in an actor."""

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

    def ticket(self) -> tuple[Connection, int]:
        """What an actor needs to `attach`; hand it over when the process is started."""
        return self._connection, self.size

    @classmethod
    def attach(cls, ticket: tuple[Connection, int]) -> SharedMemory:
        """The same memory in another process."""
        memory = cls.__new__(cls)
        memory._connection, memory.size = ticket
        memory._map = mmap.mmap(memory._connection.fileno(), memory.size)
        return memory

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A view of the memory; the map stays alive as long as the view."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)

    def close(self) -> None:
        """Give the descriptor back. Views stay valid."""
        self._connection.close()


def layout(arrays: list[tuple[tuple[int, ...], Any]]) -> tuple[list[int], int]:
    """Offsets of arrays (shape, dtype) in one flat record, and its size in bytes."""
    offsets, end = [], 0
    for shape, dtype in arrays:
        offsets.append(end)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        end += -(-size // ALIGN) * ALIGN
    return offsets, end


def tree_bytes(tree: Tree) -> int:
    """Bytes of one slot that holds the arrays of `tree`."""
    return layout([(leaf.shape, leaf.dtype) for leaf in leaves(tree)])[1]


def tree_at(memory: SharedMemory, slot: int, like: Tree) -> Tree:
    """Views of the arrays of slot number `slot`, shaped like the leaves of `like` (anything with shape and dtype)."""
    arrays = [(leaf.shape, leaf.dtype) for leaf in leaves(like)]
    offsets, size = layout(arrays)
    views = [
        memory.array(slot * size + offset, shape, dtype) for offset, (shape, dtype) in zip(offsets, arrays, strict=True)
    ]
    return unflatten(like, views)
