"""The machines of a Dask cluster: which there are, what runs where, what goes to them and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import cloudpickle

from envs.errors import EnvError
from rollout.actor import LIFE, ActorJob
from rollout.backend import ClusterLost, NoNode
from rollout.memory import SharedMemory
from rollout.node import Node, Terms, outline_of
from rollout.place import Place, Traffic, size_of
from rollout.remote import RemoteHandle
from rollout.types import Trajectory, Weights
from rollout.versions import PACKAGES, differs, that_count

BEAT = 0.25  # seconds between two looks at the cluster
HURRY = 0.01  # the same where the learner waits for actors to have read its weights
OPEN_SECONDS = 60.0  # that a node may take to be ready
JOIN_SECONDS = 10.0  # that a run waits at its beginning for the slowest, when there is another
SILENT_SECONDS = 30.0  # after which a node that does not answer is given up
CLOSE_SECONDS = 5.0
SLOTS = "rltrain"  # the resource that says how many actors a Dask worker takes; else it is its number of threads


class Cluster:
    """Connected to a scheduler; `begin` makes nodes of its workers.

    Everything that belongs to nodes is touched in the client's event loop only.

    Args:
        client:  a `distributed.Client`.
        closing: ends what was made for this run: the client, a cluster of its own.
        limit:   seconds that the run waits for a node when there is none.
    """

    def __init__(self, client: Any, closing: Callable[[], None], limit: float) -> None:
        self._client, self._closing, self.limit = client, closing, limit
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self.address: str = client.scheduler.address
        self.own = False  # whether it was made for this run, and lives in this process
        self.note: Callable[[str], None] = lambda text: None
        self.places: dict[str, Place] = {}
        self.fault: str | None = None  # why there is no cluster any more
        self._refused: set[str] = set()
        self._joining: dict[str, asyncio.Task[None]] = {}  # by address
        self._begun = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._notes: list[str] = []
        self._ticket = 0
        self._latest: tuple[int, Weights | None] = 0, None  # the newest publication, and its number
        self._kept: dict[int, Weights] = {}
        self._uneven = False  # some nodes have too many actors, others room
        self._alone_since: float | None = None
        self._over = False
        self._weights, self._unrolls = Traffic(), Traffic()

    # --- the beginning ---

    def begin(self, terms: Terms, life: SharedMemory, strict: bool, hurry: bool) -> None:
        """Make nodes of all workers that are there.

        Args:
            life:   of all actors, where their supervisor looks.
            strict: no unroll begins with other weights than were published last before it was asked for.
            hurry:  look after lives often.
        """
        if self.own:  # actors start as they do without a cluster
            terms = replace(terms, preload=())
        self._terms, self._life, self._strict = terms, life, strict
        self._beat = HURRY if hurry else BEAT
        self._latest = 0, terms.weights
        self._call(self._look(), OPEN_SECONDS)
        self._run(self._watch())
        began = time.monotonic()
        while self._joining or not self.places:
            if not self._joining:
                self.check()
            elif self.places and time.monotonic() - began > JOIN_SECONDS:
                break
            time.sleep(HURRY)
        self._begun = True

    def versions(self) -> dict[str, dict[str, str | None]]:
        """By worker: its versions of PACKAGES and of Python."""
        told = self._call(self._versions(), OPEN_SECONDS)
        return {address: found for address, found in told.items() if found}

    # --- what the rollout asks ---

    def open(self, job: ActorJob) -> RemoteHandle:
        """Start an actor where there is most room.

        Raises:
            NoNode:      there is no node; `limit` has not passed yet.
            ClusterLost: it has, or the scheduler is gone.
        """
        self.check()
        try:
            payload = cloudpickle.dumps(job)
        except Exception as error:
            raise EnvError(
                f"the environment cannot be sent to other machines: {error}. Make what it holds inside its constructor"
            ) from None
        handle: RemoteHandle = self._call(self._open(job, payload), OPEN_SECONDS)
        return handle

    def publish(self, weights: Weights) -> None:
        """Send weights to every node, once; those that were overtaken on the way are left out."""
        frozen = Weights(weights.version, weights.step, {name: a.copy() for name, a in weights.arrays.items()})
        self._latest = self._latest[0] + 1, frozen
        self._loop.call_soon_threadsafe(self._send_all)

    def keep(self, place: int, snapshot: Weights) -> None:
        """Send an opponent to every node."""
        self._kept[place] = snapshot
        for home in list(self.places.values()):
            self._run(self._quietly(home, "keep", place, snapshot))

    def crowded(self, handle: Any) -> bool:
        """Whether its actor shares a node with more than there is room for, while there is room elsewhere."""
        return self._uneven and len(handle.place.handles) > handle.place.slots

    def check(self) -> None:
        """Say what there is to say; ClusterLost if there is no cluster any more, or has been no node for too long."""
        while self._notes:
            self.note(self._notes.pop(0))
        if self.fault is not None:
            raise ClusterLost(self.fault)
        if self.places:
            if self._alone_since is not None:
                self.note("there is a node again: going on")
            self._alone_since = None
            return
        now = time.monotonic()
        if self._alone_since is None:
            self._alone_since = now
            self.note(f"no node is left: waiting for one, {self.limit:g} s at most")
        if now - self._alone_since > self.limit:
            raise ClusterLost(f"there has been no node for {self.limit:g} s (--cluster-timeout)")

    def metrics(self) -> dict[str, float]:
        """Nodes, and what went to them and came back since this was asked last."""
        told = {"cluster/nodes": float(len(self.places))}
        for name, traffic in (("weights", self._weights), ("unrolls", self._unrolls)):
            told[f"cluster/{name}_bytes"] = float(traffic.bytes)
            if traffic.times:
                told[f"cluster/{name}_seconds"] = traffic.seconds / traffic.times
        self._weights, self._unrolls = Traffic(), Traffic()
        return told

    def close(self) -> None:
        """End all actors, and what was made for this run."""
        if self._over:
            return
        self._over = True
        with contextlib.suppress(ClusterLost):
            self._call(self._end(), CLOSE_SECONDS)
        self._closing()

    # --- in the event loop ---

    def _call(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """The result of a coroutine."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except (TimeoutError, OSError) as error:
            future.cancel()
            raise ClusterLost(self.fault or f"the cluster does not answer: {_line(error)}") from None

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine, from any thread."""
        self._loop.call_soon_threadsafe(self._start, work)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _identity(self) -> dict[str, Any]:
        told: dict[str, Any] = await asyncio.wait_for(self._client.scheduler.identity(), SILENT_SECONDS)
        return told

    async def _workers(self) -> dict[str, int]:
        workers = (await self._identity())["workers"]
        return {
            address: int(told["resources"].get(SLOTS, told["nthreads"]))
            for address, told in workers.items()
            if told["status"] == "running"
        }

    async def _versions(self, workers: list[str] | None = None) -> dict[str, dict[str, str | None]]:
        message = {"op": "versions", "packages": list(PACKAGES)}
        told = await self._client.scheduler.broadcast(msg=message, workers=workers, on_error="ignore")
        return {address: that_count(found["packages"]) for address, found in told.items() if found}

    async def _watch(self) -> None:
        """Look after the cluster until the run is over."""
        looked = 0.0
        while not self._over and self.fault is None:
            if time.monotonic() - looked >= BEAT:
                looked = time.monotonic()
                await self._look()
            for place in list(self.places.values()):
                if not place.beating:
                    place.beating = True
                    self._start(self._lives(place))
                elif time.monotonic() - place.seen > SILENT_SECONDS:
                    self._lose(place.address, f"its node has not answered for {SILENT_SECONDS:g} s")
            await asyncio.sleep(self._beat)

    async def _look(self) -> None:
        """Who came, who went; what those that stay have to say."""
        try:
            if self._client.status != "running":
                raise OSError
            workers = await self._workers()
        except (OSError, TimeoutError):
            self._lose_all(f"the connection to the scheduler at {self.address} was lost")
            return
        for address in [address for address in self.places if address not in workers]:
            self._lose(address, "its node was lost")
        for address, task in self._joining.items():
            if address not in workers:
                task.cancel()
        for address, slots in workers.items():
            if not (address in self.places or address in self._refused or address in self._joining):
                task = self._joining[address] = self._loop.create_task(self._join(address, slots))
                task.add_done_callback(lambda _, address=address: self._joining.pop(address))  # type: ignore[misc]

    async def _join(self, address: str, slots: int) -> None:
        """Make a node of a worker."""
        try:
            if wrong := differs(await self._versions([address])):
                self._refused.add(address)
                self._notes.append(wrong[0])
                return
            future = self._client.submit(
                Node, self._terms, workers=[address], actor=True, pure=False, allow_other_workers=False
            )
            with self._client.as_current():  # it is not the default one, and an actor looks for its client
                place = Place(address, max(slots, 1), await asyncio.wait_for(future, OPEN_SECONDS))
                place.facts = await place.node.facts()
            place.seen = time.monotonic()
            for where, snapshot in self._kept.items():
                await place.node.keep(where, snapshot)
            self.places[address] = place
            self._weigh()
            self._send(place)
            if self._begun:
                self._notes.append(f"a node joined: {address} on {place.facts['host']}, {place.slots} actors")
        except Exception as error:  # it may be gone already
            self._refused.add(address)
            self._notes.append(f"the node {address} cannot be used: {_line(error)}")

    async def _open(self, job: ActorJob, payload: bytes) -> RemoteHandle:
        if not self.places:
            raise NoNode
        place = max(self.places.values(), key=lambda place: (place.slots - len(place.handles)) / place.slots)
        self._ticket += 1
        ticket, worker = self._ticket, job.worker
        base = self._life.array(8 * LIFE * worker, (LIFE,), "int64").copy()
        opened = self._loop.create_task(self._opened(place, ticket, job, payload))
        handle = RemoteHandle(
            worker,
            ticket,
            base,
            f"{place.address} on {place.facts['host']}",
            self._run,
            functools.partial(self._ask, place, opened, worker, ticket),
            lambda: self._latest[0] if self._strict else 0,
            functools.partial(self._finish, place, worker, ticket),
        )
        handle.place = place
        place.handles[worker] = handle
        self._weigh()
        return handle

    async def _opened(self, place: Place, ticket: int, job: ActorJob, payload: bytes) -> str | None:
        """Why an actor could not be started, if so."""
        try:
            await place.node.open(ticket, outline_of(job), payload)
        except Exception as error:
            return f"it could not be started: {_line(error)}"
        return None

    async def _ask(
        self,
        place: Place,
        opened: asyncio.Task[str | None],
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
            kind, *told = await place.node.ask(worker, ticket, number, needs, method, args)
        except Exception as error:  # whatever Dask says of a node that is gone
            return "lost", f"its node does not answer: {_line(error)}"
        if kind == "lost":
            return kind, told[0]
        answer, seconds = told
        if method == "collect" and isinstance(answer, Trajectory):
            self._unrolls.add(size_of(answer), time.perf_counter() - began - seconds)
        return kind, ((answer, None) if method == "collect" else answer)

    async def _finish(self, place: Place, worker: int, ticket: int, why: str | None) -> None:
        """End an actor."""
        if getattr(place.handles.get(worker), "ticket", None) == ticket:
            del place.handles[worker]
            self._weigh()
        if place.address in self.places:
            how = ("close", worker, ticket) if why is None else ("kill", worker, ticket, why)
            await self._quietly(place, *how)

    async def _quietly(self, place: Place, method: str, *args: Any) -> None:
        with contextlib.suppress(Exception):
            await getattr(place.node, method)(*args)

    async def _lives(self, place: Place) -> None:
        """What the actors of a node let their supervisor see."""
        try:
            for worker, (ticket, numbers) in (await place.node.lives()).items():
                handle = place.handles.get(worker)
                if handle is not None and handle.ticket == ticket:
                    handle.tell(self._life, numbers)
            place.seen = time.monotonic()
        except Exception as error:
            self._lose(place.address, f"its node does not answer: {_line(error)}")
        finally:
            place.beating = False

    def _send_all(self) -> None:
        for place in self.places.values():
            self._send(place)

    def _send(self, place: Place) -> None:
        if not place.sending and place.sent < self._latest[0]:
            place.sending = True
            self._start(self._sent(place))

    async def _sent(self, place: Place) -> None:
        """Send the newest weights, and those that came meanwhile."""
        try:
            while place.sent < self._latest[0] and not self._over:
                (sequence, weights), began = self._latest, time.perf_counter()
                assert weights is not None
                await place.node.publish(sequence, weights)
                place.sent = sequence
                size = sum(array.nbytes for array in weights.arrays.values())
                self._weights.add(size, time.perf_counter() - began)
        except Exception as error:
            self._lose(place.address, f"its node does not answer: {_line(error)}")
        finally:
            place.sending = False

    def _lose(self, address: str, why: str) -> None:
        place = self.places.pop(address, None)
        for handle in [] if place is None else list(place.handles.values()):
            handle.lose(why)
        self._weigh()

    def _weigh(self) -> None:
        """After a change of who is where."""
        spare = [place.slots - len(place.handles) for place in self.places.values()]
        self._uneven = any(room < 0 for room in spare) and any(room > 0 for room in spare)

    def _lose_all(self, why: str) -> None:
        if not self._over:
            for name in ("asyncio", "tornado"):  # what was under way fails now, and each would say so
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            self.fault = f"{why}; actors are gone with it"
            for address in list(self.places):
                self._lose(address, why)

    async def _end(self) -> None:
        ends = [self._quietly(place, "end") for place in self.places.values()]
        self.places.clear()
        await asyncio.wait_for(asyncio.gather(*ends), CLOSE_SECONDS)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
