"""A node of a cluster: runs the jobs of one client on another machine, in its pool of processes.

A node is a Dask actor, so it lives in a Dask worker; it computes nothing, and unpickles no job. The nodes of several
clients in one Dask worker share its pool, so that no core and no GPU is given to two jobs. This module imports no dask.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from rltrain.errors import CheckpointError
from rltrain.jobs.arrays import Pickled
from rltrain.jobs.job import Job
from rltrain.jobs.pool import Pool
from rltrain.jobs.resources import Machine, Request
from rltrain.rollout.cluster.node import ClientWatch, machine
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.workers.process import before_exit, let_have_children
from rltrain.storage.files import digest_of, one_line, read_file
from rltrain.system.free_space import amount

Answer = tuple[str, Any]


class ForwardedJob(Job):
    """A job of a client: its result is the answer, which only the client unpickles."""

    def finish(self, kind: str, value: Any) -> None:
        self.succeed((kind, value))

    def lose(self, reason: str) -> None:
        self.succeed(("lost", reason))

    def fail(self, error: BaseException) -> None:
        self.succeed(("lost", str(error)))


class SharedPool:
    """The pool of this process, as long as there are nodes that use it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a node may be freed by a thread that holds it
        self._pool: Pool | None = None
        self._users: weakref.WeakSet[JobNode] = weakref.WeakSet()

    def join(self, node: JobNode, machine: Machine) -> Pool:
        """The pool, which is made with this machine if there is none."""
        with self._lock:
            if self._pool is None:
                self._pool = Pool(machine)
                before_exit(self.close)
            self._users.add(node)
            return self._pool

    def leave(self, node: JobNode) -> None:
        """The node is over. The last one to leave ends the processes, without waiting for them."""
        with self._lock:
            self._users.discard(node)
            if not self._users and self._pool is not None:
                threading.Thread(target=self._pool.close, daemon=True).start()
                self._pool = None

    def close(self) -> None:
        """End the processes: this process exits."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()
                self._pool = None


_shared = SharedPool()


class JobNode:
    """Runs jobs. Its methods that are coroutines run concurrently, in the Dask worker's event loop.

    Args:
        slots: cores that this node may use.
        taken: cores and GPUs of this machine that other nodes use.
        share: of the memory of this machine.
    """

    def __init__(self, slots: int, taken: tuple[set[int], set[str]], share: float) -> None:
        let_have_children()
        self._pool = _shared.join(self, part_of(Machine.here(), slots, taken, share))
        self._jobs: dict[int, ForwardedJob] = {}  # by the client's number
        self._arrays: dict[int, SharedMemory] = {}  # likewise
        self.client = ClientWatch()
        self._over = False

    def facts(self) -> dict[str, Any]:
        """See `machine`; and the resources of the node."""
        return {**machine(), "resources": self._pool.machine}

    async def sees(self, file: str, digest: dict[str, Any]) -> bool:
        """True if this machine has the client's file at the same path."""
        return await asyncio.to_thread(_has, Path(file), digest)

    async def keep(self, number: int, data: np.ndarray) -> str | None:
        """Copy an array into shared memory, for jobs that refer to it by its number. Returns the reason if it fails."""

        def copied() -> SharedMemory:
            memory = SharedMemory(data.nbytes)
            memory.array(0, data.shape, np.uint8)[...] = data
            return memory

        try:
            self._arrays[number] = await asyncio.to_thread(copied)
        except Exception as error:
            return f"an array of {amount(data.nbytes)} cannot be stored: {one_line(error)}"
        return None

    async def drop(self, numbers: list[int]) -> None:
        """Free arrays; jobs that run keep them."""
        for number in numbers:
            self._arrays.pop(number, None)

    async def start(
        self, number: int, function: tuple[bytes, list[int]], arguments: tuple[bytes, list[int]], request: Request
    ) -> str | None:
        """Begin a job. Returns the reason if that fails.

        Args:
            function, arguments: pickled, and the numbers of the arrays in them.
        """
        if self._over:
            return "its node has ended"
        try:
            payload = self._pickled(*function), self._pickled(*arguments)
            self._jobs[number] = ForwardedJob(self._pool, payload, request, retries=0)
            self._pool.add(self._jobs[number])
        except Exception as error:
            self._jobs.pop(number, None)
            return one_line(error)
        return None

    def _pickled(self, data: bytes, numbers: list[int]) -> Pickled:
        return Pickled(data, tuple(self._arrays[number] for number in numbers))

    async def result(self, number: int) -> Answer:
        """The answer of `JobRunner.run`; or ("lost", the reason why the job's process was lost)."""
        try:
            answer: Answer = await asyncio.wrap_future(self._jobs[number])
        except asyncio.CancelledError:
            return "lost", "it was cancelled"
        finally:
            self._jobs.pop(number, None)
        return answer

    async def cancel(self, number: int) -> None:
        """End a job's process."""
        job = self._jobs.get(number)
        if job is not None:
            job.cancel()

    async def poll(self) -> None:
        """The client is there. Once it is silent, its jobs end."""
        self.client.heard(self)

    async def end(self) -> None:
        """The client is over: end its jobs."""
        self.kill_all()

    def kill_all(self) -> None:
        """End all jobs of the client."""
        if self._over:
            return
        self._over = True
        for job in list(self._jobs.values()):
            with contextlib.suppress(Exception):
                job.cancel()
        self._arrays.clear()
        _shared.leave(self)

    def __del__(self) -> None:
        """The scheduler dropped this node: its client is gone."""
        if hasattr(self, "_over"):
            self.kill_all()


def part_of(whole: Machine, slots: int, taken: tuple[set[int], set[str]], share: float) -> Machine:
    """The resources of one of several nodes on a machine. Cores are shared only where there are not enough of them."""
    free = [core for core in whole.cores if core not in taken[0]]
    cores = (free + [core for core in whole.cores if core in taken[0]])[:slots]
    gpus = tuple(gpu for gpu in whole.gpus if gpu not in taken[1])
    return Machine(tuple(sorted(cores)), gpus, None if whole.memory is None else int(whole.memory * share))


def _has(file: Path, digest: dict[str, Any]) -> bool:
    try:
        return digest_of(read_file(file)) == digest
    except CheckpointError:
        return False
