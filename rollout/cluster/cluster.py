"""The machines of a Dask cluster: finds them, makes a node of each, places actors on them, sends them weights."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import cloudpickle

from rltrain.envs.errors import EnvError
from rltrain.envs.pickling import pickled_by_value
from rltrain.rollout.cluster.node import Node
from rltrain.rollout.cluster.node_proxy import SILENT_SECONDS, NodeProxy, Publications, RemoteHandle, Traffic, one_line
from rltrain.rollout.cluster.versions import PACKAGES, differences, relevant
from rltrain.rollout.frame_stacks import decompressed
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.specs import ActorJob, RolloutSpec
from rltrain.rollout.types import Trajectory, Weights
from rltrain.rollout.workers.handle import ClusterLost, NoNode

POLL = 0.25  # seconds between two polls of the cluster
FAST_POLL = 0.01  # seconds between two polls of heartbeats when the learner waits for actors to read their weights
OPEN_SECONDS = 60.0  # allowed for making a node
JOIN_SECONDS = 10.0  # a starting run waits at most so long, from its first node on, for the slowest one
VERSION_SECONDS = 20.0  # allowed for a worker to report its versions
RETRY_SECONDS = 30.0  # before a worker that could not be used is tried again
CLOSE_SECONDS = 5.0
SLOTS = "rltrain"  # Dask resource: how many actors a worker takes; without it, its number of threads


class Cluster:
    """Connected to a Dask scheduler; `begin` makes nodes of its workers. A `Backend` of the rollout.

    `nodes` and their handles change only in the event loop of the client.

    Args:
        client:  a `distributed.Client`.
        closing: closes what was created for this run: the client, a cluster of its own.
        limit:   seconds that the run waits for a node when there is none.
    """

    def __init__(self, client: Any, closing: Callable[[], None], limit: float) -> None:
        self._client, self._closing, self.limit = client, closing, limit
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self.address: str = client.scheduler.address
        self.own = False  # True: created for this run, in this process
        self.note: Callable[[str], None] = lambda text: None
        self.nodes: dict[str, NodeProxy] = {}  # by address
        self.fault: str | None = None  # the reason why the cluster is lost
        self._unusable: dict[str, float] = {}  # workers by address, and when to try them again
        self._joining: dict[str, asyncio.Task[None]] = {}  # by address
        self._begun = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._notes: list[str] = []
        self._ticket = 0
        self._uneven = False  # some nodes have too many actors, and others have room
        self._empty_since: float | None = None
        self._over = False

    # --- the beginning ---

    def begin(self, plan: RolloutSpec, weights: Weights, heartbeats: SharedMemory) -> None:
        """Make nodes of all workers, and wait for the first ones.

        Args:
            heartbeats: of all actors, where their supervisor reads them.

        Raises:
            ClusterLost: there is no node within `limit`, or the scheduler is gone.
        """
        self._modules, self._weights, self._heartbeats = plan.modules, weights, heartbeats
        self._plan = plan.without_user_code()
        if self.own:  # actors start as they do without a cluster
            self._plan = replace(self._plan, preload=())
        self._publications = Publications((0, weights), strict=plan.max_in_flight == 1 or plan.deterministic)
        self._poll_seconds = FAST_POLL if plan.deterministic else POLL
        self._call(self._update_nodes(), OPEN_SECONDS)
        self._run(self._watch())
        first = float("inf")  # time of the first node
        while self._joining or not self.nodes:
            self.check(waits=not self._joining)
            if self.nodes:
                first = min(first, time.monotonic())
            if time.monotonic() - first > JOIN_SECONDS:
                break
            time.sleep(FAST_POLL)
        self._begun = True

    def versions(self) -> dict[str, dict[str, str | None]]:
        """By worker: its versions of PACKAGES and Python; empty for a worker that does not answer."""
        versions: dict[str, dict[str, str | None]] = self._call(self._all_versions(), OPEN_SECONDS)
        return versions

    # --- the calls of the rollout: see `Backend` ---

    def open(self, job: ActorJob, inference: Any = None) -> RemoteHandle:
        self.check()
        try:
            with pickled_by_value(self._modules):
                payload = cloudpickle.dumps(job)
        except Exception as error:
            raise EnvError(
                f"the environment cannot be sent to other machines: {error}. "
                "Create the objects that it holds inside its constructor"
            ) from None
        handle: RemoteHandle = self._call(self._open(job.worker, len(job.streams), payload), OPEN_SECONDS)
        return handle

    def unpack(self, worker: int, answer: Any) -> Any:
        return decompressed(answer) if isinstance(answer, Trajectory) else answer

    def publish(self, weights: Weights) -> None:
        """Send weights to every node, once; versions that are replaced before they are sent are skipped."""
        frozen = Weights(weights.version, weights.step, {name: a.copy() for name, a in weights.arrays.items()})
        self._publish(None, frozen)

    def publish_opponent(self, index: int, snapshot: Weights) -> None:
        self._publish(index, snapshot)

    def crowded(self, handle: Any) -> bool:
        return self._uneven and handle.node.spare < 0

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

    def metrics(self) -> dict[str, float]:
        """The number of nodes, and the traffic since the last call."""
        metrics, news = {"cluster/nodes": float(len(self.nodes))}, self._publications
        for name, traffic in (("weights", news.sent), ("unrolls", news.received)):
            metrics[f"cluster/{name}_bytes"] = float(traffic.bytes)
            if traffic.times:
                metrics[f"cluster/{name}_seconds"] = traffic.seconds / traffic.times
        news.sent, news.received = Traffic(), Traffic()
        return metrics

    def release(self) -> None:
        """No-op: the cluster outlives the rollout; the run calls `close`."""

    def close(self) -> None:
        """End all actors, and close what was created for this run."""
        if self._over:
            return
        self._over = True
        with contextlib.suppress(ClusterLost):
            self._call(self._end(), CLOSE_SECONDS)
        self._closing()

    # --- in the event loop ---

    def _call(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """Run a coroutine in the event loop and return its result."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
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

    async def _workers(self) -> dict[str, tuple[int, bool]]:
        """By address: how many actors a worker takes, and whether it takes new ones; a paused worker does not."""
        identity = await asyncio.wait_for(self._client.scheduler.identity(), SILENT_SECONDS)
        return {
            address: (int(worker["resources"].get(SLOTS, worker["nthreads"])), worker["status"] == "running")
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
            await asyncio.sleep(self._poll_seconds)

    async def _update_nodes(self) -> None:
        """Give up the nodes of workers that left, and make nodes of workers that joined."""
        try:
            if self._client.status != "running":
                raise OSError
            workers = await self._workers()
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
        for address, (slots, open_) in workers.items():
            if open_ and not (address in self.nodes or address in self._unusable or address in self._joining):
                task = self._joining[address] = self._loop.create_task(self._join(address, slots))
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
        except Exception as error:  # the worker may be gone already
            self._unusable[address] = time.monotonic() + RETRY_SECONDS
            self._notes.append(f"the node {address} cannot be used: {one_line(error)}")
            return
        self.nodes[address] = node
        self._update_balance()
        node.send()
        if self._begun:
            kind = f"{node.facts['cpu']} ({node.facts['kernels']})"
            self._notes.append(f"a node joined: {node.name}, {node.slots} actors, {kind}")

    async def _make_node(self, address: str, slots: int) -> NodeProxy:
        only = {"workers": [address], "allow_other_workers": False, "pure": False}
        future = self._client.submit(Node, self._plan, self._weights, actor=True, **only)
        with self._client.as_current():  # a Dask actor looks for the current client, and ours is not the default
            dask_actor = await future
            facts = await dask_actor.facts()
        node = NodeProxy(address, slots, dask_actor, self._publications, self._heartbeats, self._run, self._remove_node)
        node.facts = facts
        await node.catch_up()  # otherwise an actor could begin with the first weights
        if node.lost is not None:
            raise OSError(node.lost)
        return node

    async def _open(self, worker: int, streams: int, job: bytes) -> RemoteHandle:
        if not self.nodes:
            raise NoNode
        node = max(self.nodes.values(), key=lambda node: node.spare / node.slots)
        self._ticket += 1
        handle = node.open(self._ticket, worker, streams, job)
        self._update_balance()
        return handle

    def _publish(self, index: int | None, weights: Weights) -> None:
        self._publications.issued += 1
        self._loop.call_soon_threadsafe(self._send, self._publications.issued, index, weights)

    def _send(self, number: int, index: int | None, weights: Weights) -> None:
        if index is None:
            self._publications.weights = number, weights
        else:
            self._publications.opponents[index] = number, weights
        self._update_balance()
        for node in self.nodes.values():
            node.send()

    def _remove_node(self, node: NodeProxy) -> None:
        if self.nodes.get(node.address) is node:  # a new node may have the same address
            del self.nodes[node.address]
        self._update_balance()

    def _update_balance(self) -> None:
        spare = [node.spare for node in self.nodes.values()]
        self._uneven = any(room < 0 for room in spare) and any(room > 0 for room in spare)

    def _lose_all(self, reason: str) -> None:
        if self._over:
            return
        for name in ("asyncio", "tornado.application"):  # each call in progress would log its failure
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self.fault = f"{reason}; actors are gone with it"
        for task in self._joining.values():
            task.cancel()
        for node in list(self.nodes.values()):
            node.lose(reason)

    async def _end(self) -> None:
        for task in self._joining.values():
            task.cancel()
        nodes = list(self.nodes.values())
        self.nodes.clear()
        await asyncio.wait_for(asyncio.gather(*(node.request("end") for node in nodes)), CLOSE_SECONDS)
