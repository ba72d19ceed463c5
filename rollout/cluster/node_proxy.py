"""A cluster node as the learner sees it: sends weights, forwards calls to its actors, notices that it is gone.

The methods of `NodeProxy` run in the event loop of the Dask client; those of `RemoteHandle` in the scheduler's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import Any

import numpy as np

from rltrain.rollout.cluster.nodes import SILENT_SECONDS, no_answer
from rltrain.rollout.shared_memory.heartbeat import Heartbeat, heartbeat_numbers
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.tree import leaves
from rltrain.rollout.types import Gradients, Trajectory, Weights
from rltrain.rollout.workers.handle import ActorLost, NotPlaced

Run = Callable[[Coroutine[Any, Any, None]], None]  # starts a coroutine in the event loop, from any thread


@dataclass
class Traffic:
    """Bytes and seconds since the last report."""

    bytes: int = 0
    seconds: float = 0.0
    times: int = 0

    def add(self, size: int, seconds: float) -> None:
        self.bytes, self.seconds, self.times = self.bytes + size, self.seconds + seconds, self.times + 1


@dataclass
class Publications:
    """The newest weights, and the newest snapshot at each index of the opponent pool, with their numbers."""

    weights: tuple[int, Weights]
    strict: bool  # an unroll never begins with weights older than those published before it was asked for
    opponents: dict[int, tuple[int, Weights]] = field(default_factory=dict)
    issued: int = 0  # number of the newest publication, which may not be in `weights` or `opponents` yet
    sent: Traffic = field(default_factory=Traffic)
    received: Traffic = field(default_factory=Traffic)

    @property
    def required(self) -> int:
        """Number of the publication that a node must have before an actor begins an unroll that is asked for now."""
        return self.issued if self.strict else 0

    @property
    def newest(self) -> int:
        return max([self.weights[0], *(number for number, _ in self.opponents.values())])


class NodeProxy:
    """One node and the handles of its actors.

    Args:
        slots:        number of actors that the node has room for.
        node:         the Dask actor, a `rltrain.rollout.cluster.node.Node`.
        publications: shared by all proxies.
        heartbeats:   of all actors, where their supervisor reads them.
        run:          starts a coroutine.
        on_lost:      called once, when the node is lost.
    """

    def __init__(
        self,
        address: str,
        slots: int,
        node: Any,
        publications: Publications,
        heartbeats: SharedMemory,
        run: Run,
        on_lost: Callable[[NodeProxy], None],
    ) -> None:
        self.address, self.slots, self.node = address, max(slots, 1), node
        self.facts: dict[str, Any] = {}
        self.handles: dict[int, RemoteHandle] = {}  # by worker
        self.lost: str | None = None  # the reason
        self.publications, self.run = publications, run
        self._heartbeats, self._on_lost = heartbeats, on_lost
        self._sent = 0  # number of the newest publication that the node has
        self._sending = self._polling = False
        self._last_answer = time.monotonic()

    @property
    def name(self) -> str:
        return f"{self.address} on {self.facts['host']}"

    @property
    def spare(self) -> int:
        """Free slots; negative if more actors run there than it has room for."""
        return self.slots - len(self.handles)

    def open(self, ticket: int, worker: int, streams: int, job: bytes) -> RemoteHandle:
        """Start an actor on the node; see `Node.open`. Returns its handle without waiting for the node."""
        opened = asyncio.ensure_future(self._open(ticket, worker, streams, job))
        handle = self.handles[worker] = RemoteHandle(self, worker, ticket, self._heartbeats, opened)
        return handle

    async def _open(self, ticket: int, worker: int, streams: int, job: bytes) -> str | None:
        """The reason why the actor could not be started; None if it was."""
        try:
            reason: str | None = await self.node.open(ticket, worker, streams, job)
        except Exception as error:  # Dask raises many kinds for a node that is gone
            return self.lose(no_answer(error))
        return reason

    async def ask(self, handle: RemoteHandle, number: int, required: int, method: str, args: Any) -> tuple[str, Any]:
        """Call number `number` to an actor; see `Node.ask`. Returns ("ok", answer) or ("lost", reason)."""
        if (reason := await asyncio.shield(handle.opened)) is not None:
            return "lost", reason
        began = time.perf_counter()
        try:
            kind, *result = await self.node.ask(handle.worker, handle.ticket, number, required, method, args)
        except Exception as error:
            return "lost", self.lose(no_answer(error))
        if kind == "lost":
            return kind, result[0]
        answer, seconds = result
        if method == "collect" and answer is not None:
            self.publications.received.add(_size(answer), time.perf_counter() - began - seconds)
        return kind, answer

    async def end(self, handle: RemoteHandle, reason: str | None) -> None:
        """End an actor: kill it for `reason`; None closes it in good order."""
        if self.handles.get(handle.worker) is handle:
            del self.handles[handle.worker]
        await asyncio.shield(handle.opened)  # else this call could overtake that of `open`
        if self.lost is None:
            await self.request("end_actor", handle.worker, handle.ticket, reason)

    async def request(self, method: str, *args: Any) -> None:
        """Call a method of the node; errors are ignored, since a lost node is noticed elsewhere."""
        with contextlib.suppress(Exception):
            await getattr(self.node, method)(*args)

    def poll(self) -> None:
        """Ask for the actors' heartbeats; a node that has not answered for SILENT_SECONDS is lost."""
        if not self._polling:
            self._polling = True
            self.run(self._read_heartbeats())
        elif time.monotonic() - self._last_answer > SILENT_SECONDS:
            self.lose(f"its node has not answered for {SILENT_SECONDS:g} s")

    async def _read_heartbeats(self) -> None:
        try:
            for worker, (ticket, numbers) in (await self.node.heartbeats()).items():
                handle = self.handles.get(worker)
                if handle is not None and handle.ticket == ticket:
                    handle.update_heartbeat(numbers)
            self._last_answer = time.monotonic()
        except Exception as error:
            self.lose(no_answer(error))
        finally:
            self._polling = False

    def send(self) -> None:
        """Start sending the newest publications, unless that is in progress."""
        if not self._sending and self.lost is None:
            self._sending = True
            self.run(self.catch_up())

    async def catch_up(self) -> None:
        """Send publications until the node has the newest; weights that were replaced meanwhile are skipped."""
        self._sending, news = True, self.publications
        try:
            while self._sent < news.newest and self.lost is None:
                target, began = news.newest, time.perf_counter()
                opponents = {index: snapshot for index, (at, snapshot) in news.opponents.items() if at > self._sent}
                weights = news.weights[1] if news.weights[0] > self._sent else None
                await self.node.publish(target, weights, opponents)
                self._sent = target
                parcels = [*opponents.values(), *([] if weights is None else [weights])]
                size = sum(array.nbytes for parcel in parcels for array in parcel.arrays.values())
                news.sent.add(size, time.perf_counter() - began)
        except Exception as error:
            self.lose(no_answer(error))
        finally:
            self._sending = False

    def lose(self, reason: str) -> str:
        """Give up the node and all its actors. Returns the reason of the first call."""
        if self.lost is None:
            self.lost = reason
            self.run(self.request("end"))  # the node may still exist; its actors must not
            for handle in list(self.handles.values()):
                handle.lose(reason, NotPlaced if handle.is_being_started else ActorLost)
            self._on_lost(self)
        return self.lost


