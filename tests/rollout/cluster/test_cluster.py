"""Which nodes a starting run waits for, with workers that become nodes as late as a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rltrain.rollout.cluster import nodes as module
from rltrain.rollout.cluster.cluster import Cluster
from rltrain.rollout.cluster.nodes import WorkerOfCluster
from rltrain.rollout.cluster.versions import own_versions
from rltrain.rollout.types import Weights


class Node:
    """Has the interface of a NodeProxy that a cluster uses while it begins."""

    slots = spare = 1
    lost = None

    def __init__(self, address: str) -> None:
        self.address = self.name = address
        self.facts = {"cpu": "a processor", "kernels": "AVX2"}

    def send(self) -> None:
        """No-op: no weights are sent."""

    def poll(self) -> None:
        """No-op: it is always there."""


@pytest.fixture
def client() -> Iterator[Any]:
    """A Dask client with an event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    scheduler = SimpleNamespace(address="tcp://scheduler")
    yield SimpleNamespace(loop=SimpleNamespace(asyncio_loop=loop), scheduler=scheduler, status="running")

    async def cancel() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(cancel(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def begin(client: Any, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """The nodes of a run that begins; `seconds` say how late each worker becomes a node."""

    async def workers(_: Cluster) -> dict[str, WorkerOfCluster]:
        return dict.fromkeys(seconds, WorkerOfCluster(1, is_open=True))

    async def versions(_: Cluster, worker: str) -> dict[str, str | None]:
        return own_versions()

    async def make_node(_: Cluster, address: str, slots: int) -> Node:
        await asyncio.sleep(seconds[address])
        return Node(address)

    for method in (workers, versions, make_node):
        monkeypatch.setattr(Cluster, f"_{method.__name__}", method)
    plan: Any = SimpleNamespace(modules=(), max_in_flight=1, deterministic=False)
    plan.without_user_code = lambda: plan
    cluster = Cluster(client, lambda: None, limit=30.0)
    cluster.begin(plan, Weights(0, 0, {}), None)  # type: ignore[arg-type]
    found = sorted(cluster.nodes)
    cluster._over = True
    return found


def test_the_wait_for_other_nodes_begins_with_the_first_node(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On machines that import slowly the first node may come later than the longest wait for the others."""
    monkeypatch.setattr(module, "JOIN_SECONDS", 2.0)
    assert begin(client, monkeypatch, {"a": 2.2, "b": 2.5}) == ["a", "b"]


def test_a_node_that_is_much_later_than_the_first_is_not_waited_for(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "JOIN_SECONDS", 0.3)
    assert begin(client, monkeypatch, {"a": 0.0, "b": 20.0}) == ["a"]
