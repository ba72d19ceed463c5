"""One actor's place in a rollout: who sits there, what it has to do, and whether it still makes progress."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Literal

from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.unroll_rows import VectorEnv
from rltrain.rollout.actor import Life
from rltrain.rollout.desks import Inference
from rltrain.rollout.handle import Handle
from rltrain.rollout.opponents import Pool
from rltrain.rollout.types import Trajectory

START_SECONDS = 30.0  # that an actor may take until its first step, if the timeout is shorter
BACKOFF = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)  # seconds before the n-th restart in a row
SLOW = 4.0  # how many times slower than the others an actor must be to be given shorter unrolls
READ_SECONDS = 1e-4  # between two looks at whether an actor has read its weights
SHORTEST = 4  # rows of such an unroll, at least


@dataclass(frozen=True)
class RolloutPlan:
    """What a rollout is made from. `units` are what cannot be split between actors: streams, or blocks of them."""

    spec: EnvSpec
    seed: int
    unroll: int
    workers: int  # 0: one actor in this process
    backend: Literal["local", "processes", "dask"]
    units: tuple[tuple[int, ...], ...]
    make_env: Callable[[Sequence[int], Sequence[int]], VectorEnv]
    make_policy: Callable[[], Any]
    actor_timeout: float = 120.0
    max_restarts: int = 5
    random_rows: int = 0  # of each stream, acted at random before the policy does
    credits: int = 1  # unrolls of an actor that may be under way, or finished and not yet taken
    max_lag: int | None = None  # versions since an unroll's weights, above which it is dropped
    shorten: bool = False  # whether an actor that is many times slower than the others is given shorter unrolls
    deterministic: bool = False  # unrolls are taken in turns, and weights are published when all have read theirs
    reduce: Callable[[Any, Trajectory], Any] | None = None  # what actors make of their unrolls: see `ActorJob`
    pool: Pool | None = None  # of past policies, as opponents
    inference: Inference | None = None  # a server decides for all actors with such a policy; None: each has its own
    cluster: Any = None  # where actors run with backend "dask": see `rltrain.rollout.nodes.Cluster`
    preload: tuple[str, ...] = ()  # modules that actors import, for whoever starts them there
    modules: tuple[str, ...] = ()  # that come from files of the user's, and travel by value
    movable: bool = True  # whether an actor can go on elsewhere where it stands


@dataclass
class Seat:
    """Times are those of `time.monotonic`."""

    worker: int
    streams: tuple[int, ...]
    life: Life
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
        if self.handle.over:
            self.handle.kill(self.handle.over)
        elif alive != self.alive:
            self.alive, self.seen = alive, now
        elif now - self.seen > most:
            self.handle.kill(f"it made no step for {most:g} s, so it was ended")

    def wait_until_read(self, actor_timeout: float, patience: float) -> None:
        """Wait until every unroll that was asked for has read its weights; not for an actor that is lost."""
        until = min(time.monotonic() + self.timeout(actor_timeout), patience)
        while self.busy and self.handle is not None and self.life.begun < self.reads:
            pipe = self.handle.waitable
            if pipe is None or wait([pipe], 0.0) or self.handle.over or time.monotonic() > until:
                break  # it has answered, or never will
            time.sleep(READ_SECONDS)

    def timeout(self, actor_timeout: float) -> float:
        """Longer for an actor that has not made its first step: its process must start and make environments."""
        return max(actor_timeout, START_SECONDS) if self.life.steps == self.opened_at else actor_timeout


def length(seat: Seat, seats: Sequence[Seat], unroll: int) -> int | None:
    """Rows of its next unroll; None is `unroll`. Fewer for an actor that is many times slower than the others, so that
    what it brings is not too old to be used."""
    paces = sorted(other.pace for other in seats if other.pace)
    if not seat.pace:
        return None
    slower = seat.pace / paces[(len(paces) - 1) // 2]
    return None if slower < SLOW else max(unroll >> int(math.log2(slower / 2)), min(unroll, SHORTEST))
