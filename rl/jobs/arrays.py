"""Pickles the arguments of jobs; a large array is copied once, into shared memory, and only its place is sent.

The memory has no name (see rltrain.rollout.shared_memory), so that nothing stays when processes are killed. A worker of
the same user opens it through /proc. Where that is impossible, arrays are pickled like other arguments.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import threading
import weakref
from typing import Any

import cloudpickle
import numpy as np

from rltrain.rollout.shared_memory.memory import SharedMemory

LEAST_BYTES = 2**20  # of an array that is shared


class Arrays:
    """The arrays of this process that were sent to jobs, each with its copy in shared memory.

    An array that changed since it was sent is copied again. A copy is freed when its array, and every payload that
    refers to it, are gone.
    """

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Any, SharedMemory]] = {}
        self._lock = threading.Lock()

    def dumps(self, value: Any) -> tuple[bytes, list[SharedMemory]]:
        """The pickled value, and the copies that must live until it is unpickled."""
        file = io.BytesIO()
        pickler = _Pickler(file, self)
        pickler.dump(value)
        return file.getvalue(), pickler.used

    def share(self, array: np.ndarray) -> SharedMemory:
        """The copy of this array."""
        key = id(array)
        with self._lock:
            before = self._copies.get(key)
            if before is not None and before[0]() is array and _equal(array, before[1]):
                return before[1]
            memory = SharedMemory(array.nbytes)
            memory.array(0, array.shape, array.dtype)[...] = array
            self._copies[key] = weakref.ref(array, lambda _: self._copies.pop(key, None)), memory
            return memory


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, arrays: Arrays) -> None:
        super().__init__(file)
        self._arrays = arrays
        self.used: list[SharedMemory] = []

    def reducer_override(self, value: Any) -> Any:
        if type(value) is np.ndarray and value.nbytes >= LEAST_BYTES and _can_be_shared(value):
            memory = self._arrays.share(value)
            self.used.append(memory)
            return attach, (os.getpid(), memory.descriptor, memory.size, value.shape, value.dtype.str)
        return super().reducer_override(value)


def attach(pid: int, descriptor: int, size: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array in the shared memory of process `pid`. It is read-only, since all jobs see the same memory."""
    with open(f"/proc/{pid}/fd/{descriptor}", "rb") as file:
        data = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    return np.frombuffer(data, dtype, int(np.prod(shape, dtype=np.int64))).reshape(shape)


def _can_be_shared(array: np.ndarray) -> bool:
    plain = array.dtype.kind in "biufc" and array.flags.c_contiguous
    return plain and os.path.isdir("/proc/self/fd")


def _equal(array: np.ndarray, memory: SharedMemory) -> bool:
    if memory.size != array.nbytes:
        return False
    copy = memory.array(0, (memory.size,), np.uint8)
    compare = ctypes.CDLL(None).memcmp
    pointers = ctypes.c_void_p(array.ctypes.data), ctypes.c_void_p(copy.ctypes.data)
    return int(compare(*pointers, ctypes.c_size_t(memory.size))) == 0
