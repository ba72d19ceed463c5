"""Runs jobs on the nodes of a Dask cluster: who runs where, arrays that a node has, retries, lost nodes.

All this happens in the event loop of the Dask client. A job gets cores, GPUs and memory of one node that no other job
of this client has. The first job of the queue that does not fit lets all later ones wait, as on one machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.errors import ClusterGone, ConfigError, JobLost
from rltrain.jobs.arrays import Arrays, Pickled
from rltrain.jobs.job import Job
from rltrain.jobs.node import JobNode
from rltrain.jobs.resources import Machine, Request
from rltrain.reporting.console import say
from rltrain.rollout.cluster.nodes import CLOSE_SECONDS, OPEN_SECONDS, SILENT_SECONDS, Nodes, no_answer, one_line
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.workers.handle import ClusterLost
from rltrain.rollout.workers.process import before_exit
from rltrain.setup.cluster import connected, remarks_on_nodes
from rltrain.storage.files import digest_of, read_file
from rltrain.system.free_space import amount

MOST_LOSSES = 3  # nodes that may be lost while a job is sent to them; the job may be the reason
POLL_SECONDS = 1.0  # between two calls that say to a node that its client is there


class _CannotStore(Exception):
    """The node has no room for an array."""


class JobNodeProxy:
    """One node, and the jobs that it runs for this client.

    Args:
        address: of the Dask worker.
        node:    the Dask actor, a `rltrain.jobs.node.JobNode`.
        facts:   see `JobNode.facts`.
        loop:    of the Dask client.
        on_lost: called once, when the node is lost.
    """

    def __init__(
        self,
        address: str,
        node: Any,
        facts: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[JobNodeProxy], None],
    ) -> None:
        self.address, self.node, self.facts = address, node, facts
        self.resources: Machine = facts["resources"]
        self.slots = len(self.resources.cores)
        self.jobs: dict[Job, int] = {}  # that it runs, and their numbers
        self.lost: str | None = None  # the reason
        self._gone: asyncio.Future[None] = loop.create_future()
        self._loop, self._on_lost = loop, on_lost
        self._arrays: weakref.WeakKeyDictionary[SharedMemory, tuple[int, asyncio.Task[str | None]]]
        self._arrays = weakref.WeakKeyDictionary()  # that it has or is being sent, with their numbers
        self._numbers = itertools.count()
        self._polling = False
        self._polled = self._last_answer = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        return f"{self.address} on {self.facts['host']}"

    def room(self, request: Request) -> int:
        """How many more jobs with this request it can run now."""
        requests = [job.request for job in self.jobs]
        free = Machine(
            self.resources.cores[sum(one.cores for one in requests) :],
            self.resources.gpus[sum(one.gpus for one in requests) :],
            None if self.resources.memory is None else self.resources.memory - sum(one.memory or 0 for one in requests),
        )
        return free.room(request)

    def poll(self) -> None:
        """Say that the client is there; a node that has not answered for SILENT_SECONDS is lost."""
        now = time.monotonic()
        if not self._polling and now - self._polled >= POLL_SECONDS:
            self._polling, self._polled = True, now
            self._start(self._poll())
        elif self._polling and now - self._last_answer > SILENT_SECONDS:
            self.lose(f"its node has not answered for {SILENT_SECONDS:g} s")

    async def _poll(self) -> None:
        try:
            await self.node.poll()
            self._last_answer = time.monotonic()
        except Exception as error:
            self.lose(no_answer(error))
        finally:
            self._polling = False

    async def start(self, job: Job, payload: tuple[Pickled, Pickled], number: int) -> str | None:
        """Send a job, and before it the arrays that the node does not have. Returns the reason if the node refuses it.

        Raises:
            OSError: the node is lost.
        """
        try:
            parts = [(pickled.data, [await self._sent(one) for one in pickled.arrays]) for pickled in payload]
        except _CannotStore as refused:
            return str(refused)
        reason: str | None = await self.until_lost(self.node.start(number, *parts, job.request))
        return reason

    async def until_lost(self, call: Any) -> Any:
        """The answer to a call. Raises OSError when the node is lost meanwhile."""
        task = asyncio.ensure_future(call)
        await asyncio.wait({task, self._gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        raise OSError(self.lost)

    async def _sent(self, memory: SharedMemory) -> int:
        """The number by which the node has an array."""
        if memory not in self._arrays:
            number = next(self._numbers)
            task = self._loop.create_task(self._send(number, memory.array(0, (memory.size,), np.uint8)))
            self._arrays[memory] = number, task
            weakref.finalize(memory, self._free, number).atexit = False
        number, task = self._arrays[memory]
        if (reason := await asyncio.shield(task)) is not None:
            self._arrays.pop(memory, None)
            raise _CannotStore(reason)
        return number

    async def _send(self, number: int, data: np.ndarray) -> str | None:
        reason: str | None = await self.until_lost(self.node.keep(number, data))
        return reason

    def _free(self, number: int) -> None:
        """The copy of an array is not needed any more. Runs in any thread."""
        if self.lost is None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._start(self.request("drop", [number])))

    async def request(self, method: str, *args: Any) -> None:
        """Call a method of the node; errors are ignored, since a lost node is noticed elsewhere."""
        try:
            await getattr(self.node, method)(*args)
        except Exception:
            return

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def lose(self, reason: str) -> str:
        """Give up the node; the calls that wait for it end. Returns the reason of the first call."""
        if self.lost is None:
            self.lost = reason
            self._start(self.request("end"))  # the node may still exist; its jobs must not
            self._gone.set_result(None)
            self._on_lost(self)
        return self.lost


class ClusterJobs(Nodes[JobNodeProxy]):
    """Jobs on the nodes of a cluster. `begin` makes the nodes. Its methods can be called from any thread."""

    hosted, unit = "jobs", "cores"

    def __init__(self, client: Any, closing: Callable[[], None], limit: float) -> None:
        super().__init__(client, closing, limit)
        self.pid = os.getpid()
        self._shared: Path | None = None  # a file that nodes must see
        self._without_file: set[str] = set()  # addresses of workers that do not see it
        self._losses: dict[Job, int] = {}  # nodes that were lost while the job was sent to them
        self._hosts: dict[str, asyncio.Lock] = {}  # held while the resources of a new node are chosen
        self._arrays = Arrays()
        self._queue: deque[Job] = deque()
        self._running: dict[Job, JobNodeProxy] = {}
        self._numbers = itertools.count()
        self._too_small_since: float | None = None

    def begin(self) -> None:
        """Make nodes of all workers, and wait for the first ones.

        Raises:
            ConfigError: no worker can be used, or there is none; one line.
        """
        try:
            self._begin()
        except ClusterLost as lost:
            raise ConfigError(f"--cluster: {lost}") from None

    def check(self, waits: bool = True) -> None:
        if not self._begun and not self._joining and not self.nodes and self._unusable and self._notes:
            raise ClusterLost(self._notes[-1])
        super().check(waits)

    # --- the interface of `Jobs` ---

    def refuse(self, request: Request) -> None:
        """ConfigError in one line if no node can grant the request."""
        machines = [node.resources for node in list(self.nodes.values())]
        if not machines or any(one.room(request) for one in machines):
            return
        for name, most in (
            ("cores", max(len(one.cores) for one in machines)),
            ("gpus", max(len(one.gpus) for one in machines)),
        ):
            if getattr(request, name) > most:
                raise ConfigError(f"{name} {getattr(request, name)}: the largest node of the cluster has {most}")
        memory = max(one.memory or 0 for one in machines)
        if request.memory is not None and request.memory > memory:
            raise ConfigError(f"memory {amount(request.memory)}: the largest node of the cluster has {amount(memory)}")
        raise ConfigError("no node of the cluster has these cores, GPUs and memory together")

    def room(self, request: Request) -> int:
        """How many jobs with this request can run at a time."""
        return sum(node.resources.room(request) for node in list(self.nodes.values()))

    def dumps(self, value: Any) -> Pickled:
        """A function or arguments, as `submit` takes them. Code from files of the user is part of it."""
        return self._arrays.dumps(value, self_contained=True)

    def submit(self, function: Pickled, arguments: Any, request: Request, retries: int) -> Job:
        """Queue a job. `arguments` are (positional, keywords)."""
        self.refuse(request)
        job = Job(self, (function, self.dumps(arguments)), request, retries)
        self._soon(self._queued, job)
        return job

    def is_running(self, job: Job) -> bool:
        """True if a process works on the job."""
        return job in self._running

    def cancelled(self, job: Job) -> None:
        """The job was cancelled: end its process, if it has one."""
        self._soon(self._cancel, job)

    def _soon(self, call: Callable[[Job], None], job: Job) -> None:
        """Call a method in the event loop."""
        try:
            self._loop.call_soon_threadsafe(call, job)
        except RuntimeError:  # the user has closed the client
            job.fail(ClusterGone(f"the connection to the scheduler at {self.address} was closed"))

    @contextlib.contextmanager
    def requiring(self, file: Path) -> Iterator[None]:
        """In the block only nodes are used that see this file at the same path.

        Raises:
            ConfigError: no node does.
        """
        try:
            if (reason := self._call(self._require(file), OPEN_SECONDS)) is not None and not self.nodes:
                raise ConfigError(f"--cluster: {reason}")
            yield
        except ClusterLost as lost:
            raise ConfigError(f"--cluster: {lost}") from None
        finally:
            with contextlib.suppress(ClusterLost):
                self._call(self._require(None), OPEN_SECONDS)

    def close(self) -> None:
        """Cancel all jobs and end all their processes."""
        with contextlib.suppress(ClusterLost):
            for job in self._call(self._unfinished(), CLOSE_SECONDS):
                job.cancel()
        super().close()

    @property
    def is_usable(self) -> bool:
        """False if the cluster is lost, its client was closed, or this process was forked since."""
        return self.fault is None and self.pid == os.getpid() and self._client.status == "running"

    # --- in the event loop ---

    async def _unfinished(self) -> list[Job]:
        return [*self._queue, *self._running]

    async def _make_node(self, address: str, slots: int) -> JobNodeProxy:
        host = self._known[address].host
        async with self._hosts.setdefault(host, asyncio.Lock()):
            others = [node for node in self.nodes.values() if self._host_of(node) == host]
            cores = {core for node in others for core in node.resources.cores}
            gpus = {gpu for node in others for gpu in node.resources.gpus}
            share = slots / sum(worker.slots for worker in self._known.values() if worker.host == host)
            dask_actor, facts = await self._on_worker(address, JobNode, slots, (cores, gpus), share)
            node = JobNodeProxy(address, dask_actor, facts, self._loop, self._remove_node)
            if (reason := await self._missing_file(node)) is not None:
                raise OSError(reason)
            self.nodes[address] = node  # the next node of this machine takes other cores
        return node

    def _host_of(self, node: JobNodeProxy) -> str:
        return self._known[node.address].host if node.address in self._known else ""

    async def _require(self, file: Path | None) -> str | None:
        """Use only nodes that see a file; None: all. Returns why a node cannot be used."""
        self._shared, found = file, None
        for address in self._without_file:
            self._unusable.pop(address, None)
        self._without_file.clear()
        for node in list(self.nodes.values()):
            if (reason := await self._missing_file(node)) is not None:
                found = f"the node {node.address} cannot be used: {reason}"
                node.lose(reason)
        return found

    async def _missing_file(self, node: JobNodeProxy) -> str | None:
        """Why a node cannot be used that does not see the file; None: it does."""
        if self._shared is None:
            return None
        try:
            sees = await node.node.sees(str(self._shared), digest_of(read_file(self._shared)))
        except Exception as error:
            return one_line(error)
        if sees:
            return None
        self._without_file.add(node.address)
        self._unusable[node.address] = float("inf")
        return f"it does not see {self._shared.parent}, which must be in a file system that all nodes share"

    def _joined(self, node: JobNodeProxy) -> None:
        self._place()

    def _queued(self, job: Job) -> None:
        if self._over or self.fault is not None:
            job.fail(ClusterGone(self.fault or "the connection to the cluster was closed"))
            return
        self._queue.append(job)
        self._place()

    def _place(self) -> None:
        """Begin jobs of the queue in their order, each on the node with the most room.

        A job waits until the one before it has begun. Only those that no node could ever grant hold up nobody.
        """
        for job in list(self._queue):
            if not self.room(job.request):
                continue
            node = max(self.nodes.values(), key=lambda node: node.room(job.request))
            if not node.room(job.request):
                return
            self._queue.remove(job)
            payload = job.payload
            if payload is not None and not job.done():
                node.jobs[job] = next(self._numbers)
                self._running[job] = node
                self._start(self._follow(job, payload, node))

    async def _follow(self, job: Job, payload: tuple[Pickled, Pickled], node: JobNodeProxy) -> None:
        """Run a job on a node, to its end."""
        number, began = node.jobs[job], False
        try:
            refused = await node.start(job, payload, number)
            if refused is None:
                job.attempts, began = job.attempts + 1, True
                if job.cancelled():  # before the node had it
                    self._start(node.request("cancel", number))
                kind, value = await node.until_lost(node.node.result(number))
            else:
                kind, value = "refused", refused
        except Exception as error:
            kind, value = "lost", node.lose(no_answer(error))
        finally:
            node.jobs.pop(job, None)
            self._running.pop(job, None)
        if kind in ("result", "error"):
            await asyncio.to_thread(job.finish, kind, value)  # unpickling may take long
        elif not job.cancelled():
            self._repeat(job, began, kind, value)
        if began or job.done():
            self._losses.pop(job, None)
        self._place()

    def _repeat(self, job: Job, began: bool, kind: str, reason: str) -> None:
        """Start a job again that has no result, or end it."""
        if not began:
            self._losses[job] = self._losses.get(job, 0) + 1
        if self.fault is not None:
            job.fail(ClusterGone(self.fault))
        elif kind == "refused":
            job.fail(JobLost(f"the job cannot be started: {reason}"))
        elif job.can_start_again(reason) and self._losses.get(job, 0) < MOST_LOSSES:
            self._queue.appendleft(job)
        else:
            job.lose(reason)

    def _cancel(self, job: Job) -> None:
        if job in self._queue:
            self._queue.remove(job)
        node = self._running.get(job)
        if node is not None:
            self._start(node.request("cancel", node.jobs[job]))
        self._place()

    def _remove_node(self, node: JobNodeProxy) -> None:
        if self.nodes.get(node.address) is node:  # a new node may have the same address
            del self.nodes[node.address]
            if not self._over:
                reason = "" if node.lost in (None, "its node was lost") else f": {node.lost}"
                self._notes.append(f"the node {node.name} is lost{reason}")

    def _watched(self) -> None:
        if not self._begun or self._over:
            return
        try:
            self.check()
        except ClusterLost as lost:
            self._lost(str(lost))
        self._watch_for_room()

    def _watch_for_room(self) -> None:
        """Jobs wait for a node that could grant their requests, if the one that could is lost; but not for ever."""
        waiting = [job for job in self._queue if not self.room(job.request)] if self.nodes else []
        if not waiting:
            self._too_small_since = None
            return
        request = waiting[0].request
        what = f"the nodes that are left cannot run a job with cores {request.cores}, gpus {request.gpus}"
        what += "" if request.memory is None else f", memory {amount(request.memory)}"
        if self._too_small_since is None:
            self._too_small_since = time.monotonic()
            self.note(f"{what}: waiting for another node, {self.limit:g} s at most")
        elif time.monotonic() - self._too_small_since > self.limit:
            self._too_small_since = None
            for job in waiting:
                self._queue.remove(job)
                job.fail(JobLost(f"{what}, and none has come for {self.limit:g} s (--cluster-timeout)"))

    def _lost(self, reason: str) -> None:
        waiting = list(self._queue)
        self._queue.clear()
        for job in waiting:
            job.fail(ClusterGone(reason))


_open: dict[Any, ClusterJobs] = {}  # by address, or client
_opening = threading.Lock()


def cluster_jobs(
    where: Any, timeout: float = 300.0, tls: Mapping[str, str | None] | None = None,
    note: Callable[[str], None] = lambda text: say(f"rltrain: {text}", sys.stderr),
) -> ClusterJobs:  # fmt: skip
    """The jobs of this process on a cluster, which is connected if it is not.

    Args:
        where:   an address, a scheduler file or a `distributed.Client`.
        timeout: seconds to wait for a node when there is none.
        tls:     files, as `rltrain.setup.cluster.connected` takes them.
        note:    prints a message for the user; called in any thread.

    Raises:
        ConfigError: the cluster cannot be used; one line.
    """
    if not (isinstance(where, str) or hasattr(where, "scheduler_info")):
        raise ConfigError(
            f"cluster must be an address, a scheduler file or a distributed.Client, got {type(where).__name__}"
        )
    if getattr(where, "asynchronous", False):
        raise ConfigError("cluster: an asynchronous distributed.Client cannot be used; give its address")
    with _opening:
        jobs = _open.get(where)
        if jobs is not None and not jobs.is_usable:
            del _open[where]
            _close(jobs)
            jobs = None
        if jobs is None:
            jobs = connected(ClusterJobs, where, 0, timeout, tls or {})
            try:
                jobs.begin()
            except BaseException:
                jobs.close()
                raise
            jobs.note = note
            _open[where] = jobs
            before_exit(close)
            for text in remarks_on_nodes(jobs):
                note(text)
        return jobs


def close() -> None:
    """End the jobs of this process on all clusters."""
    with _opening:
        while _open:
            _close(_open.popitem()[1])


def _close(jobs: ClusterJobs) -> None:
    if jobs.pid == os.getpid():  # not of the process that forked this one
        with contextlib.suppress(ClusterLost, RuntimeError):
            jobs.close()
