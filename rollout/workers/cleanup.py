"""What a run that was SIGKILLed as a whole leaves behind, and how the next one finds and removes it.

Multiprocessing names a folder (for the fork server's socket) and semaphores. `name_our_own` puts the process's number
and start time into these names; `sweep` removes those whose process is no more. This module is also imported first in
the fork server, which removes the folder when the command it belongs to was killed and could not do so itself.
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
FOLDER = "RLTRAIN_FOLDER"  # tells the fork server which folder is to go with it


def born(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def mark() -> str:
    """What the names of this process's files begin with, for `sweep`."""
    return f"{PREFIX}-{os.getpid()}-{born(os.getpid()) or 0}-"


def name_our_own() -> None:
    """From now on multiprocessing's folder and semaphores carry our name."""
    folder = tempfile.mkdtemp(prefix=mark())
    config = _multiprocessing()
    config["tempdir"] = folder
    config["semprefix"] = f"/{mark()[:-1]}"
    os.environ[FOLDER] = folder
    atexit.register(shutil.rmtree, folder, True)


def name_no_more() -> None:
    """Take `name_our_own` back: there is no fork server that could remove the folder."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)
    _multiprocessing().pop("tempdir")


def name_semaphores() -> None:
    """After loky's import, which gives all semaphores a prefix of its own: ours again."""
    from multiprocessing import synchronize

    kind: Any = synchronize.SemLock
    prefix = _multiprocessing().get("semprefix")
    if isinstance(prefix, str) and prefix.startswith(f"/{PREFIX}-"):
        kind._make_name = staticmethod(lambda: f"{prefix}-{next(kind._rand)}")


def _multiprocessing() -> dict[str, object]:
    config: dict[str, object] = process.current_process()._config  # type: ignore[attr-defined]
    return config


def sweep() -> None:
    """Remove folders and semaphores of runs that are gone."""
    pattern = re.compile(rf"(?:sem\.)?{PREFIX}-(\d+)-(\d+)-")
    for place in {tempfile.gettempdir(), "/dev/shm"}:
        with contextlib.suppress(OSError):
            for entry in os.scandir(place):
                found = pattern.match(entry.name)
                if found and born(int(found[1])) != int(found[2]):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        with contextlib.suppress(OSError):
                            os.unlink(entry.path)


def _in_fork_server() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; only the command answers them
        signal.signal(number, signal.SIG_IGN)
    folder = os.environ.get(FOLDER)
    if folder:
        atexit.register(shutil.rmtree, folder, True)


if FOLDER in os.environ:
    _in_fork_server()
