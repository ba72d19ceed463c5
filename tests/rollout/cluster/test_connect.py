"""A cluster of this package's own, on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rltrain.rollout.cluster.cluster import Cluster
from rltrain.rollout.cluster.connect import connect

LISTEN = "0A"  # state of a socket in /proc/net/tcp
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}  # 127.0.0.1 and ::1


def listening() -> set[str]:
    """The addresses, ADDRESS:PORT in hexadecimal, on which this process waits for connections."""
    sockets = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of this listing
            sockets.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    tables = [Path("/proc/self/net", name).read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()]
    return {row[1] for row in rows if row[3] == LISTEN and row[9] in sockets}


def test_a_cluster_of_our_own_can_be_reached_from_this_machine_only_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("rltrain.rollout.cluster.connect.own_folder", lambda: None)  # of a server of another test
    before, path = listening(), sys.path[:]
    cluster = connect(Cluster, None, 2, 10.0)
    try:
        found = listening() - before
        assert any(tmp_path.iterdir())
    finally:
        cluster.close()

    assert not list(tmp_path.iterdir())
    assert sys.path == path
    assert found, "no socket was found: this test tests nothing"
    assert {address.partition(":")[0] for address in found} <= LOOPBACK


KILLED = """
import multiprocessing, os, signal
from rltrain.rollout.cluster.cluster import Cluster
from rltrain.rollout.cluster.connect import connect
from rltrain.rollout.workers.fork_server import start_fork_server

if __name__ == "__main__":
    start_fork_server([])
    child = multiprocessing.get_context("forkserver").Process(target=int)
    child.start()
    child.join()  # so the server is there
    cluster = connect(Cluster, None, 2, 10.0)
    print(*os.listdir(os.environ["TMPDIR"]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.sweep
def test_a_cluster_of_our_own_leaves_nothing_if_its_process_is_killed(tmp_path: Path) -> None:
    """The fork server, which outlives the process for a moment, removes its folder."""
    (tmp_path / "killed.py").write_text(KILLED)
    with tempfile.TemporaryDirectory() as folder:  # a short name, in which the server can have its socket
        words = [sys.executable, str(tmp_path / "killed.py")]
        done = subprocess.run(words, env={**os.environ, "TMPDIR": folder}, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert done.stdout.split()
        end = time.monotonic() + 30
        while os.listdir(folder) and time.monotonic() < end:
            time.sleep(0.05)
        assert not os.listdir(folder)
