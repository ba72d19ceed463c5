"""The processes that end what environments leave behind (rollout/workers/local_children.py), as forks of one of them.

By default each is a Python of its own, whose start and imports take a tenth of a second: twice in every short run of a
test. Run as a script, with the number of a socket, it is the process that they are forked from.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def use_forks() -> None:
    """Let environments in this process, and in its forks, be watched by forks of one process."""
    from rltrain.rollout.workers import local_children, process_tree

    if sys.platform != "linux":
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, "-I", "-S", __file__, str(theirs.fileno()), str(Path(process_tree.__file__).parent)]
    server = subprocess.Popen(words, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()

    class Watch:
        """Has what `LocalChildren` uses of a Popen."""

        server_process = server  # a Popen that is collected while its process runs warns

        def __init__(self, command: list[str], *, stdin: int, start_new_session: bool) -> None:
            assert start_new_session
            assert command[:4] == [sys.executable, "-I", "-S", process_tree.__file__]
            self._ended, end = os.pipe()
            fds = array.array("i", [stdin, end])
            ours.sendmsg([command[4].encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            os.close(end)

        def wait(self, seconds: float) -> int:
            """Until the server has seen its end."""
            poll = select.poll()  # select refuses descriptors above 1,023, which a process of many tests has
            poll.register(self._ended, select.POLLIN)
            if not poll.poll(1000 * seconds):
                raise subprocess.TimeoutExpired("watch", seconds)
            return 0

        def __del__(self) -> None:
            os.close(self._ended)

    stand_in: Any = SimpleNamespace(Popen=Watch, TimeoutExpired=subprocess.TimeoutExpired)
    local_children.subprocess = stand_in


def serve(requests: socket.socket) -> None:
    """Start what is asked for until the other end is closed, and close the second pipe of each that has ended."""
    import process_tree

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ends: dict[int, int] = {}  # by process
    open_ = True
    while open_ or ends:
        ready, _, _ = select.select([requests, reader] if open_ else [reader], [], [])
        if requests in ready:
            marker, fds, _, _ = socket.recv_fds(requests, 4096, 2)
            open_ = bool(marker)
            if marker:
                pid = os.fork()
                if pid == 0:
                    os.setsid()
                    requests.close()
                    for fd in (fds[1], *ends.values()):
                        os.close(fd)
                    sys.stdin = os.fdopen(fds[0])
                    process_tree.watch(marker.decode())
                    os._exit(0)
                os.close(fds[0])
                ends[pid] = fds[1]
        if reader in ready:
            os.read(reader, 4096)
            while ends and (pid := os.waitpid(-1, os.WNOHANG)[0]):
                os.close(ends.pop(pid))


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])
    serve(socket.socket(fileno=int(sys.argv[1])))
