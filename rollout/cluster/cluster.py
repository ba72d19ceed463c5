"""The actors of a run on the nodes of a Dask cluster: places them, sends them weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cloudpickle

from rltrain.envs.errors import EnvError
from rltrain.envs.pickling import pickled_by_value
from rltrain.rollout.cluster.node import Node
from rltrain.rollout.cluster.node_proxy import NodeProxy, Publications, RemoteHandle, Traffic
from rltrain.rollout.cluster.nodes import OPEN_SECONDS, Nodes
from rltrain.rollout.frame_stacks import decompressed
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.specs import ActorJob, RolloutSpec
from rltrain.rollout.types import Trajectory, Weights
from rltrain.rollout.workers.handle import NoNode

FAST_POLL = 0.01  # seconds between two polls of heartbeats when the learner waits for actors to read their weights


class Cluster(Nodes[NodeProxy]):
    """The nodes that host the actors of a run; `begin` makes them. A `Backend` of the rollout.

    `nodes` and their handles change only in the event loop of the client.
    """

    def __init__(self, client: Any, closing: Callable[[], None], limit: float) -> None:
        super().__init__(client, closing, limit)
        self._ticket = 0
        self._uneven = False  # some nodes have too many actors, and others have room

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
        if plan.deterministic:
            self._poll_seconds = FAST_POLL
        self._begin()

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

    # --- in the event loop ---

    async def _make_node(self, address: str, slots: int) -> NodeProxy:
        dask_actor, facts = await self._on_worker(address, Node, self._plan, self._weights)
        node = NodeProxy(address, slots, dask_actor, self._publications, self._heartbeats, self._run, self._remove_node)
        node.facts = facts
        await node.catch_up()  # otherwise an actor could begin with the first weights
        return node

    def _joined(self, node: NodeProxy) -> None:
        self._update_balance()
        node.send()

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
