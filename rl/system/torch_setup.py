"""Torch and the C library in this process, as a run wants them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Iterator

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_memory() -> None:
    """Have glibc keep what is freed in place of giving it back at once, where glibc is what there is.

    Learning from images frees and takes the same tens of megabytes in each minibatch; that the pages come anew each
    time costs it a tenth of its speed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that every glibc takes
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def quiet_torch(threads: int) -> None:
    """Torch as a run wants it: a fixed number of threads, no advice on the console."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*The given NumPy array is not writable.*")
