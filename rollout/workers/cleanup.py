"""Removes the files that a run leaves behind when all its processes were SIGKILLed.

Multiprocessing creates a folder (for the fork server's socket) and semaphores. `use_own_names` puts the process id and
start time into their names; `sweep` removes those whose process is gone. This module is also imported first in the fork
server, which removes the folder when the command that it belongs to was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import signal
import tempfile
from multiprocessing import process
from pathlib import Path
from typing import Any

PREFIX = "rltrain"
FOLDER = "RLTRAIN_FOLDER"  # environment variable: the folder that the fork server removes at its end


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


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


def remove_folder() -> None:
    """Undo `use_own_names` for the folder: there is no fork server that could remove it."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)
    _multiprocessing().pop("tempdir")


def restore_semaphore_prefix() -> None:
    """Restore our prefix of semaphores after the import of loky, which sets its own."""
    from multiprocessing import synchronize

    kind: Any = synchronize.SemLock
    prefix = _multiprocessing().get("semprefix")
    if isinstance(prefix, str) and prefix.startswith(f"/{PREFIX}-"):
        kind._make_name = staticmethod(lambda: f"{prefix}-{next(kind._rand)}")


def _multiprocessing() -> dict[str, object]:
    config: dict[str, object] = process.current_process()._config  # type: ignore[attr-defined]
    return config


def sweep() -> None:
    """Remove the folders and semaphores of processes that are gone."""
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


def _in_fork_server() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group; only the command handles them
        signal.signal(number, signal.SIG_IGN)
    folder = os.environ.get(FOLDER)
    if folder:
        atexit.register(shutil.rmtree, folder, True)


if FOLDER in os.environ:
    _in_fork_server()
