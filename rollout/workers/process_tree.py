"""Finds and ends the processes that an environment started, whatever they did to get away.

A worker's supervisor adopts orphans (`adopt_orphans`), so all of them are its descendants. If the supervisor itself was
killed, they are known by the session of the worker and by an environment variable.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

TERM_SECONDS = 0.5  # from SIGTERM to SIGKILL
TRACKER_SECONDS = 1.0  # for multiprocessing's resource trackers, which remove shared memory when all others are gone
KILL_SECONDS = 2.0  # to wait for killed processes
POLL = 0.005
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, in place of init. No-op outside Linux."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the end of the parent send this signal to this process, even while it hangs in C code; 0: no signal."""
    _prctl(PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def end_descendants(on_reaped: Callable[[int, int], None]) -> None:
    """End all descendants of this process: SIGTERM, then SIGKILL. Resource trackers end last, by themselves.

    Args:
        on_reaped: called with the pid and the status of each child that ended.
    """
    _end(lambda: descendants(os.getpid()), lambda: reap(on_reaped), spare_trackers=False)


def end_marked(marker: str, session: int | None = None, pids: Sequence[int] = ()) -> None:
    """End the processes that have `marker` in their environment, those of a session, and `pids` with their descendants.

    Resource trackers are left: they end by themselves.
    """

    def find() -> list[int]:
        below = [pid for top in pids for pid in (top, *descendants(top))]
        marked = [pid for pid, fields in _processes() if int(fields[3]) == session or _has_marker(pid, marker)]
        return [pid for pid in (*below, *marked) if not _is_tracker(pid)]

    _end(find, lambda: bool(find() or find()), spare_trackers=True)  # one look may miss those of a process that ends


def _end(find: Callable[[], list[int]], any_left: Callable[[], bool], spare_trackers: bool) -> None:
    phases = (
        (signal.SIGTERM, TERM_SECONDS, False),
        (signal.SIGKILL, TRACKER_SECONDS, True),
        (signal.SIGKILL, KILL_SECONDS, spare_trackers),
    )
    for number, seconds, spare in phases:
        until, signalled = time.monotonic() + seconds, set[int]()
        while any_left() and time.monotonic() < until:
            for pid in find():
                if pid not in signalled and not (spare and _is_tracker(pid)):
                    signalled.add(pid)
                    send(pid, number)
            time.sleep(POLL)


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone, or may belong to another user."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def reap(on_reaped: Callable[[int, int], None]) -> bool:
    """Collect the status of all children that ended. Returns whether there are others."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        on_reaped(pid, status)


def descendants(pid: int) -> list[int]:
    """All living processes below `pid`."""
    children: dict[int, list[int]] = {}
    for child, fields in _processes():
        children.setdefault(int(fields[1]), []).append(child)
    found, open_ = list[int](), [pid]
    while open_:
        below = children.get(open_.pop(), [])
        found += below
        open_ += below
    return found


def _processes(only: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Of each process that has not ended: its pid, and the fields of /proc/PID/stat from the state on."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc") if only is None else [str(only)]:
            if name.isdigit():
                with contextlib.suppress(OSError):
                    fields = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
                    if fields and fields[0] not in "ZX":
                        yield int(name), fields


def _is_tracker(pid: int) -> bool:
    return b"resource_tracker" in _read(pid, "cmdline")


def _has_marker(pid: int, marker: str) -> bool:
    return marker.encode() in _read(pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def watch(marker: str) -> None:
    """A process of its own: read pids of forks until the pipe ends, then end them and the marked processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    forks: dict[int, str] = {}
    for line in sys.stdin:
        forks[int(line)] = _started(int(line))
    end_marked(marker, pids=[pid for pid, started in forks.items() if started and started == _started(pid)])


def _started(pid: int) -> str:
    return next((fields[19] for other, fields in _processes(pid) if other == pid), "")


if __name__ == "__main__":
    watch(sys.argv[1])
