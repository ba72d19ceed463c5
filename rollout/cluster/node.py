"""A node of a cluster: hosts the actors of one run on another machine and forwards their calls and answers.

A node is a Dask actor, so it lives in a Dask worker; it computes nothing. It receives each version of the weights once,
and shares it with its actors through memory. This module imports no dask.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import platform
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
import torch

from rltrain.envs.pickling import restore_names
from rltrain.rollout.actor.actor import Actor, Links
from rltrain.rollout.frame_stacks import compressed, has_stacks
from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT, Heartbeat, heartbeat_numbers
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.shared_memory.observations import ObservationSlots
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import RolloutSpec
from rltrain.rollout.types import Trajectory, Weights
from rltrain.rollout.workers.fork_server import start_fork_server
from rltrain.rollout.workers.handle import ActorLost
from rltrain.rollout.workers.process import ProcessHandle, before_exit, let_have_children

CLIENT_SECONDS = 60.0  # without a poll by the client, after which all that runs on its node is ended
WATCH_SECONDS = 1.0  # between two looks whether the client is there


def _open_actor(job: bytes, links: Links) -> Actor:
    """Runs in the actor's process: the node itself may be unable to unpickle a job."""
    loaded = cloudpickle.loads(job)
    restore_names(loaded.plan.make_env, loaded.plan.make_policy)
    return Actor(loaded, links)


