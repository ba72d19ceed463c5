"""The nodes of a Dask cluster: finds its workers, checks their versions, makes a node of each, notices lost ones.

What a node does is up to the subclass: it hosts actors (rltrain.rollout.cluster.cluster) or runs jobs
(rltrain.jobs.cluster).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from rltrain.rollout.cluster.versions import PACKAGES, differences, relevant
from rltrain.rollout.workers.handle import ClusterLost

POLL = 0.25  # seconds between two polls of the cluster
BEGIN_POLL = 0.01  # seconds between two looks at the nodes when a run begins
OPEN_SECONDS = 60.0  # allowed for making a node
JOIN_SECONDS = 10.0  # a starting run waits at most so long, from its first node on, for the slowest one
VERSION_SECONDS = 20.0  # allowed for a worker to report its versions
RETRY_SECONDS = 30.0  # before a worker that could not be used is tried again
CLOSE_SECONDS = 5.0
SILENT_SECONDS = 30.0  # a node, or a scheduler, that does not answer for so long is lost
SLOTS = "rltrain"  # Dask resource: how many actors, or cores of jobs, a worker takes; without it, its number of threads


class WorkerOfCluster(NamedTuple):
    """A Dask worker, as the scheduler describes it."""

    slots: int
    is_open: bool  # it takes new work; a paused worker does not
    host: str = ""


class Proxy(Protocol):
    """A node as this process sees it; its methods run in the event loop of the client."""

    address: str
    slots: int
    facts: dict[str, Any]
    lost: str | None  # the reason, when it was given up

    @property
    def name(self) -> str:
        """The node's name in messages."""

    def poll(self) -> None:
        """Look whether the node still answers."""

    def lose(self, reason: str) -> str:
        """Give up the node and all that runs there. Returns the reason of the first call."""

    async def request(self, method: str, *args: Any) -> None:
        """Call a method of the node; errors are ignored."""


Node = TypeVar("Node", bound=Proxy)


