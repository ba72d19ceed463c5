"""Pickles functions and arguments of jobs; a large array is copied once into shared memory, and only its place is sent.

The memory has no name (see rltrain.rollout.shared_memory), so that nothing stays when processes are killed. A worker of
the same user opens it through /proc. Where that is impossible, arrays are pickled like other arguments.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import pickle
import threading
import weakref
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from rltrain.envs.pickling import SelfContainedPickler
from rltrain.rollout.shared_memory.memory import SharedMemory

_pickling = threading.RLock()  # for `SelfContainedPickler`
LEAST_BYTES = 2**20  # of an array that is shared
Place = tuple[int, int, int]  # of memory in another process: its pid, the descriptor there, bytes


class Pickled(NamedTuple):
    """A pickled value. The large arrays in it are in shared memory, which lives at least as long as this object."""

    data: bytes
    arrays: tuple[SharedMemory, ...]

    def sent(self) -> tuple[bytes, list[Place]]:
        """For `loads` in another process of this machine."""
        return self.data, [place(memory) for memory in self.arrays]


def place(memory: SharedMemory) -> Place:
    """Where other processes of this machine find this memory."""
    return os.getpid(), memory.descriptor, memory.size


def loads(data: bytes, places: list[Place]) -> Any:
    """The value. Its large arrays are read-only, since all jobs see the same memory."""
    return pickle.loads(data, buffers=map(_attach, places))


def _attach(where: Place) -> mmap.mmap:
    pid, descriptor, size = where
    with open(f"/proc/{pid}/fd/{descriptor}", "rb") as file:
        return mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)


class Arrays:
    """The arrays of this process that were sent to jobs, each with its copy in shared memory.

    An array that changed since it was sent is copied again. A copy is freed when its array, and every `Pickled` that
    refers to it, are gone.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[int, int], tuple[Any, SharedMemory]] = {}  # by address and size of the data
        self._lock = threading.Lock()
        self._can_share = os.path.isdir("/proc/self/fd")

    def dumps(self, value: Any, self_contained: bool = False) -> Pickled:
        """The pickled value.

        Args:
            self_contained: with the code in it that comes from files of the user.
        """
        file, used = io.BytesIO(), list[SharedMemory]()

        def stays_in(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if not self._can_share or raw.nbytes < LEAST_BYTES:
                return True
            used.append(self._share(buffer, raw))
            return False

        options = {"protocol": 5, "buffer_callback": stays_in}
        if self_contained:
            with _pickling, contextlib.closing(SelfContainedPickler(file, **options)) as pickler:
                pickler.dump(value)
        else:
            cloudpickle.Pickler(file, **options).dump(value)
        return Pickled(file.getvalue(), tuple(used))

    def _share(self, buffer: pickle.PickleBuffer, raw: memoryview) -> SharedMemory:
        """The copy of this data."""
        data = np.frombuffer(raw, np.uint8)
        owner: Any = memoryview(buffer).obj
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base  # a view, as of an array in Fortran's order, lives shorter than the data
        key = data.ctypes.data, data.nbytes
        with self._lock:
            before = self._copies.get(key)
            if before is not None and before[0]() is owner and _equal(data, before[1]):
                return before[1]
            memory = SharedMemory(data.nbytes)
            memory.array(0, data.shape, np.uint8)[...] = data
            try:
                self._copies[key] = weakref.ref(owner, lambda _: self._copies.pop(key, None)), memory
            except TypeError:  # a buffer of another kind: the copy is for this job
                self._copies.pop(key, None)
            return memory


def _equal(data: np.ndarray, memory: SharedMemory) -> bool:
    copy = memory.array(0, (memory.size,), np.uint8)
    compare = ctypes.CDLL(None).memcmp
    pointers = ctypes.c_void_p(data.ctypes.data), ctypes.c_void_p(copy.ctypes.data)
    return int(compare(*pointers, ctypes.c_size_t(memory.size))) == 0
