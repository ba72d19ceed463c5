"""Supervision of actors: which unrolls each has to do, whether it still makes progress, when it is restarted."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from rltrain.rollout.shared_memory.heartbeat import Heartbeat
from rltrain.rollout.workers.handle import Handle

START_SECONDS = 30.0  # that an actor may take until its first step, if the timeout is shorter
BACKOFF = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)  # seconds before the n-th restart in a row
SLOW = 4.0  # how many times slower than the others an actor must be to be given shorter unrolls
READ_SECONDS = 1e-4  # between two looks at whether an actor has read its weights
SHORTEST = 4  # rows of such an unroll, at least


@dataclass
class SupervisedActor:
    """Times are those of `time.monotonic`."""

    worker: int
    streams: tuple[int, ...]
    life: Heartbeat
    handle: Handle | None = None
    begun: deque[float] = field(default_factory=deque)  # when the unrolls under way were asked for
    reads: int = 0  # how often weights will have been read here, when all of those have begun
    pace: float = 0.0  # seconds per row, lately; 0: not known yet
    new: bool = True  # has not delivered yet
    failures: int = 0  # in a row
    restart_at: float = 0.0
    alive: int = -1  # its last count of vector steps, and when that was seen
    seen: float = 0.0
    opened_at: int = 0  # that count when its actor was opened

    @property
    def busy(self) -> bool:
        """Whether unrolls of it are under way."""
        return bool(self.begun)

    def taken(self, handle: Handle) -> None:
        """A new actor sits here."""
        self.handle, self.alive, self.seen, self.pace, self.new = handle, -1, time.monotonic(), 0.0, True
        self.begun.clear()
        self.opened_at, self.reads = self.life.steps, self.life.begun

    def begin(self, length: int | None) -> None:
        """Ask for an unroll; None is one of full length."""
        assert self.handle is not None
        now = time.monotonic()
        if not self.busy:
            self.seen = now
        self.begun.append(now)
        self.reads += 1
        self.handle.call("collect", *(() if length is None else (length,)))

    def delivered(self, rows: int) -> None:
        """The oldest unroll under way is here, and has so many rows."""
        pace = (time.monotonic() - self.begun.popleft()) / rows
        if not self.new:  # the first one took the start of a process and of environments too
            self.pace = (self.pace + pace) / 2 if self.pace else pace
        self.failures, self.new = 0, False

    def lost(self) -> None:
        """Nobody sits here any more; somebody may after a pause that grows with every failure in a row."""
        if self.handle is not None:
            self.handle.close()
        self.handle = None
        self.begun.clear()
        self.restart_at = time.monotonic() + BACKOFF[min(self.failures, len(BACKOFF) - 1)]
        self.failures += 1

    def watch(self, actor_timeout: float) -> None:
        """End the actor if it has made no step for too long."""
        if self.handle is None:
            return
        alive, now, most = self.life.steps, time.monotonic(), self.timeout(actor_timeout)
        if self.handle.exit_reason:
            self.handle.kill(self.handle.exit_reason)
        elif alive != self.alive:
            self.alive, self.seen = alive, now
        elif now - self.seen > most:
            self.handle.kill(f"it made no step for {most:g} s, so it was ended")

    def wait_until_read(self, actor_timeout: float, patience: float) -> None:
        """Wait until every unroll that was asked for has read its weights; not for an actor that is lost."""
        until = min(time.monotonic() + self.timeout(actor_timeout), patience)
        while self.busy and self.handle is not None and self.life.begun < self.reads:
            pipe = self.handle.waitable
            if pipe is None or wait([pipe], 0.0) or self.handle.exit_reason or time.monotonic() > until:
                break  # it has answered, or never will
            time.sleep(READ_SECONDS)

    def timeout(self, actor_timeout: float) -> float:
        """Longer for an actor that has not made its first step: its process must start and make environments."""
        return max(actor_timeout, START_SECONDS) if self.life.steps == self.opened_at else actor_timeout


def length(seat: SupervisedActor, seats: Sequence[SupervisedActor], unroll: int) -> int | None:
    """Rows of its next unroll; None is `unroll`. Fewer for an actor that is many times slower than the others, so that
    what it brings is not too old to be used."""
    paces = sorted(other.pace for other in seats if other.pace)
    if not seat.pace:
        return None
    slower = seat.pace / paces[(len(paces) - 1) // 2]
    return None if slower < SLOW else max(unroll >> int(math.log2(slower / 2)), min(unroll, SHORTEST))


POLL = 0.5  # seconds between two looks


class Guard:
    """Watches, from a thread of its own, how long an answer takes to be read.

    Args:
        patience: seconds that it may take, asked anew at each look.
    """

    def __init__(self, patience: Callable[[], float]) -> None:
        self._patience = patience
        self._reading: tuple[Handle, float] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard of answers", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def reading(self, handle: Handle) -> Iterator[None]:
        """While the answer of `handle` is read."""
        self._reading = handle, time.monotonic()
        try:
            yield
        finally:
            self._reading = None

    def close(self) -> None:
        """Nothing is read any more."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            reading = self._reading
            if reading is not None and time.monotonic() - reading[1] > self._patience():
                reading[0].kill("it stopped in the middle of an answer, so it was ended")
