"""Supervision of workers: start, progress watch, timeout, back-off. scheduler.py replaces lost actors with it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from rltrain.envs.errors import ENVIRONMENT, INVALID, place_of
from rltrain.rollout.shared_memory.heartbeat import Heartbeat
from rltrain.rollout.workers.handle import ActorLost, Handle, NoNode, NotPlaced

START_SECONDS = 30.0  # allowed until the first step of a new worker, if the timeout is shorter
BACKOFF = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)  # seconds before the n-th restart in a row
NO_NODE_SECONDS = 0.25  # before a worker is opened again for which no machine was available
READ_POLL = 1e-4  # seconds between two checks of whether an actor has read its weights
SLOW = 4.0  # an actor this many times slower than the median gets shorter unrolls
SHORTEST = 4  # minimum number of rows of a shortened unroll
WATCHDOG_POLL = 0.5  # seconds


class WorkerFailed(Exception):
    """A worker was lost more often in a row than `max_restarts` allows."""


class SupervisedWorker:
    """Opens a worker, kills it when it hangs, and replaces it after a pause that grows with each failure in a row.

    Times are those of `time.monotonic`.

    Args:
        open_handle:  starts a worker. May raise ActorLost, or NoNode while no machine is available.
        steps:        a count that grows with every step of the worker and is not reset by a restart.
        timeout:      seconds without a step after which the worker is killed.
        max_restarts: failures in a row that are followed by a restart.
    """

    def __init__(
        self, open_handle: Callable[[], Handle], steps: Callable[[], int], timeout: float, max_restarts: int
    ) -> None:
        self._open_handle, self._steps = open_handle, steps
        self._timeout, self._max_restarts = timeout, max_restarts
        self.handle: Handle | None = None
        self.failures = 0  # in a row
        self.restart_at = 0.0  # if there is no handle: the earliest time of the next `open`
        self._last_steps = self._steps_at_start = 0
        self._last_progress = 0.0
        self._last_fault: str | None = None  # see `place_of`

    @property
    def restart_due(self) -> bool:
        """True if the worker is gone and its pause is over."""
        return self.handle is None and time.monotonic() >= self.restart_at

    @property
    def timeout(self) -> float:
        """Seconds without a step; longer before the first step, since a process must start and import first."""
        return max(self._timeout, START_SECONDS) if self._steps() == self._steps_at_start else self._timeout

    def open(self) -> bool:
        """Start a new worker, after closing the previous one. Returns False if no machine is available for it.

        Raises:
            ActorLost: the worker could not be started; the caller reports that with `lost`.
        """
        self.close()
        try:
            self.handle = self._open_handle()
        except NoNode:
            self.restart_at = time.monotonic() + NO_NODE_SECONDS
        self._steps_at_start = self._steps()
        self.reset_timer()
        return self.handle is not None

    def call(self, method: str, *args: Any) -> None:
        """Ask the worker for `method(*args)`; `result` returns the answer."""
        assert self.handle is not None
        self.handle.call(method, *args)

    def ready(self, seconds: float = 0.0) -> bool:
        """Wait at most `seconds`; True if `result` will not block."""
        assert self.handle is not None
        return self.handle.waitable is None or bool(wait([self.handle.waitable], seconds))

    def result(self) -> Any:
        """The answer to the oldest open call. Raises ActorLost if there will be none."""
        assert self.handle is not None
        return self.handle.result()

    def reset_timer(self) -> None:
        """Start measuring the timeout now: the worker had nothing to do until now."""
        self._last_progress = time.monotonic()

    def watch(self) -> None:
        """Kill the worker if it cannot answer, or has made no step for `timeout` seconds; `result` then raises."""
        if self.handle is None:
            return
        steps, now, timeout = self._steps(), time.monotonic(), self.timeout
        if self.handle.exit_reason:
            self.handle.kill(self.handle.exit_reason)
        elif steps != self._last_steps:
            self._last_steps, self._last_progress = steps, now
        elif now - self._last_progress > timeout:
            self.handle.kill(f"it made no step for {timeout:g} s, so it was ended")

    def succeeded(self) -> None:
        """The worker delivered: later failures are not in a row with earlier ones."""
        self.failures = 0

    def lost(self, lost: ActorLost) -> None:
        """Close the worker and schedule its restart. NotPlaced is no failure, so it does not count as one.

        Raises:
            WorkerFailed: too many failures in a row, or a failure that would happen again: the environment broke its
                interface, or a user's code raised the same exception at the same step as the last time.
        """
        self.close()
        if isinstance(lost, NotPlaced):
            self.restart_at = time.monotonic() + NO_NODE_SECONDS
            return
        self.restart_at = time.monotonic() + BACKOFF[min(self.failures, len(BACKOFF) - 1)]
        self.failures += 1
        if INVALID in lost.detail:
            raise WorkerFailed(f"{lost.who}: {lost.detail}")
        # An environment that raises before its first step may have lacked a licence or a port.
        again = self._steps() != self._steps_at_start or not lost.detail.startswith(ENVIRONMENT)
        fault, before = place_of(lost.detail) if again else None, self._last_fault
        self._last_fault = fault
        if fault is not None and fault == before:
            raise WorkerFailed(f"{lost.who} failed twice at the same step, so it would fail again: {lost.detail}")
        if self.failures > self._max_restarts:
            raise WorkerFailed(
                f"{lost.who} failed {self.failures} times in a row (--max-restarts {self._max_restarts}); "
                f"the last time: {lost.detail}"
            )

    def close(self) -> None:
        """End the worker, if there is one."""
        if self.handle is not None:
            self.handle.close()
            self.handle = None


@dataclass(eq=False)
class SupervisedActor:
    """An actor, its streams, and its unrolls in flight. Times are those of `time.monotonic`."""

    number: int
    streams: tuple[int, ...]
    heartbeat: Heartbeat
    worker: SupervisedWorker
    in_flight: deque[float] = field(default_factory=deque)  # start times of the unrolls that were asked for
    reads: int = 0  # value of `heartbeat.begun` once all unrolls in flight have read their weights
    pace: float = 0.0  # seconds per row, running mean; 0 until it is known
    delivered: bool = False  # at least one unroll since the worker was opened

    @property
    def handle(self) -> Handle | None:
        return self.worker.handle

    @property
    def busy(self) -> bool:
        """True if unrolls are in flight."""
        return bool(self.in_flight)

    def open(self) -> bool:
        """Start a new worker; see `SupervisedWorker.open`."""
        self.in_flight.clear()
        opened = self.worker.open()
        self.pace, self.delivered, self.reads = 0.0, False, self.heartbeat.begun
        return opened

    def begin(self, rows: int | None) -> None:
        """Ask for an unroll of `rows` rows; None is the full length."""
        if not self.busy:
            self.worker.reset_timer()
        self.in_flight.append(time.monotonic())
        self.reads += 1
        self.worker.call("collect", *(() if rows is None else (rows,)))

    def received(self, rows: int) -> None:
        """Record that the oldest unroll in flight arrived, with `rows` rows."""
        pace = (time.monotonic() - self.in_flight.popleft()) / rows
        if self.delivered:  # the first unroll includes the start of the process and of the environments
            self.pace = (self.pace + pace) / 2 if self.pace else pace
        self.delivered = True
        self.worker.succeeded()

    def lost(self, lost: ActorLost) -> None:
        """See `SupervisedWorker.lost`."""
        self.in_flight.clear()
        self.worker.lost(lost)

    def wait_until_read(self, deadline: float) -> None:
        """Wait until all unrolls in flight have read their weights; give up if the actor is lost or hangs."""
        until = min(time.monotonic() + self.worker.timeout, deadline)
        while self.busy and self.handle is not None and self.heartbeat.begun < self.reads:
            if self.worker.ready() or self.handle.exit_reason or time.monotonic() > until:
                break
            time.sleep(READ_POLL)


def unroll_length(actor: SupervisedActor, actors: Sequence[SupervisedActor], unroll: int) -> int | None:
    """Rows of the next unroll of `actor`; None is the full length, `unroll`.

    An actor that is at least SLOW times slower than the median gets fewer rows, so that they are not too old to use.
    """
    paces = sorted(other.pace for other in actors if other.pace)
    if not actor.pace:
        return None
    ratio = actor.pace / paces[(len(paces) - 1) // 2]
    return None if ratio < SLOW else max(unroll >> int(math.log2(ratio / 2)), min(unroll, SHORTEST))


class ReadWatchdog:
    """A thread that kills a worker which stops in the middle of an answer, while the main thread reads it.

    Args:
        timeout: returns the seconds that the read may take; called at each check.
    """

    def __init__(self, timeout: Callable[[], float]) -> None:
        self._timeout = timeout
        self._reading: tuple[Handle, float] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="read watchdog", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def reading(self, handle: Handle) -> Iterator[None]:
        """Watch `handle` inside the `with` block."""
        self._reading = handle, time.monotonic()
        try:
            yield
        finally:
            self._reading = None

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(WATCHDOG_POLL):
            reading = self._reading
            if reading is not None and time.monotonic() - reading[1] > self._timeout():
                reading[0].kill("it stopped in the middle of an answer, so it was ended")
