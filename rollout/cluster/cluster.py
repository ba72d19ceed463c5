"""The machines of a Dask cluster: which there are, and what runs where."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import cloudpickle

from rltrain.envs.errors import EnvError
from rltrain.envs.pickling import pickled_by_value
from rltrain.rollout.cluster.node import Node, NodeConfig
from rltrain.rollout.cluster.node_client import SILENT_SECONDS, NodeProxy, Published, Traffic, line
from rltrain.rollout.cluster.remote_handle import RemoteHandle
from rltrain.rollout.cluster.versions import PACKAGES, differs, that_count
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.specs import ActorJob
from rltrain.rollout.types import Weights
from rltrain.rollout.workers.handle import ClusterLost, NoNode

BEAT = 0.25  # seconds between two looks at the cluster
HURRY = 0.01  # the same where the learner waits for actors to have read its weights
OPEN_SECONDS = 60.0  # that a node may take to be ready
JOIN_SECONDS = 10.0  # that a run waits at its beginning for the slowest, when there is another
ANSWER_SECONDS = 20.0  # that a worker may take to say its versions
AGAIN_SECONDS = 30.0  # after which a worker that could not be used is tried again
CLOSE_SECONDS = 5.0
SLOTS = "rltrain"  # the resource that says how many actors a Dask worker takes; else it is its number of threads


class Cluster:
    """Connected to a scheduler; `begin` makes nodes of its workers.

    `places` and who is on them change in the client's event loop only.

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
        self.places: dict[str, NodeProxy] = {}
        self.fault: str | None = None  # why there is no cluster any more
        self._unusable: dict[str, float] = {}  # workers, and when to try them again
        self._joining: dict[str, asyncio.Task[None]] = {}  # by address
        self._begun = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._notes: list[str] = []
        self._ticket = 0
        self._number = 0  # of the newest publication
        self._uneven = False  # some nodes have too many actors, others room
        self._alone_since: float | None = None
        self._over = False

    # --- the beginning ---

    def begin(
        self, terms: NodeConfig, life: SharedMemory, strict: bool, hurry: bool, modules: Sequence[str] = ()
    ) -> None:
        """Make nodes of all workers that are there, and wait for the first ones.

        Args:
            life:    of all actors, where their supervisor looks.
            strict:  no unroll begins with other weights than were published last before it was asked for.
            hurry:   look after lives often.
            modules: that come from files of the user's, and travel with the jobs of actors.

        Raises:
            ClusterLost: there is no node within `limit`, or the scheduler is gone.
        """
        if self.own:  # actors start as they do without a cluster
            terms = replace(terms, preload=())
        self._terms, self._life, self._strict, self._modules = terms, life, strict, modules
        self._news = Published((0, terms.weights))
        self._beat = HURRY if hurry else BEAT
        self._call(self._look(), OPEN_SECONDS)
        self._run(self._watch())
        began = time.monotonic()
        while self._joining or not self.places:
            self.check(waits=not self._joining)
            if self.places and time.monotonic() - began > JOIN_SECONDS:
                break
            time.sleep(HURRY)
        self._begun = True

    def versions(self) -> dict[str, dict[str, str | None]]:
        """By worker: its versions of PACKAGES and of Python; those of one that does not answer are missing."""
        found: dict[str, dict[str, str | None]] = self._call(self._all_versions(), OPEN_SECONDS)
        return found

    # --- what the rollout asks ---

    def open(self, job: ActorJob) -> RemoteHandle:
        """Start an actor where there is most room.

        Raises:
            NoNode:      there is no node; `limit` has not passed yet.
            ClusterLost: it has, or the scheduler is gone.
        """
        self.check()
        try:
            with pickled_by_value(self._modules):
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
        self._number += 1
        self._loop.call_soon_threadsafe(self._tell, self._number, None, frozen)

    def keep(self, place: int, snapshot: Weights) -> None:
        """Send an opponent to every node."""
        self._number += 1
        self._loop.call_soon_threadsafe(self._tell, self._number, place, snapshot)

    def crowded(self, handle: Any) -> bool:
        """Whether its actor shares a node with more than there is room for, while there is room elsewhere."""
        return self._uneven and handle.place.spare < 0

    def check(self, waits: bool = True) -> None:
        """Say what there is to say; ClusterLost if there is no cluster any more, or has been no node for too long.

        Args:
            waits: for a node, if there is none.
        """
        while self._notes:
            self.note(self._notes.pop(0))
        if self.fault is not None:
            raise ClusterLost(self.fault)
        if self.places:
            if self._alone_since is not None:
                self.note("there is a node again: going on")
            self._alone_since = None
        elif waits:
            now = time.monotonic()
            if self._alone_since is None:
                self._alone_since = now
                self.note(f"no node is left: waiting for one, {self.limit:g} s at most")
            if now - self._alone_since > self.limit:
                raise ClusterLost(f"there has been no node for {self.limit:g} s (--cluster-timeout)")

    def metrics(self) -> dict[str, float]:
        """Nodes, and what went to them and came back since this was asked last."""
        told, news = {"cluster/nodes": float(len(self.places))}, self._news
        for name, traffic in (("weights", news.sent), ("unrolls", news.came)):
            told[f"cluster/{name}_bytes"] = float(traffic.bytes)
            if traffic.times:
                told[f"cluster/{name}_seconds"] = traffic.seconds / traffic.times
        news.sent, news.came = Traffic(), Traffic()
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
            raise ClusterLost(self.fault or f"the cluster does not answer: {line(error)}") from None

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine, from any thread."""
        self._loop.call_soon_threadsafe(self._start, work)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _workers(self) -> dict[str, tuple[int, bool]]:
        """By address: how many actors it takes, and whether it takes new ones; short of memory it does not."""
        told = await asyncio.wait_for(self._client.scheduler.identity(), SILENT_SECONDS)
        return {
            address: (int(worker["resources"].get(SLOTS, worker["nthreads"])), worker["status"] == "running")
            for address, worker in told["workers"].items()
        }

    async def _all_versions(self) -> dict[str, dict[str, str | None]]:
        workers = list(await self._workers())
        return dict(zip(workers, await asyncio.gather(*map(self._versions, workers)), strict=True))

    async def _versions(self, worker: str) -> dict[str, str | None]:
        message = {"op": "versions", "packages": list(PACKAGES)}
        asked = self._client.scheduler.broadcast(msg=message, workers=[worker], on_error="return")
        try:
            told = (await asyncio.wait_for(asked, ANSWER_SECONDS)).get(worker)
        except (OSError, TimeoutError):
            told = None
        return that_count(told["packages"] if isinstance(told, dict) else {})

    async def _watch(self) -> None:
        """Look after the cluster until the run is over."""
        looked = 0.0
        while not self._over and self.fault is None:
            if time.monotonic() - looked >= BEAT:
                looked = time.monotonic()
                await self._look()
            for place in list(self.places.values()):
                place.beat()
            await asyncio.sleep(self._beat)

    async def _look(self) -> None:
        """Who came, and who went."""
        try:
            if self._client.status != "running":
                raise OSError
            workers = await self._workers()
        except (OSError, TimeoutError):
            self._lose_all(f"the connection to the scheduler at {self.address} was lost")
            return
        for place in list(self.places.values()):
            if place.address not in workers:
                place.lose("its node was lost")
        for address, task in self._joining.items():
            if address not in workers:
                task.cancel()
        now = time.monotonic()
        self._unusable = {a: until for a, until in self._unusable.items() if a in workers and now < until}
        for address, (slots, open_) in workers.items():
            if open_ and not (address in self.places or address in self._unusable or address in self._joining):
                task = self._joining[address] = self._loop.create_task(self._join(address, slots))
                task.add_done_callback(lambda _, address=address: self._joining.pop(address))  # type: ignore[misc]

    async def _join(self, address: str, slots: int) -> None:
        """Make a node of a worker."""
        try:
            if not (versions := await self._versions(address)):
                raise OSError("it does not say what it has installed")
            if wrong := differs({address: versions}):
                self._unusable[address] = float("inf")
                self._notes.append(wrong[0])
                return
            place = await asyncio.wait_for(self._made(address, slots), OPEN_SECONDS)
        except Exception as error:  # it may be gone already
            self._unusable[address] = time.monotonic() + AGAIN_SECONDS
            self._notes.append(f"the node {address} cannot be used: {line(error)}")
            return
        self.places[address] = place
        self._weigh()
        place.send()
        if self._begun:
            kind = f"{place.facts['cpu']} ({place.facts['kernels']})"
            self._notes.append(f"a node joined: {address} on {place.facts['host']}, {place.slots} actors, {kind}")

    async def _made(self, address: str, slots: int) -> NodeProxy:
        only = {"workers": [address], "allow_other_workers": False, "pure": False}
        future = self._client.submit(Node, self._terms, actor=True, **only)
        with self._client.as_current():  # it is not the default one, and an actor looks for its client
            node = await future
            facts = await node.facts()
        place = NodeProxy(address, slots, node, self._news, self._life, self._run, self._lost)
        place.facts = facts
        await place.catch_up()  # before it, an actor would begin with the first weights of all
        if place.lost is not None:
            raise OSError(place.lost)
        return place

    async def _open(self, job: ActorJob, payload: bytes) -> RemoteHandle:
        if not self.places:
            raise NoNode
        place = max(self.places.values(), key=lambda place: place.spare / place.slots)
        self._ticket += 1
        handle = place.open(self._ticket, job, payload, lambda: self._number if self._strict else 0)
        self._weigh()
        return handle

    def _tell(self, number: int, place: int | None, weights: Weights) -> None:
        """What was published: weights, or an opponent."""
        if place is None:
            self._news.weights = number, weights
        else:
            self._news.kept[place] = number, weights
        self._weigh()
        for home in self.places.values():
            home.send()

    def _lost(self, place: NodeProxy) -> None:
        """A node is gone, which may have joined anew meanwhile."""
        if self.places.get(place.address) is place:
            del self.places[place.address]
        self._weigh()

    def _weigh(self) -> None:
        """Whether actors had better move."""
        spare = [place.spare for place in self.places.values()]
        self._uneven = any(room < 0 for room in spare) and any(room > 0 for room in spare)

    def _lose_all(self, why: str) -> None:
        if self._over:
            return
        for name in ("asyncio", "tornado.application"):  # what was under way fails now, and each would say so
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self.fault = f"{why}; actors are gone with it"
        for task in self._joining.values():
            task.cancel()
        for place in list(self.places.values()):
            place.lose(why)

    async def _end(self) -> None:
        for task in self._joining.values():
            task.cancel()
        places = list(self.places.values())
        self.places.clear()
        await asyncio.wait_for(asyncio.gather(*(place.quietly("end") for place in places)), CLOSE_SECONDS)