class Nodes(Generic[Node]):
    """Connected to a Dask scheduler; `_begin` makes nodes of its workers.

    `nodes` changes only in the event loop of the client.

    Args:
        client:  a `distributed.Client`.
        closing: closes what was created for this run: the client, a cluster of its own.
        limit:   seconds to wait for a node when there is none.
    """

    hosted, unit = "actors", "actors"  # what runs on the nodes, and what it needs a slot for, in messages

    def __init__(self, client: Any, closing: Callable[[], None], limit: float) -> None:
        self._client, self._closing, self.limit = client, closing, limit
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self.address: str = client.scheduler.address
        self.own = False  # True: created for this run, in this process
        self.note: Callable[[str], None] = lambda text: None
        self.nodes: dict[str, Node] = {}  # by address
        self.fault: str | None = None  # the reason why the cluster is lost
        self._known: dict[str, WorkerOfCluster] = {}  # by address
        self._unusable: dict[str, float] = {}  # workers by address, and when to try them again
        self._joining: dict[str, asyncio.Task[None]] = {}  # by address
        self._begun = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._notes: list[str] = []
        self._empty_since: float | None = None
        self._over = False
        self._poll_seconds = POLL

    async def _make_node(self, address: str, slots: int) -> Node:
        """Make a node of the worker at this address. An exception means that it cannot be used."""
        raise NotImplementedError

    def _joined(self, node: Node) -> None:
        """A node can be used now."""

    def _watched(self) -> None:
        """The nodes were polled."""

    def _lost(self, reason: str) -> None:
        """The whole cluster is lost, and all its nodes were given up."""

    def units(self, count: int) -> str:
        """The word for so many units."""
        return self.unit if count != 1 else self.unit.removesuffix("s")

    def versions(self) -> dict[str, dict[str, str | None]]:
        """By worker: its versions of PACKAGES and Python; empty for a worker that does not answer."""
        versions: dict[str, dict[str, str | None]] = self._call(self._all_versions(), OPEN_SECONDS)
        return versions

    def check(self, waits: bool = True) -> None:
        """Pass on notes. Raises ClusterLost if the cluster is lost, or had no node for longer than `limit`.

        Args:
            waits: measure the time without a node.
        """
        while self._notes:
            self.note(self._notes.pop(0))
        if self.fault is not None:
            raise ClusterLost(self.fault)
        if self.nodes:
            if self._empty_since is not None:
                self.note("there is a node again: going on")
            self._empty_since = None
        elif waits:
            now = time.monotonic()
            if self._empty_since is None:
                self._empty_since = now
                self.note(f"no node is left: waiting for one, {self.limit:g} s at most")
            if now - self._empty_since > self.limit:
                raise ClusterLost(f"there has been no node for {self.limit:g} s (--cluster-timeout)")

    def close(self) -> None:
        """End all that runs on the nodes, and close what was created for this run."""
        if self._over:
            return
        self._over = True
        with contextlib.suppress(ClusterLost):
            self._call(self._end(), CLOSE_SECONDS)
        self._closing()

    def _begin(self) -> None:
        """Make nodes of all workers, and wait for the first ones.

        Raises:
            ClusterLost: there is no node within `limit`, or the scheduler is gone.
        """
        self._call(self._update_nodes(), OPEN_SECONDS)
        self._run(self._watch())
        first = float("inf")  # time of the first node
        while self._joining or not self.nodes:
            self.check(waits=not self._joining)
            if self.nodes:
                first = min(first, time.monotonic())
            if time.monotonic() - first > JOIN_SECONDS:
                break
            time.sleep(BEGIN_POLL)
        self._begun = True

    # --- in the event loop ---

    async def _on_worker(self, address: str, kind: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, Any]]:
        """The Dask actor `kind(*args)` on a worker, and its facts."""
        only = {"workers": [address], "allow_other_workers": False, "pure": False}
        future = self._client.submit(kind, *args, actor=True, **only)
        with self._client.as_current():  # a Dask actor looks for the current client, and ours is not the default
            dask_actor = await future
            return dask_actor, await dask_actor.facts()

    def _call(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """Run a coroutine in the event loop and return its result."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the user has closed the client
            work.close()
            raise ClusterLost(self.fault or f"the connection to the scheduler at {self.address} was closed") from None
        try:
            return future.result(seconds)
        except (TimeoutError, OSError) as error:
            future.cancel()
            raise ClusterLost(self.fault or f"the cluster does not answer: {one_line(error)}") from None

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine, from any thread."""
        self._loop.call_soon_threadsafe(self._start, work)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _workers(self) -> dict[str, WorkerOfCluster]:
        """The workers by their addresses."""
        identity = await asyncio.wait_for(self._client.scheduler.identity(), SILENT_SECONDS)
        return {
            address: WorkerOfCluster(
                int(worker["resources"].get(SLOTS, worker["nthreads"])), worker["status"] == "running", worker["host"]
            )
            for address, worker in identity["workers"].items()
        }

    async def _all_versions(self) -> dict[str, dict[str, str | None]]:
        workers = list(await self._workers())
        return dict(zip(workers, await asyncio.gather(*map(self._versions, workers)), strict=True))

    async def _versions(self, worker: str) -> dict[str, str | None]:
        message = {"op": "versions", "packages": list(PACKAGES)}
        request = self._client.scheduler.broadcast(msg=message, workers=[worker], on_error="return")
        try:
            answer = (await asyncio.wait_for(request, VERSION_SECONDS)).get(worker)
        except (OSError, TimeoutError):
            answer = None
        return relevant(answer["packages"] if isinstance(answer, dict) else {})

    async def _watch(self) -> None:
        """Poll the cluster and its nodes until the run is over."""
        last = 0.0
        while not self._over and self.fault is None:
            if time.monotonic() - last >= POLL:
                last = time.monotonic()
                await self._update_nodes()
            for node in list(self.nodes.values()):
                node.poll()
            self._watched()
            await asyncio.sleep(self._poll_seconds)

    async def _update_nodes(self) -> None:
        """Give up the nodes of workers that left, and make nodes of workers that joined."""
        try:
            if self._client.status != "running":
                raise OSError
            workers = self._known = await self._workers()
        except (OSError, TimeoutError):
            self._lose_all(f"the connection to the scheduler at {self.address} was lost")
            return
        for node in list(self.nodes.values()):
            if node.address not in workers:
                node.lose("its node was lost")
        for address, task in self._joining.items():
            if address not in workers:
                task.cancel()
        now = time.monotonic()
        self._unusable = {a: until for a, until in self._unusable.items() if a in workers and now < until}
        for address, worker in workers.items():
            if worker.is_open and not any(address in those for those in (self.nodes, self._unusable, self._joining)):
                task = self._joining[address] = self._loop.create_task(self._join(address, worker.slots))
                task.add_done_callback(lambda _, address=address: self._joining.pop(address))  # type: ignore[misc]

    async def _join(self, address: str, slots: int) -> None:
        """Make a node of a worker, if its versions allow it."""
        try:
            if not (versions := await self._versions(address)):
                raise OSError("it does not report its versions")
            if wrong := differences({address: versions}):
                self._unusable[address] = float("inf")
                self._notes.append(wrong[0])
                return
            node = await asyncio.wait_for(self._make_node(address, slots), OPEN_SECONDS)
            if node.lost is not None:
                raise OSError(node.lost)
        except Exception as error:  # the worker may be gone already
            self._unusable[address] = time.monotonic() + RETRY_SECONDS
            self._notes.append(f"the node {address} cannot be used: {one_line(error)}")
            return
        self.nodes[address] = node
        self._joined(node)
        if self._begun:
            kind = f"{node.facts['cpu']} ({node.facts['kernels']})"
            self._notes.append(f"a node joined: {node.name}, {node.slots} {self.units(node.slots)}, {kind}")

    def _lose_all(self, reason: str) -> None:
        if self._over:
            return
        for name in ("asyncio", "tornado.application"):  # each call in progress would log its failure
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self.fault = f"{reason}; {self.hosted} are gone with it"
        for task in self._joining.values():
            task.cancel()
        for node in list(self.nodes.values()):
            node.lose(reason)
        self._lost(self.fault)

    async def _end(self) -> None:
        for task in self._joining.values():
            task.cancel()
        nodes = list(self.nodes.values())
        self.nodes.clear()
        await asyncio.wait_for(asyncio.gather(*(node.request("end") for node in nodes)), CLOSE_SECONDS)


def one_line(error: BaseException) -> str:
    """The text of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def no_answer(error: BaseException) -> str:
    return f"its node does not answer: {one_line(error)}"
