"""What runs on another machine: the actors of one run there, each in a process of its own, and who speaks for them.

A node is a Dask actor, so it lives in a Dask worker; it relays and computes nothing. Weights come to it once and lie in
memory that its actors share. Imports no dask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.actor.actor import Actor, Links
from rltrain.rollout.frame_stacks import compressed, has_stacks
from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT, Heartbeat
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.shared_memory.observations import ObservationSlots
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import ActorJob
from rltrain.rollout.types import Trajectory, Weights
from rltrain.rollout.workers.fork_server import start_fork_server
from rltrain.rollout.workers.handle import ActorLost
from rltrain.rollout.workers.process import ProcessHandle, before_exit, let_have_children

GUARD_SECONDS = 60.0  # without a sign of life of the learner, after which actors are ended


@dataclass(frozen=True)
class NodeConfig:
    """What all nodes of a run are told at first."""

    spec: EnvSpec
    unroll: int
    seats: int  # actors of the run, wherever they are
    weights: Weights
    pool: int = 0  # past policies kept as opponents
    preload: tuple[str, ...] = ()  # what its actors import anyway


class BuildFrom:
    """Makes an actor, in its process, from a job that was pickled by value: a node never looks into it."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def __call__(self, *links: Any) -> Actor:
        return Actor(cloudpickle.loads(self.payload), Links(*links))