class MessageOrder:
    """Lets numbered coroutines pass in the order of their numbers, whatever the order of their arrival."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def wait(self, number: int) -> None:
        """Wait until all lower numbers have passed."""
        if number > self._next:
            self._waiting[number] = asyncio.get_running_loop().create_future()
            await self._waiting[number]

    def passed(self) -> None:
        """Let the next number pass."""
        self._next += 1
        waiting = self._waiting.pop(self._next, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


@dataclass
class HostedActor:
    """An actor of this node."""

    ticket: int  # distinguishes it from its predecessors with the same number
    handle: ProcessHandle
    calls: MessageOrder = field(default_factory=MessageOrder)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)  # first come, first served, so in the order of calls


class Node:
    """Starts actors, forwards calls to them and their answers.

    Methods that are coroutines run concurrently, in the Dask worker's event loop.

    Args:
        plan:    see `RolloutSpec.without_user_code`.
        weights: the first ones.
    """

    def __init__(self, plan: RolloutSpec, weights: Weights) -> None:
        let_have_children()
        if plan.preload:
            start_fork_server(list(plan.preload))
        self._plan, self._stacks = plan, has_stacks(plan.spec)
        self._heartbeats = SharedMemory(8 * HEARTBEAT * max(plan.workers, 1))
        self._slots = ObservationSlots(plan)
        self._board = WeightsBoard(weights.arrays)
        self._board.publish(weights)
        self._pool = [WeightsBoard(weights.arrays) for _ in range(plan.pool.size if plan.pool is not None else 0)]
        self._actors: dict[int, HostedActor] = {}  # by number
        self._published = 0  # number of the newest publication that arrived
        self._arrival = asyncio.Event()  # of a publication
        self._over = False
        self.client = ClientWatch()
        kill_all = weakref.WeakMethod(self.kill_all)
        before_exit(lambda: method() if (method := kill_all()) is not None else None)

    def facts(self) -> dict[str, Any]:
        """See `machine`."""
        return machine()

    def open(self, ticket: int, worker: int, streams: int, job: bytes) -> str | None:
        """Start an actor, in place of any predecessor. Returns the reason if that fails.

        Args:
            ticket:  distinguishes the actor from its predecessors with the same number.
            worker:  its number.
            streams: how many it has.
            job:     a pickled ActorJob.
        """
        if (previous := self._actors.pop(worker, None)) is not None:
            previous.handle.close()
        heartbeat_numbers(self._heartbeats, worker)[:] = 0
        links = Links(
            self._board.memory.ticket(),
            self._heartbeats.ticket(),
            self._slots.ticket(worker, streams),
            opponents=[board.memory.ticket() for board in self._pool],
        )
        try:
            handle = ProcessHandle(worker, functools.partial(_open_actor, job), links)
        except ActorLost as lost:
            return lost.detail
        self._actors[worker] = HostedActor(ticket, handle)
        return None

    async def ask(
        self, worker: int, ticket: int, number: int, required: int, method: str, args: Any
    ) -> tuple[Any, ...]:
        """Call number `number` to an actor. Returns ("ok", answer, seconds it took) or ("lost", reason).

        Args:
            required: number of the publication that must have arrived before the call.
        """
        while self._published < required and not self._over:
            self._arrival.clear()
            await self._arrival.wait()
        actor = self._find(worker, ticket)
        if actor is None:
            return "lost", "it was replaced"
        await actor.calls.wait(number)
        began = time.perf_counter()
        actor.handle.call(method, *args)
        actor.calls.passed()
        async with actor.reading:
            try:
                await _readable(actor.handle.waitable)
                answer = await asyncio.to_thread(actor.handle.result)  # may block: an actor can stop inside an answer
                if method == "collect":
                    answer = self._slots.unpack(worker, answer)
                    if self._stacks and isinstance(answer, Trajectory):
                        answer = compressed(answer, self._plan.spec)
                return "ok", answer, time.perf_counter() - began
            except ActorLost as lost:
                return "lost", lost.detail
            except Exception:
                if self._find(worker, ticket) is not None:
                    raise
                return "lost", "it was replaced"  # closing a handle reads from its pipe, too

    async def publish(self, number: int, weights: Weights | None, opponents: dict[int, Weights]) -> None:
        """Publish weights, and opponents by their index, for the unrolls that begin from now on."""
        for index, snapshot in opponents.items():
            self._pool[index].publish(snapshot)
        if weights is not None:
            self._board.publish(weights)
        self._published = number
        self._arrival.set()

    async def heartbeats(self) -> dict[int, tuple[int, list[int]]]:
        """By actor: its ticket and its `heartbeat_numbers`."""
        self.client.heard(self)
        return {
            worker: (actor.ticket, heartbeat_numbers(self._heartbeats, worker).tolist())
            for worker, actor in list(self._actors.items())
            if actor.handle.exit_reason is None
        }

    async def end_actor(self, worker: int, ticket: int, reason: str | None) -> None:
        """Kill an actor for `reason`; None closes it in good order."""
        actor = self._find(worker, ticket)
        if actor is None:
            return
        if reason is None:
            Heartbeat(self._heartbeats, worker).stop()
        else:
            actor.handle.kill(reason)
        await self._close(worker)

    async def end(self) -> None:
        """End all actors in good order."""
        self._over = True
        self._arrival.set()
        for worker, actor in list(self._actors.items()):
            Heartbeat(self._heartbeats, worker).stop()
            actor.handle.stop()
        await asyncio.gather(*(self._close(worker) for worker in list(self._actors)))

    async def _close(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            await asyncio.to_thread(actor.handle.close)

    def _find(self, worker: int, ticket: int) -> HostedActor | None:
        """The actor with this number and ticket; None if it was replaced."""
        actor = self._actors.get(worker)
        return actor if actor is not None and actor.ticket == ticket else None

    def kill_all(self) -> None:
        """Kill all actors: the run, or this process, is over."""
        self._over = True
        for actor in list(self._actors.values()):
            with contextlib.suppress(Exception):
                actor.handle.kill("the run is over")
        with contextlib.suppress(RuntimeError):  # the event loop has ended already
            self._arrival.set()

    def __del__(self) -> None:
        """The run dropped this node: no call will come any more."""
        for actor in getattr(self, "_actors", {}).values():
            with contextlib.suppress(Exception):
                actor.handle.kill("the run is over")
                actor.handle.close()


class WatchedNode(Protocol):
    """A node that ends when its client is silent."""

    client: ClientWatch

    def kill_all(self) -> None:
        """End all that runs on the node."""


class ClientWatch:
    """Ends all that runs on a node when its client is gone, or is silent because it is cut off.

    Made with the node, in a Dask worker. A call that waits would keep a node alive that the scheduler has dropped.
    """

    def __init__(self) -> None:
        self.wants: Callable[[Any], bool] = lambda node: True  # false when the scheduler has dropped the node
        with contextlib.suppress(ImportError):
            from rltrain.rollout.cluster.connect import who_wants

            self.wants = who_wants()
        self._last = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_silent(self) -> bool:
        """True if the client has not been heard for CLIENT_SECONDS."""
        return time.monotonic() - self._last > CLIENT_SECONDS

    def heard(self, node: WatchedNode) -> None:
        """The client of the node has called."""
        self._last = time.monotonic()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(_watch(weakref.ref(node)))


async def _watch(reference: weakref.ref[WatchedNode]) -> None:
    """Does not keep the node alive, which would end its work by itself when the scheduler drops it."""
    while True:
        await asyncio.sleep(min(CLIENT_SECONDS / 10, WATCH_SECONDS))
        node = reference()
        if node is None:
            return
        if node.client.is_silent or not node.client.wants(node):
            node.kill_all()
            return
        del node


async def _readable(pipe: Any) -> None:
    """Wait until the pipe can be read, or is closed."""
    try:
        if pipe.poll(0):
            return
        descriptor = os.dup(pipe.fileno())  # the event loop must not watch one that another thread may close
    except OSError:
        return
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def machine() -> dict[str, Any]:
    """The host, and the hardware facts that affect the bits of a result: its processor and torch's kernels for it."""
    return {"cpu": _cpu(), "kernels": torch.backends.cpu.get_cpu_capability(), "host": platform.node()}


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
