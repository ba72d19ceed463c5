"""A node of a cluster as it is seen from the learner: what it is asked, what it is sent, and whether it is still there.

Everything here runs in the client's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from rltrain.rollout.cluster.node import outline_of
from rltrain.rollout.cluster.remote_handle import RemoteHandle
from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.specs import ActorJob
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Gradients, Trajectory, Weights

SILENT_SECONDS = 30.0  # after which a node that does not answer is given up


@dataclass
class Traffic:
    """Bytes and seconds since they were last told."""

    bytes: int = 0
    seconds: float = 0.0
    times: int = 0

    def add(self, size: int, seconds: float) -> None:
        self.bytes, self.seconds, self.times = self.bytes + size, self.seconds + seconds, self.times + 1


@dataclass
class Published:
    """What was published, by number: the newest weights, and the newest opponent of each place of the pool."""

    weights: tuple[int, Weights]
    kept: dict[int, tuple[int, Weights]] = field(default_factory=dict)
    sent: Traffic = field(default_factory=Traffic)
    came: Traffic = field(default_factory=Traffic)

    @property
    def number(self) -> int:
        """Of the newest."""
        return max([self.weights[0], *(number for number, _ in self.kept.values())])


class NodeProxy:
    """One node.

    Args:
        slots:   actors that it takes.
        node:    the Dask actor.
        news:    what it is to know.
        life:    of all actors, where their supervisor looks.
        run:     starts a coroutine.
        on_lost: told once that it is gone, and why.
    """

    def __init__(
        self,
        address: str,
        slots: int,
        node: Any,
        news: Published,
        life: SharedMemory,
        run: Callable[[Coroutine[Any, Any, None]], None],
        on_lost: Callable[[NodeProxy], None],
    ) -> None:
        self.address, self.slots, self.node = address, max(slots, 1), node
        self.facts: dict[str, Any] = {}
        self.handles: dict[int, RemoteHandle] = {}  # by worker
        self.lost: str | None = None  # why
        self._news, self._life, self._run, self._on_lost = news, life, run, on_lost
        self._sent = 0  # the newest publication that is there
        self._sending = self._beating = False
        self._seen = time.monotonic()

    @property
    def spare(self) -> int:
        """Actors more that there is room for; below 0 where they share."""
        return self.slots - len(self.handles)

    def open(self, ticket: int, job: ActorJob, payload: bytes, needs: Callable[[], int]) -> RemoteHandle:
        """Start an actor here; see `Node.open`. Its handle is there at once."""
        worker = job.worker
        base = self._life.array(8 * HEARTBEAT * worker, (HEARTBEAT,), "int64").copy()
        opened = asyncio.ensure_future(self._opened(ticket, job, payload))
        handle = RemoteHandle(
            worker,
            ticket,
            base,
            f"{self.address} on {self.facts['host']}",
            self._run,
            functools.partial(self._ask, opened, worker, ticket),
            needs,
            functools.partial(self._finish, opened, worker, ticket),
        )
        handle.place = self
        self.handles[worker] = handle
        return handle

    async def _opened(self, ticket: int, job: ActorJob, payload: bytes) -> str | None:
        """Why an actor could not be started, if so."""
        try:
            failed: str | None = await self.node.open(ticket, outline_of(job), payload)
        except Exception as error:  # whatever Dask says of a node that is gone
            return self.lose(f"its node does not answer: {line(error)}")
        return failed

    async def _ask(
        self,
        opened: asyncio.Future[str | None],
        worker: int,
        ticket: int,
        number: int,
        needs: int,
        method: str,
        args: Any,
    ) -> tuple[str, Any]:
        """Question `number` to an actor, as `RemoteHandle` wants it."""
        if (failed := await asyncio.shield(opened)) is not None:
            return "lost", failed
        try:
            began = time.perf_counter()
            kind, *told = await self.node.ask(worker, ticket, number, needs, method, args)
        except Exception as error:
            return "lost", self.lose(f"its node does not answer: {line(error)}")
        if kind == "lost":
            return kind, told[0]
        answer, seconds = told
        if method == "collect" and answer is not None:
            self._news.came.add(size_of(answer), time.perf_counter() - began - seconds)
        return kind, ((answer, None) if method == "collect" else answer)

    async def _finish(self, opened: asyncio.Future[str | None], worker: int, ticket: int, why: str | None) -> None:
        """End an actor."""
        handle = self.handles.get(worker)
        if handle is not None and handle.ticket == ticket:
            del self.handles[worker]
        await asyncio.shield(opened)  # else it could be overtaken, and would stay
        await self.quietly(*(("close", worker, ticket) if why is None else ("kill", worker, ticket, why)))

    async def _farewell(self) -> None:
        """If it is there after all, its actors are to end."""
        with contextlib.suppress(Exception):
            await self.node.end()

    async def quietly(self, method: str, *args: Any) -> None:
        """Ask the node something whose answer is of no interest."""
        with contextlib.suppress(Exception):
            if self.lost is None:
                await getattr(self.node, method)(*args)

    def beat(self) -> None:
        """Ask what its actors let their supervisor see; a node that has said nothing for long is lost."""
        if not self._beating:
            self._beating = True
            self._run(self._lives())
        elif time.monotonic() - self._seen > SILENT_SECONDS:
            self.lose(f"its node has not answered for {SILENT_SECONDS:g} s")

    async def _lives(self) -> None:
        try:
            for worker, (ticket, numbers) in (await self.node.lives()).items():
                handle = self.handles.get(worker)
                if handle is not None and handle.ticket == ticket:
                    handle.tell(self._life, numbers)
            self._seen = time.monotonic()
        except Exception as error:
            self.lose(f"its node does not answer: {line(error)}")
        finally:
            self._beating = False

    def send(self) -> None:
        """See to it that it knows the news."""
        if not self._sending and self.lost is None:
            self._sending = True
            self._run(self.catch_up())

    async def catch_up(self) -> None:
        """Send what is new, and what came meanwhile; versions of weights in between are left out."""
        self._sending = True
        try:
            while self._sent < self._news.number and self.lost is None:
                target, began = self._news.number, time.perf_counter()
                (number, weights), kept = self._news.weights, self._news.kept
                new = {place: snapshot for place, (at, snapshot) in kept.items() if at > self._sent}
                sending = weights if number > self._sent else None
                await self.node.publish(target, sending, new)
                self._sent = target
                parcels = [*new.values(), *([] if sending is None else [sending])]
                size = sum(array.nbytes for parcel in parcels for array in parcel.arrays.values())
                self._news.sent.add(size, time.perf_counter() - began)
        except Exception as error:
            self.lose(f"its node does not answer: {line(error)}")
        finally:
            self._sending = False

    def lose(self, why: str) -> str:
        """It is gone, or given up. Returns why."""
        if self.lost is None:
            self.lost = why
            self._run(self._farewell())
            for handle in list(self.handles.values()):
                handle.lose(why)
            self._on_lost(self)
        return self.lost


def size_of(answer: Trajectory | Gradients) -> int:
    """Bytes of what came for an unroll."""
    if isinstance(answer, Gradients):
        return int(sum(array.nbytes for array in answer.arrays.values()))
    arrays = [
        answer.action,
        answer.reward,
        *leaves(answer.obs),
        *answer.extras.values(),
        *answer.optional_fields().values(),
    ]
    return int(sum(array.nbytes for array in arrays))


def line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
