"""A cluster of this package's own, on this machine."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import pytest

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
    before, path = listening(), sys.path[:]
    cluster = connect(None, 2, 10.0)
    try:
        found = listening() - before
        assert any(tmp_path.iterdir())
    finally:
        cluster.close()

    assert not list(tmp_path.iterdir())
    assert sys.path == path
    assert found, "no socket was found: this test tests nothing"
    assert {address.partition(":")[0] for address in found} <= LOOPBACK
