"""The server from which worker processes are forked, after it has imported torch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any

from rltrain.rollout.workers.forks import one_thread

PRELOAD = [  # modules that workers need
    "loky.process_executor",
    "rltrain.envs.make",
    "rltrain.envs.vector.restore",
    "rltrain.envs.vector.native",
    "rltrain.rollout.scheduler",
    "rltrain.rollout.actor.play",
    "rltrain.rollout.workers.process",
    "rltrain.rollout.workers.worker_process",
]

_fork_server = False


def start_fork_server(preload: list[str]) -> None:
    """Start, in the background, the process that workers are forked from; it imports torch meanwhile.

    Only for programs whose `__main__` a worker never needs: the commands of this package, and tests.

    Args:
        preload: modules to import first, in addition to PRELOAD.
    """
    global _fork_server
    if _fork_server or not hasattr(os, "fork") or sys.platform == "darwin":
        return
    from rltrain.rollout.workers.cleanup import FOLDER, remove_folder, sweep, use_own_names
    from rltrain.rollout.workers.parent_state import starting_python

    sweep()
    use_own_names()
    context: Any = get_context("forkserver")
    context.set_forkserver_preload(
        ["rltrain.rollout.workers.cleanup", *preload, *PRELOAD, "rltrain.rollout.workers.freeze_gc"]
    )
    from multiprocessing import forkserver

    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))
    with (
        without_main(),
        starting_python(),
        contextlib.suppress(OSError),
    ):  # the path of its socket may be too long; then loky starts processes
        forkserver.ensure_running()
        _fork_server = True
    for name, value in threads.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    if not _fork_server:
        remove_folder()
    os.environ.pop(FOLDER, None)


def has_fork_server() -> bool:
    """True if workers are forked from the server; False if loky starts them with its own method."""
    return _fork_server


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module: a forked worker does not need it, and would spend time to import it."""
    main = sys.modules["__main__"]
    with one_thread():
        hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
        try:
            main.__spec__ = None
            if "__file__" in hidden:
                del main.__file__
            yield
        finally:
            for name, value in hidden.items():
                setattr(main, name, value)
