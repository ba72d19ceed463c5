"""Starts, watches and replaces the inference server; holds the memory and pipes that connect it with the actors.

A server keeps no state: its successor answers the open requests, and actors only notice the delay.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any

from rltrain.rollout.inference.client import WAKE
from rltrain.rollout.inference.requests import RequestBuffers
from rltrain.rollout.inference.server import Server, ServerJob
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import RolloutSpec
from rltrain.rollout.supervision import SupervisedWorker
from rltrain.rollout.workers.handle import SERVER, ActorLost, Handle


class InferenceSupervisor:
    """One inference server and its connections to the actors.

    Args:
        plan:       of the rollout.
        streams:    B of each actor.
        board:      where weights are published.
        on_restart: called with each failure that is followed by a restart.
    """

    def __init__(
        self,
        plan: RolloutSpec,
        streams: tuple[int, ...],
        board: WeightsBoard,
        on_restart: Callable[[ActorLost], None],
    ) -> None:
        assert plan.inference is not None
        self._board, self._on_restart = board, on_restart
        self._job = ServerJob(plan.spec, plan.inference, streams, plan.make_policy)
        self.requests = RequestBuffers(plan.spec, plan.inference, streams)
        pairs = [Pipe() for _ in streams]
        self._actor_pipes, self._server_pipes = [one for one, _ in pairs], [other for _, other in pairs]
        for pipe in self._server_pipes:
            os.set_blocking(pipe.fileno(), False)  # an actor that does not read must not block the server
        self._end, self._control = Pipe()
        self._asked = -1  # requests so far, at the last check
        self._reported = (0, 0)  # calls and rows that `metrics` has reported
        self.worker = SupervisedWorker(
            self._start, lambda: int(self.requests.totals[0]), plan.actor_timeout, plan.max_restarts
        )
        self._open()

    def ticket(self, worker: int) -> Any:
        """The connection of a new actor. Wakes the server, which may have to answer a request of the predecessor."""
        with contextlib.suppress(OSError):
            os.write(self._actor_pipes[worker].fileno(), WAKE)  # that actor may have died before it woke the server
        return self._actor_pipes[worker], self.requests.memory.ticket(), self.requests.streams

    def is_pending(self, worker: int) -> bool:
        """True if this actor waits for an answer."""
        return bool(self.requests.asked[worker] != self.requests.answered[worker])

    def watch(self) -> None:
        """Replace the server if it is gone, and kill it if it hangs. To be called while an actor waits for it."""
        if self.worker.restart_due:
            self._open()
        elif self.worker.handle is not None and self.worker.ready():
            lost = ActorLost(SERVER, "it ended though it was not asked to")
            try:
                self.worker.result()
            except ActorLost as reason:
                lost = reason
            self._lost(lost)
        else:
            asked = int(self.requests.asked.sum())
            if asked != self._asked:
                self._asked = asked
                self.worker.reset_timer()
            self.worker.watch()

    def metrics(self) -> dict[str, float]:
        """Mean rows per call of the policy since the last report."""
        calls, rows = (int(total) for total in self.requests.totals)
        before, self._reported = self._reported, (calls, rows)
        return {"rollout/inference_rows": (rows - before[1]) / (calls - before[0])} if calls > before[0] else {}

    def release(self) -> None:
        """Wake all waiting actors, so that they see that the run is over."""
        for pipe in self._server_pipes:
            with contextlib.suppress(OSError):
                os.write(pipe.fileno(), WAKE)

    def close(self) -> None:
        """End the server."""
        self._end.close()
        self.worker.close()
        for pipe in (*self._actor_pipes, *self._server_pipes, self._control):
            pipe.close()
        self.requests.memory.close()

    def _start(self) -> Handle:
        from rltrain.rollout.workers.process import ProcessHandle

        tickets = self._board.memory.ticket(), self.requests.memory.ticket(), self._server_pipes, self._control
        handle = ProcessHandle(SERVER, functools.partial(Server, self._job), *tickets)
        handle.call("serve")
        return handle

    def _open(self) -> None:
        try:
            self.worker.open()
        except ActorLost as lost:
            self._lost(lost)

    def _lost(self, lost: ActorLost) -> None:
        self.worker.lost(lost)
        self._on_restart(lost)
