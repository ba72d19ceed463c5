"""The server that decides for all actors, as the scheduler sees it: opened, watched, replaced when it is lost.

A server remembers nothing, so its successor answers who waits, and actors notice nothing but the time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from rltrain.rollout.inference.client import WAKE
from rltrain.rollout.inference.requests import RequestBuffers
from rltrain.rollout.inference.server import Server, ServerJob
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import RolloutSpec
from rltrain.rollout.supervision import BACKOFF, START_SECONDS
from rltrain.rollout.workers.handle import SERVER, ActorLost, Handle


class InferenceSupervisor:
    """One server and its ties to the actors.

    Args:
        plan:    of the rollout.
        streams: B of each actor.
        board:   where weights are published.
        on_lost: told of each failure, and how many came before it in a row; raises if that is too often.
    """

    def __init__(
        self,
        plan: RolloutSpec,
        streams: tuple[int, ...],
        board: WeightsBoard,
        on_lost: Callable[[ActorLost, int], None],
    ) -> None:
        assert plan.inference is not None
        self._plan, self._board, self._on_lost = plan, board, on_lost
        self._job = ServerJob(plan.spec, plan.inference, streams, plan.make_policy)
        self._desks = RequestBuffers(plan.spec, plan.inference, streams)
        pairs = [Pipe() for _ in streams]
        self._actors, self._servers = [one for one, _ in pairs], [other for _, other in pairs]
        for pipe in self._servers:
            os.set_blocking(pipe.fileno(), False)  # nobody may hold the server up
        self._end, self._control = Pipe()
        self._handle: Handle | None = None
        self._failures = 0  # in a row
        self._restart_at = 0.0
        self._opened_at = 0  # the count of calls when the server was opened
        self._seen: tuple[int, float] = (-1, 0.0)  # what its progress was, and since when
        self._told = (0, 0)  # calls and rows that metrics have spoken of
        self._open()

    def ticket(self, worker: int) -> Any:
        """What a new actor needs; what the one before it asked last is of no interest any more."""
        with contextlib.suppress(OSError):
            os.write(self._actors[worker].fileno(), WAKE)  # it may have died before it woke the server
        return self._actors[worker], self._desks.memory.ticket(), self._desks.streams

    def owes(self, worker: int) -> bool:
        """Whether this actor waits for the server."""
        return bool(self._desks.asked[worker] != self._desks.answered[worker])

    def watch(self) -> None:
        """Replace the server if it is gone, and end it if it stands still. For times when an actor waits for it."""
        now, calls = time.monotonic(), int(self._desks.totals[0])
        if self._handle is None:
            if now >= self._restart_at:
                self._open()
            return
        if wait([self._handle.waitable], 0):
            self._lost()
            return
        progress = calls + int(self._desks.asked.sum())
        most = max(self._plan.actor_timeout, START_SECONDS) if calls == self._opened_at else self._plan.actor_timeout
        if self._handle.exit_reason:
            self._handle.kill(self._handle.exit_reason)
        elif progress != self._seen[0]:
            self._seen = progress, now
        elif now - self._seen[1] > most:
            self._handle.kill(f"it answered nobody for {most:g} s, so it was ended")

    def delivered(self) -> None:
        """An unroll has come: failures from now on are no more in a row with those before."""
        self._failures = 0

    def metrics(self) -> dict[str, float]:
        """What there is to log."""
        calls, rows = (int(total) for total in self._desks.totals)
        before, self._told = self._told, (calls, rows)
        return {"rollout/inference_rows": (rows - before[1]) / (calls - before[0])} if calls > before[0] else {}

    def release(self) -> None:
        """Wake actors that wait, to see that the run is over."""
        for pipe in self._servers:
            with contextlib.suppress(OSError):
                os.write(pipe.fileno(), WAKE)

    def close(self) -> None:
        """End the server."""
        self._end.close()
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        for pipe in (*self._actors, *self._servers, self._control):
            pipe.close()
        self._desks.memory.close()

    def _open(self) -> None:
        from rltrain.rollout.workers.process import ProcessHandle

        self._opened_at, self._seen = int(self._desks.totals[0]), (-1, time.monotonic())
        tickets = self._board.memory.ticket(), self._desks.memory.ticket(), self._servers, self._control
        try:
            self._handle = ProcessHandle(SERVER, functools.partial(Server, self._job), *tickets)
        except (OSError, EOFError) as error:
            self._count(ActorLost(SERVER, f"its process could not be started: {error!r}"))
        else:
            self._handle.call("serve")

    def _lost(self) -> None:
        assert self._handle is not None
        lost = ActorLost(SERVER, "it ended though nobody had asked it to")
        try:
            self._handle.result()
        except ActorLost as why:
            lost = why
        self._handle.close()
        self._handle = None
        self._count(lost)

    def _count(self, lost: ActorLost) -> None:
        failures, self._failures = self._failures, self._failures + 1
        self._restart_at = time.monotonic() + BACKOFF[min(failures, len(BACKOFF) - 1)]
        self._on_lost(lost, failures)