class MessageOrder:
    """Lets coroutines that bear numbers pass one after the other, whatever the order they come in."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def wait(self, number: int) -> None:
        """Until all before it have passed."""
        if number > self._next:
            self._waiting[number] = asyncio.get_running_loop().create_future()
            await self._waiting[number]

    def passed(self) -> None:
        """Let the next one go."""
        self._next += 1
        waiting = self._waiting.pop(self._next, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


@dataclass
class HostedActor:
    """One actor here."""

    ticket: int  # which of the actors that the run has had on this seat
    handle: ProcessHandle
    asking: MessageOrder = field(default_factory=MessageOrder)
    answering: MessageOrder = field(default_factory=MessageOrder)


class Node:
    """Opens actors, hands on what they are asked and what they answer.

    Methods that are coroutines run in the Dask worker's event loop, side by side.
    """

    def __init__(self, terms: NodeConfig) -> None:
        let_have_children()
        if terms.preload:
            start_fork_server(list(terms.preload))
        like = terms.weights.arrays
        self._life = SharedMemory(8 * HEARTBEAT * terms.seats)
        self._spec, self._stacks = terms.spec, has_stacks(terms.spec)
        self._slots = ObservationSlots(terms.spec, terms.unroll)
        self._board = WeightsBoard(like)
        self._board.publish(terms.weights)
        self._pool = [WeightsBoard(like) for _ in range(terms.pool)]
        self._berths: dict[int, HostedActor] = {}  # by worker
        self._sequence = 0  # which publication is here
        self._newer = asyncio.Event()
        self._over = False
        self._asked = time.monotonic()  # when the learner last asked for lives
        self._guard: asyncio.Task[None] | None = None
        ends = weakref.WeakMethod(self.kill_all)
        before_exit(lambda: (ends() or _nothing)())

    def facts(self) -> dict[str, Any]:
        """What there is to know of this machine."""
        return machine()

    def open(self, ticket: int, outline: ActorJob, payload: bytes) -> str | None:
        """Start an actor on a seat; it answers its first question when its process is there. Returns why, if it fails.

        Args:
            outline: the job without what only the actor needs.
            payload: the whole job.
        """
        worker = outline.worker
        if (before := self._berths.pop(worker, None)) is not None:
            before.handle.close()
        self._numbers(worker)[:] = 0
        tickets = (
            self._board.memory.ticket(),
            self._life.ticket(),
            self._slots.ticket(outline),
            None,
            [board.memory.ticket() for board in self._pool],
        )
        try:
            self._berths[worker] = HostedActor(ticket, ProcessHandle(worker, BuildFrom(payload), *tickets))
        except ActorLost as lost:
            return lost.detail
        return None

    async def ask(self, worker: int, ticket: int, number: int, needs: int, method: str, args: Any) -> tuple[Any, ...]:
        """Question `number` to an actor. Returns ("ok", answer, seconds it took) or ("lost", why).

        Args:
            needs: which publication of weights must have come before it is asked.
        """
        while self._sequence < needs and not self._over:
            self._newer.clear()
            await self._newer.wait()
        berth = self._berths.get(worker)
        if berth is None or berth.ticket != ticket:
            return "lost", "it was replaced"
        await berth.asking.wait(number)
        began = time.perf_counter()
        berth.handle.call(method, *args)
        berth.asking.passed()
        await berth.answering.wait(number)
        try:
            await _readable(berth.handle.waitable)
            answer = await asyncio.to_thread(berth.handle.result)  # an actor may stop in the middle of an answer
            if method == "collect":
                answer = self._slots.whole(worker, answer)
                if self._stacks and isinstance(answer, Trajectory):
                    answer = compressed(answer, self._spec)
            return "ok", answer, time.perf_counter() - began
        except ActorLost as lost:
            return "lost", lost.detail
        except Exception:
            if self._berths.get(worker) is berth:
                raise
            return "lost", "it was replaced"  # who ends it reads from its pipe, too
        finally:
            berth.answering.passed()

    async def publish(self, sequence: int, weights: Weights | None, kept: dict[int, Weights]) -> None:
        """Let the unrolls that begin from now on use these weights, and meet these opponents, by their places."""
        for place, snapshot in kept.items():
            self._pool[place].publish(snapshot)
        if weights is not None:
            self._board.publish(weights)
        self._sequence = sequence
        self._newer.set()

    async def lives(self) -> dict[int, tuple[int, list[int]]]:
        """By worker: its ticket, and what it lets its supervisor see, as whole numbers of 8 bytes: see `Heartbeat`."""
        self._asked = time.monotonic()
        if self._guard is None:
            self._guard = asyncio.get_running_loop().create_task(_guard(weakref.ref(self)))
        return {
            worker: (berth.ticket, self._numbers(worker).tolist())
            for worker, berth in list(self._berths.items())
            if berth.handle.exit_reason is None
        }

    async def kill(self, worker: int, ticket: int, why: str) -> None:
        """End an actor without asking."""
        berth = self._berths.get(worker)
        if berth is not None and berth.ticket == ticket:
            berth.handle.kill(why)
            await self._closed(worker)

    async def close(self, worker: int, ticket: int) -> None:
        """End an actor in good order."""
        berth = self._berths.get(worker)
        if berth is not None and berth.ticket == ticket:
            Heartbeat(self._life, worker).end()
            await self._closed(worker)

    async def end(self) -> None:
        """End them all in good order, side by side."""
        self._over = True
        self._newer.set()
        for worker, berth in list(self._berths.items()):
            Heartbeat(self._life, worker).end()
            berth.handle.stop()
        await asyncio.gather(*(self._closed(worker) for worker in list(self._berths)))

    async def _closed(self, worker: int) -> None:
        berth = self._berths.pop(worker, None)
        if berth is not None:
            await asyncio.to_thread(berth.handle.close)

    def silent(self) -> bool:
        """Whether the learner has not been heard of for long."""
        return time.monotonic() - self._asked > GUARD_SECONDS

    def kill_all(self) -> None:
        """End everybody without asking: the run is over, or this process is."""
        self._over = True
        for berth in list(self._berths.values()):
            with contextlib.suppress(Exception):
                berth.handle.kill("the run is over")
        with contextlib.suppress(RuntimeError):  # the event loop has ended already
            self._newer.set()

    def __del__(self) -> None:
        """The run is gone, or has done with this node: nobody will ask its actors again."""
        for berth in getattr(self, "_berths", {}).values():
            with contextlib.suppress(Exception):
                berth.handle.kill("the run is over")
                berth.handle.close()

    def _numbers(self, worker: int) -> np.ndarray:
        return self._life.array(8 * HEARTBEAT * worker, (HEARTBEAT,), np.int64)


async def _guard(node: weakref.ref[Node]) -> None:
    """End everybody when the learner is silent: an actor that hangs would stay for ever, and keep its node."""
    while True:
        await asyncio.sleep(GUARD_SECONDS / 10)
        there = node()
        if there is None:
            return
        if there.silent():
            there.kill_all()
            return
        del there


async def _readable(pipe: Any) -> None:
    """Until there is something to read, or will never be."""
    try:
        if pipe.poll(0):
            return
        descriptor = os.dup(pipe.fileno())  # the loop must not watch one that another thread may close
    except OSError:
        return
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def outline_of(job: ActorJob) -> ActorJob:
    """The job without what only the actor needs, and only its machine may be able to unpickle."""
    nothing: Callable[..., Any] = _nothing
    return replace(job, make_env=nothing, make_policy=nothing, reduce=None if job.reduce is None else nothing)


def _nothing(*_: Any) -> None:
    """Stands where a node need not look."""


def machine() -> dict[str, Any]:
    """What the bits of a result hang on, and where it is: the kind of processor, what torch makes of it, the host."""
    return {"cpu": _cpu(), "kernels": torch.backends.cpu.get_cpu_capability(), "host": platform.node()}


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
