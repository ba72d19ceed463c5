"""The server from which worker processes are forked; it has already imported torch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any

PRELOAD = [
    "loky.process_executor",
    "rltrain.envs.make",
    "rltrain.envs.vector.restore",
    "rltrain.envs.vector.native",
    "rltrain.rollout.scheduler",
    "rltrain.rollout.actor.play",
    "rltrain.rollout.workers.process",
]


_fork_server = False


def start_fork_server(preload: list[str]) -> None:
    """Start, in the background, the process that actors are forked from; it imports torch while this one goes on.

    For programs whose `__main__` an actor never needs: our commands, and tests.
    """
    global _fork_server
    if _fork_server or not hasattr(os, "fork") or sys.platform == "darwin":
        return
    from rltrain.rollout.workers.cleanup import FOLDER, name_no_more, name_our_own, sweep

    sweep()
    name_our_own()
    context: Any = get_context("forkserver")
    context.set_forkserver_preload(
        ["rltrain.rollout.workers.cleanup", *preload, *PRELOAD, "rltrain.rollout.workers.freeze_gc"]
    )
    from multiprocessing import forkserver

    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))
    with without_main(), contextlib.suppress(OSError):  # its socket's path may be too long: then loky's own way
        forkserver.ensure_running()
        _fork_server = True
    for name, value in threads.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    if not _fork_server:
        name_no_more()
    os.environ.pop(FOLDER, None)


def has_fork_server() -> bool:
    """True if processes are forked from the server here; False if loky starts them in its own way."""
    return _fork_server


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module: a forked actor needs nothing of it, and importing it again costs time."""
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    try:
        main.__spec__ = None
        if "__file__" in hidden:
            del main.__file__
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)
