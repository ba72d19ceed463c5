"""Removes the files that a run leaves behind when all its processes were SIGKILLed.

Multiprocessing creates a folder (for the fork server's socket) and semaphores. `use_own_names` puts the process id and
start time into their names; `sweep` removes those whose process is gone. This module is also imported first in the fork
server, which removes the folder when the command that it belongs to was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import process
from pathlib import Path
from typing import Any

from rltrain.rollout.workers.forks import ignore

PREFIX = "rltrain"
MAX_FOLDER = 80  # characters; the path of a socket has at most 107
FOLDER = "RLTRAIN_FOLDER"  # environment variable: the folder that the fork server removes at its end


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process, or it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def name_prefix() -> str:
    """The prefix of the names of this process's files, for `sweep`."""
    return f"{PREFIX}-{os.getpid()}-{start_time(os.getpid()) or 0}-"


def use_own_names() -> None:
    """Give multiprocessing's folder and semaphores a `name_prefix` from now on."""
    folder = tempfile.mkdtemp(prefix=name_prefix())
    config = _multiprocessing()
    config["tempdir"] = folder
    config["semprefix"] = f"/{name_prefix()[:-1]}"
    os.environ[FOLDER] = folder
    atexit.register(shutil.rmtree, folder, True)


def own_folder() -> str | None:
    """The folder of `use_own_names`, which the fork server removes if this process is killed; None if there is none."""
    folder: str | None = _multiprocessing().get("tempdir")
    return folder if folder is not None and os.path.isdir(folder) else None


def remove_folder() -> None:
    """Undo `use_own_names` for the folder: there is no fork server that could remove it."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)
    _multiprocessing().pop("tempdir")


def use_own_semaphore_names() -> None:
    """Let multiprocessing name semaphores as `sweep` expects them. The import of loky changes the names."""
    from multiprocessing import synchronize

    kind: Any = synchronize.SemLock
    prefix = _multiprocessing()["semprefix"] = f"/{name_prefix()[:-1]}"
    kind._make_name = staticmethod(lambda: f"{prefix}-{next(kind._rand)}")


@contextlib.contextmanager
def folder_of_worker() -> Iterator[str | None]:
    """A folder for the sockets of multiprocessing in a worker; None if it cannot be used."""
    try:
        folder = tempfile.mkdtemp(prefix=name_prefix())
    except OSError:
        yield None
        return
    try:
        yield folder if len(folder) <= MAX_FOLDER else None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def use_folder(folder: str | None) -> None:
    """Let multiprocessing use this folder; None: one that it creates."""
    _multiprocessing()["tempdir"] = folder


def _multiprocessing() -> dict[str, Any]:
    config: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]
    return config


_swept_by: int | None = None  # id of the process that has called `sweep`


def sweep() -> None:
    """Remove the folders and semaphores of processes that are gone. Later calls in the same process do nothing."""
    global _swept_by
    if _swept_by == os.getpid():
        return
    _swept_by = os.getpid()
    pattern = re.compile(rf"(?:sem\.)?{PREFIX}-(\d+)-(\d+)-")
    for folder in {tempfile.gettempdir(), "/dev/shm"}:
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                match = pattern.match(entry.name)
                if match and start_time(int(match[1])) != int(match[2]):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        with contextlib.suppress(OSError):
                            os.unlink(entry.path)


def _in_fork_server(folder: str) -> None:
    os.setsid()  # the terminal's Ctrl-C, and signals to the command's group, do not reach it
    ignore()
    gc.disable()  # until `freeze_gc`: the search for garbage takes a tenth of the time of all imports
    sys.excepthook = _unless_given_up
    atexit.register(shutil.rmtree, folder, True)


def _unless_given_up(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """A hook for exceptions in a forked process, before it has its task; see `leave_fork_server`.

    If the run ends meanwhile, for example by Ctrl-C, the semaphores that it was to get are gone.
    """
    if not isinstance(error, FileNotFoundError | EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


if FOLDER in os.environ:
    _in_fork_server(os.environ.pop(FOLDER))  # programs that an environment starts must not find it
