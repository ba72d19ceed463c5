"""Nodes that are gone before the learner notices: an actor that is placed there has not failed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from oracles.faulty import Slow, open_rollout

from rltrain.rollout.backends import LocalBackend
from rltrain.rollout.cluster.node_proxy import NodeProxy, Publications
from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.supervision import SupervisedWorker, WorkerFailed
from rltrain.rollout.types import Weights
from rltrain.rollout.workers.handle import ActorLost, Handle

GONE = OSError("Unable to contact Actor's worker")


class DaskActor:
    """Has the interface of a Dask actor that is a `Node`: its methods fail, the first one after the actor was asked.

    Args:
        starts: `open` starts an actor, and the node is gone afterwards.
    """

    def __init__(self, starts: bool) -> None:
        self._starts = starts

    async def open(self, ticket: int, worker: int, streams: int, job: bytes) -> str | None:
        await asyncio.sleep(0.01)
        if not self._starts:
            raise GONE
        return None

    async def ask(self, *_: Any) -> tuple[Any, ...]:
        raise GONE

    async def end_actor(self, *_: Any) -> None:
        raise GONE

    async def end(self) -> None:
        raise GONE


class Nodes:
    """Nodes of a cluster that are all gone, and an event loop in a thread, as that of a Dask client."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._heartbeats = SharedMemory(8 * HEARTBEAT * 2)
        self.given_up: list[NodeProxy] = []
        self._tasks: set[Any] = set()

    def run(self, work: Any) -> None:
        self._tasks.add(asyncio.run_coroutine_threadsafe(work, self.loop))

    def open(self, worker: int = 0, starts: bool = False) -> Handle:
        """An actor that is placed on a node of its own."""

        async def place() -> Handle:
            actor, news = DaskActor(starts), Publications((0, Weights(0, 0, {})), strict=True)
            node = NodeProxy("tcp://gone", 1, actor, news, self._heartbeats, self.run, self.given_up.append)
            node.facts = {"host": "there"}
            return node.open(1, worker, 1, b"")

        return asyncio.run_coroutine_threadsafe(place(), self.loop).result(5)

    def wait_until_idle(self) -> None:
        async def idle() -> None:
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)

        asyncio.run_coroutine_threadsafe(idle(), self.loop).result(5)

    def close(self) -> None:
        self.wait_until_idle()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self._heartbeats.close()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.close()


def lose(worker: SupervisedWorker) -> None:
    """Place the worker on a node, and report that it is lost there."""
    worker.open()
    worker.call("collect")
    assert worker.ready(5)
    with pytest.raises(ActorLost, match="on tcp://gone on there: its node does not answer: Unable to contact") as lost:
        worker.result()
    worker.lost(lost.value)


def test_a_node_that_was_gone_before_it_started_an_actor_is_no_failure_of_the_actor(nodes: Nodes) -> None:
    worker = SupervisedWorker(nodes.open, lambda: 0, timeout=30.0, max_restarts=1)
    for _ in range(4):
        lose(worker)
    nodes.wait_until_idle()
    assert worker.failures == 0
    assert len(nodes.given_up) == 4, "each is used once"


def test_a_node_that_is_lost_with_an_actor_is_a_failure_of_the_actor(nodes: Nodes) -> None:
    """An actor could be what ends its nodes, by the memory that it takes."""
    worker = SupervisedWorker(lambda: nodes.open(starts=True), lambda: 0, timeout=30.0, max_restarts=1)
    lose(worker)
    with pytest.raises(WorkerFailed, match=r"failed 2 times in a row \(--max-restarts 1\)"):
        lose(worker)


def test_a_rollout_goes_on_and_counts_no_restart(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first actor is placed on four nodes that are gone, one after the other, before it is started."""
    opened, here = [], LocalBackend.open

    def open_on_nodes(self: LocalBackend, job: Any, inference: Any) -> Handle:
        opened.append(job)
        return nodes.open(job.worker) if job.worker == 0 and len(opened) <= 5 else here(self, job, inference)

    monkeypatch.setattr(LocalBackend, "open", open_on_nodes)
    lost: list[ActorLost] = []
    rollout, _ = open_rollout(lambda: Slow(0.001), lost.append, workers=2, backend="local", max_restarts=1)
    rollout.deadline = time.monotonic() + 30
    rollout.start()
    assert sum(len(unroll.stream) for unroll in rollout.gather()) == 5
    nodes.wait_until_idle()
    assert len(nodes.given_up) == 4
    assert rollout.restarts == 0
    assert lost == []
    np.testing.assert_array_equal(rollout.generations, 0)  # the streams have not acted, so they do not start again
    rollout.close()
