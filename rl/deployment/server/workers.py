"""Several server processes behind one port: `rlserve --workers N`.

The kernel gives each connection to one of them. A session belongs to the process that its id selects, so a request of
it that arrives elsewhere is passed on through a Unix socket. Reloads reach all processes; metrics are their sums.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import msgspec

from rltrain.deployment.server.app import App, Settings, encode
from rltrain.deployment.server.errors import Refused
from rltrain.deployment.server.recording import Writer
from rltrain.deployment.server.serve import DRAIN_SECONDS, bound_socket, server_of, url_of
from rltrain.envs.spec import EnvSpec
from rltrain.errors import CheckpointError, RunFailed
from rltrain.reporting.console import say

START_SECONDS = 300.0  # allowed for a process to load its policies
SOON = 5.0  # seconds; a process that ends so early counts as a failure
FAILURES = 5  # in a row, after which the server ends
POLL = 0.02  # seconds between two questions of a process that waits for the end of another one
Kind = bytes  # of a message between processes: A act, D end a session, R reload, M metrics, E has answered its clients


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
        self._ended = False  # this process has answered all its own clients

    def owner(self, session: str) -> int:
        """The process to which a session belongs."""
        return zlib.crc32(session.encode()) % self.count

    async def open(self) -> None:
        path = self._path(self.index)
        path.unlink(missing_ok=True)
        self._listener = await asyncio.start_unix_server(self._answer, path)

    async def wait_for_end(self) -> None:
        """Wait until the other processes have answered their clients too: these may need sessions of this process."""
        self._ended = True
        with contextlib.suppress(TimeoutError):  # one that hangs is not waited for
            async with asyncio.timeout(DRAIN_SECONDS):
                for index in range(self.count):
                    while index != self.index and not await self._has_ended(index):
                        await asyncio.sleep(POLL)
        if self._listener is not None:
            self._listener.close()

    async def _has_ended(self, index: int) -> bool:
        """Whether another process has answered its clients, or is gone."""
        try:
            return await self.ask(index, b"E", b"") == b"1"
        except Refused:
            return True

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
            elif kind == b"E":
                reply = b"1" if self._ended else b"0"
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
        collection = _Collection(settings)

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
            for process, pipe, _ in list(running.values()):
                spec = _ready(pipe, stopping)
                if not stopping:
                    collection.begin(process.pid, pipe, spec)
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
                    replaced, pipe, _ = running[index]
                    collection.begin(replaced.pid, pipe)
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
            collection.close()
            for number, handler in previous.items():
                signal.signal(number, handler)


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Collection:
    """Writes what all processes record: a thread for each of them reads its pipe until it ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._writer: Any = None
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def begin(self, source: int, pipe: Connection, spec: EnvSpec | None = None) -> None:
        """Read from a process. `spec`: of the environment, from the first one; ConfigError as of `Writer`."""
        if self._settings.record is None:
            return
        if self._writer is None and spec is not None:
            self._writer = Writer(self._settings.record, spec, self._settings.described)
        thread = threading.Thread(target=self._read, args=(source, pipe), name=f"recording-{source}", daemon=True)
        thread.start()
        self._threads = [*(thread for thread in self._threads if thread.is_alive()), thread]

    def _read(self, source: int, pipe: Connection) -> None:
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):  # the process has ended, or was killed
            while True:
                message = pipe.recv()
                if isinstance(message, list):
                    with self._lock:
                        self._writer.write(message, source)

    def close(self) -> None:
        """Write the rest of the processes that have ended; RunFailed if that is impossible."""
        for thread in self._threads:
            thread.join(DRAIN_SECONDS)
        if self._writer is not None:
            with self._lock:
                self._writer.close()


def _ready(pipe: Connection, stopping: list[int]) -> EnvSpec | None:
    """Waits until a process has loaded its policies; raises what it could not load.

    Returns:
        With `--record`, what is recorded.
    """
    deadline = time.monotonic() + START_SECONDS
    while not stopping and not pipe.poll(0.1):
        if time.monotonic() > deadline:
            raise RunFailed(f"a process did not load its policies within {START_SECONDS:g} s")
    if stopping:
        return None
    try:
        fault, spec = pipe.recv()
    except EOFError:
        raise RunFailed("a process ended while it loaded its policies") from None
    if fault:
        raise CheckpointError(fault)
    found: EnvSpec | None = spec
    return found


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
            pipe.send((str(error) or type(error).__name__, None))
        raise SystemExit(2) from None
    app.peers = Peers(app, index, count, Path(folder))
    server = server_of(app, **tls)

    def opened() -> None:
        with contextlib.suppress(OSError):
            pipe.send(("", None if app.episodes is None else app.episodes.spec))

    app.opened, app.deliver = opened, pipe.send
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    server.run([listening])


def _end_with_parent() -> None:
    """Ends this process in order if the one that supervises it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
