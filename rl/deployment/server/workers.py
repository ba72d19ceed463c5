"""Several server processes behind one port: `rlserve --workers N`.

The kernel gives each connection to one of them. A session belongs to the process that its id selects, so a request of
it that arrives elsewhere is passed on through a Unix socket. Reloads reach all processes; metrics are their sums.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import msgspec

from rltrain.deployment.server.app import App, Settings, encode
from rltrain.deployment.server.errors import Refused
from rltrain.deployment.server.serve import DRAIN_SECONDS, bound_socket, server_of, url_of
from rltrain.errors import CheckpointError, RunFailed
from rltrain.reporting.console import say

START_SECONDS = 300.0  # allowed for a process to load its policies
SOON = 5.0  # seconds; a process that ends so early counts as a failure
FAILURES = 5  # in a row, after which the server ends
Kind = bytes  # of a message between processes: A act, D end a session, R reload, M metrics


class Peers:
    """The other processes of a server.

    Args:
        index:  of this process.
        count:  of all.
        folder: of their Unix sockets.
    """

    def __init__(self, app: App, index: int, count: int, folder: Path) -> None:
        self.app, self.index, self.count, self._folder = app, index, count, folder
        self._listener: asyncio.Server | None = None

    def owner(self, session: str) -> int:
        """The process to which a session belongs."""
        return zlib.crc32(session.encode()) % self.count

    async def open(self) -> None:
        path = self._path(self.index)
        path.unlink(missing_ok=True)
        self._listener = await asyncio.start_unix_server(self._answer, path)

    async def ask(self, index: int, kind: Kind, body: bytes) -> bytes:
        """The answer of another process; Refused if it refuses, or is not there."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._path(index))
            try:
                writer.write(kind + body)
                writer.write_eof()
                reply = await asyncio.wait_for(reader.read(-1), self.app.settings.limits.seconds + START_SECONDS)
            finally:
                writer.close()
        except (OSError, TimeoutError):
            reply = b""
        if not reply:
            raise Refused(503, "the process of this session is being replaced", retry=1)
        if reply[:1] == b"-":
            fault = msgspec.json.decode(reply[1:])
            refused = Refused(int(fault.pop("status")), "", retry=int(fault.pop("retry")))
            refused.body = fault
            raise refused
        return reply[1:]

    async def ask_all(self, kind: Kind, body: bytes) -> list[bytes]:
        """The answers of all other processes."""
        others = [index for index in range(self.count) if index != self.index]
        return list(await asyncio.gather(*(self.ask(index, kind, body) for index in others)))

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.sock"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message, app = await reader.read(-1), self.app
        kind, body = message[:1], message[1:]
        try:
            if kind == b"A":
                reply = await app.act(body, passed_on=True)
            elif kind == b"R":
                reply = await app.reload_here(body)
            elif kind == b"D":
                reply = app.end_session(body.decode())
            else:
                reply = app.metrics_here().encode()
            writer.write(b"+" + reply)
        except Refused as refused:
            writer.write(b"-" + encode({**refused.body, "status": refused.status, "retry": refused.retry}))
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()


def supervise(settings: Settings, host: str, port: int, count: int, tls: Mapping[str, Any]) -> None:
    """Runs `count` processes until SIGTERM or Ctrl-C; replaces one that ends.

    Raises:
        CheckpointError: a policy cannot be served.
        RunFailed: processes end again and again.
    """
    listening = bound_socket(host, port)
    context = multiprocessing.get_context("spawn")
    stopping: list[int] = []
    previous = {number: signal.signal(number, lambda number, _: stopping.append(number)) for number in SIGNALS}
    with tempfile.TemporaryDirectory(prefix="rlserve-") as folder:
        running: dict[int, tuple[Any, Connection, float]] = {}

        def start(index: int) -> None:
            ours, theirs = context.Pipe(duplex=False)
            arguments = settings, listening, index, count, folder, dict(tls), theirs
            process = context.Process(target=_work, args=arguments, name=f"rlserve-{index}", daemon=True)
            process.start()
            theirs.close()
            running[index] = process, ours, time.monotonic()

        try:
            for index in range(count):
                start(index)
            for _, pipe, _ in list(running.values()):
                _ready(pipe, stopping)
            if not stopping:
                say(f"rlserve: {url_of(listening, bool(tls))}, {count} processes of one thread; SIGTERM ends them")
            failures = 0
            while not stopping:
                wait([process.sentinel for process, *_ in running.values()], timeout=0.2)
                for index, (process, _, began) in list(running.items()):
                    if process.is_alive() or stopping:
                        continue
                    failures = failures + 1 if time.monotonic() - began < SOON else 0
                    if failures >= FAILURES:
                        raise RunFailed(f"the server's processes end again and again, with status {process.exitcode}")
                    say(f"rlserve: process {index} ended with status {process.exitcode}; it is replaced", sys.stderr)
                    start(index)
        finally:
            listening.close()
            for process, *_ in running.values():
                process.terminate()
            deadline = time.monotonic() + DRAIN_SECONDS + 5
            for process, *_ in running.values():
                process.join(max(0.1, deadline - time.monotonic()))
                if process.is_alive():
                    process.kill()
                    process.join()
            for number, handler in previous.items():
                signal.signal(number, handler)


SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _ready(pipe: Connection, stopping: list[int]) -> None:
    """Waits until a process has loaded its policies; raises what it could not load."""
    deadline = time.monotonic() + START_SECONDS
    while not stopping and not pipe.poll(0.1):
        if time.monotonic() > deadline:
            raise RunFailed(f"a process did not load its policies within {START_SECONDS:g} s")
    if stopping:
        return
    try:
        fault = pipe.recv_bytes().decode()
    except EOFError:
        raise RunFailed("a process ended while it loaded its policies") from None
    if fault:
        raise CheckpointError(fault)


def _work(
    settings: Settings,
    listening: socket.socket,
    index: int,
    count: int,
    folder: str,
    tls: dict[str, Any],
    pipe: Connection,
) -> None:
    """One process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent sends SIGTERM
    app = App(settings)
    try:
        app.start()
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send_bytes(str(error).encode())
        raise SystemExit(2) from None
    app.peers = Peers(app, index, count, Path(folder))
    server = server_of(app, **tls)
    with contextlib.suppress(OSError):
        pipe.send_bytes(b"")
    server.run([listening])
