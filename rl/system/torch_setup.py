"""Settings of torch and of the C library for a run: threads, warnings, freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Iterator

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system. Without glibc it does nothing.

    An update allocates and frees the outputs of all layers. By default freed memory of more than 128 KB returns to the
    system, and new pages cost more than the computation: 300 us for the output of 384 rows and 256 units, whose
    gradient takes 60 us. Learning from images loses a tenth of its speed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that every glibc accepts
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch uses one thread in the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def quiet_torch(threads: int) -> None:
    """A fixed number of threads, and no warnings about read-only arrays."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*The given NumPy array is not writable.*")