class RemoteHandle:
    """The `Handle` of an actor on a node.

    Answers come in the order of the calls. `waitable` is a pipe that holds one message per answer that has arrived.

    Args:
        node:       its node.
        worker:     number of the actor.
        ticket:     distinguishes this actor from its predecessors with the same number.
        heartbeats: of all actors, where their supervisor reads them.
        opened:     the reason why the actor could not be started, or None, once that is known.
    """

    def __init__(
        self, node: NodeProxy, worker: int, ticket: int, heartbeats: SharedMemory, opened: asyncio.Future[str | None]
    ) -> None:
        self.node, self.worker, self.ticket, self.opened = node, worker, ticket, opened
        self._heartbeat = Heartbeat(heartbeats, worker)
        self._base = heartbeat_numbers(heartbeats, worker).copy()  # counts of the predecessors
        self._calls = self._taken = 0  # calls made, and answers that were put in order
        self._unordered: dict[int, Any] = {}  # answers that arrived before an earlier one, by number
        self._answers: deque[Any] = deque()
        self._lost: str | None = None
        self._kind: type[ActorLost] = ActorLost  # of the loss
        self._ending = False
        self._pipe, self._bell = Pipe(duplex=False)

    @property
    def waitable(self) -> Any:
        return self._pipe

    @property
    def exit_reason(self) -> str | None:
        return self._lost

    @property
    def is_being_started(self) -> bool:
        """True until the node has answered whether it started the actor."""
        return not self.opened.done()

    def call(self, method: str, *args: Any) -> None:
        number, self._calls = self._calls, self._calls + 1
        self.node.run(self._call(number, self.node.publications.required, method, args))

    async def _call(self, number: int, required: int, method: str, args: Any) -> None:
        try:
            kind, answer = await self.node.ask(self, number, required, method, args)
        except Exception as error:  # e.g. an answer that cannot be unpickled here
            kind, answer = "lost", f"its answer cannot be used: {error!r}"
        if kind == "lost":
            self.lose(answer)
            return
        self._unordered[number] = answer
        while self._lost is None and self._taken in self._unordered:
            self._answers.append(self._unordered.pop(self._taken))
            self._taken += 1
            self._ring()

    def update_heartbeat(self, numbers: list[int]) -> None:
        """Add the actor's counts to those of its predecessors."""
        self._heartbeat.add(self._base, np.array(numbers, np.int64))

    def lose(self, reason: str, kind: type[ActorLost] = ActorLost) -> None:
        """The actor will not answer any more; answers that have arrived remain."""
        if self._lost is None:
            self._lost, self._kind = reason, kind
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # the pipe is closed already
            self._bell.send_bytes(b"!")

    def result(self) -> Any:
        try:
            if self._answers or self._lost is None:
                self._pipe.recv_bytes()
        except (OSError, EOFError):
            raise ActorLost(self.worker, self._lost or "it was closed") from None
        if self._answers:
            return self._answers.popleft()
        raise self._kind(self.worker, f"on {self.node.name}: {self._lost}")

    def kill(self, why: str) -> None:
        self.lose(why)
        self._end(why)

    def stop(self) -> None:
        self._end(None)

    def _end(self, reason: str | None) -> None:
        if not self._ending:
            self._ending = True
            self.node.run(self.node.end(self, reason))

    def close(self) -> None:
        self.stop()
        self._lost = self._lost or "it was closed"
        self._pipe.close()
        self.node.run(self._close_bell())

    async def _close_bell(self) -> None:
        """Runs in the event loop, since `_ring` does."""
        self._bell.close()


def _size(answer: Trajectory | Gradients) -> int:
    """Bytes of the big arrays of an answer to `collect`."""
    if isinstance(answer, Gradients):
        return int(sum(array.nbytes for array in answer.arrays.values()))
    fields = [*answer.extras.values(), *answer.optional_fields().values()]
    return int(sum(array.nbytes for array in [answer.action, answer.reward, *leaves(answer.obs), *fields]))
