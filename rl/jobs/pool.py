"""Runs jobs on worker processes of this machine: who runs where, retries, limits of memory, cancelled jobs.

One thread of this process gives jobs to workers. A job gets cores and GPUs that no other job has, and the first job of
the queue that does not fit lets all later ones wait, so that each job gets its turn. Workers are kept for the next job
that requests the same resources.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections import deque
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from rltrain.errors import JobLost
from rltrain.jobs.arrays import Arrays, Pickled
from rltrain.jobs.job import TOO_MUCH_MEMORY, Job
from rltrain.jobs.resources import Machine, Request, own_memory
from rltrain.jobs.worker import JobRunner, environment_of
from rltrain.rollout.workers.forks import one_thread
from rltrain.rollout.workers.handle import ActorLost
from rltrain.rollout.workers.process import ProcessHandle, before_exit
from rltrain.rollout.workers.process_tree import descendants
from rltrain.system.free_space import amount

WATCH_SECONDS = 0.2  # between two looks at the memory of jobs
GROWTH = 2**30  # bytes that a worker may keep after a job; one that keeps more is replaced
SHORT_SECONDS = 0.5  # a job that was shorter is not examined for the memory that it kept
CANCELLED = "the job was cancelled"


class Worker:
    """A worker process, the cores and GPUs that it holds, and its job."""

    def __init__(self, number: int, cores: tuple[int, ...], gpus: tuple[str, ...]) -> None:
        self.cores, self.gpus = cores, gpus
        self.job: Job | None = None
        self.began = 0.0
        self.memory: int | None = None  # that it had after its first job
        with _environment(environment_of(len(cores), gpus)):
            self.handle = ProcessHandle(number, functools.partial(JobRunner, cores, gpus), torch="torch" in sys.modules)

    def fits(self, request: Request) -> bool:
        return len(self.cores) == request.cores and len(self.gpus) == request.gpus

    def start(self, job: Job) -> None:
        self.job, self.began = job, time.monotonic()
        assert job.payload is not None
        function, arguments = job.payload
        job.attempts += 1
        self.handle.call("run", function.sent(), arguments.sent())

    def own_memory(self) -> int:
        return own_memory([self.handle.pid, *descendants(self.handle.pid)])


class Pool:
    """The jobs and workers of a machine. Workers start when jobs need them, and end with `close`."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = Machine.here() if machine is None else machine
        self._arrays = Arrays()
        self._lock = threading.RLock()
        self._queue: deque[Job] = deque()
        self._workers: list[Worker] = []
        self._closing: list[threading.Thread] = []
        self._count = 0
        self._closed = False
        self._wakes, self._wake = Pipe(duplex=False)
        self._thread: threading.Thread | None = None

    def refuse(self, request: Request) -> None:
        """ConfigError in one line if this machine can never grant the request."""
        self.machine.refuse(request)

    def room(self, request: Request) -> int:
        """How many jobs with this request can run at a time."""
        return self.machine.room(request)

    def dumps(self, value: Any) -> Pickled:
        """A function or arguments, as `submit` takes them."""
        return self._arrays.dumps(value)

    def submit(self, function: Pickled, arguments: Any, request: Request, retries: int) -> Job:
        """Queue a job. `arguments` are (positional, keywords)."""
        self.machine.refuse(request)
        return self.add(Job(self, (function, self.dumps(arguments)), request, retries))

    def add(self, job: Job) -> Job:
        """Queue a job whose request this machine can grant."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool of jobs is closed")
            self._queue.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rltrain-jobs", daemon=True)
                self._thread.start()
        self._notify()
        return job

    def is_running(self, job: Job) -> bool:
        with self._lock:
            return any(worker.job is job for worker in self._workers)

    def cancelled(self, job: Job) -> None:
        with self._lock:
            with contextlib.suppress(ValueError):
                self._queue.remove(job)
            for worker in self._workers:
                if worker.job is job:
                    worker.handle.kill(CANCELLED)
        self._notify()

    def close(self) -> None:
        """Cancel all jobs and end all workers."""
        with self._lock:
            self._closed = True
            jobs = [*self._queue, *(worker.job for worker in self._workers if worker.job is not None)]
        for job in jobs:
            job.cancel()
        self._notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for thread in self._closing:
            thread.join()

    def _notify(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send_bytes(b"")

    def _run(self) -> None:
        """The thread: give jobs to workers, and take their results."""
        watched = 0.0
        while True:
            with self._lock:
                if self._closed and not any(worker.job is not None for worker in self._workers):
                    for worker in list(self._workers):
                        self._end(worker)
                    return
                self._start_jobs()
                busy = {worker.handle.waitable: worker for worker in self._workers if worker.job is not None}
                limited = any(worker.job and worker.job.request.memory for worker in busy.values())
            ready = wait([self._wakes, *busy], WATCH_SECONDS if limited else 1.0)
            if self._wakes in ready:
                while self._wakes.poll():
                    self._wakes.recv_bytes()
            for waitable, worker in busy.items():
                if waitable in ready or worker.handle.exit_reason is not None:
                    self._finish(worker)
            if limited and time.monotonic() - watched > WATCH_SECONDS:
                watched = time.monotonic()
                self._watch_memory()

    def _start_jobs(self) -> None:
        while self._queue and not self._closed:
            request = self._queue[0].request
            if not self._has_memory(request):
                return
            idle = [worker for worker in self._workers if worker.job is None]
            worker = next((worker for worker in idle if worker.fits(request)), None)
            if worker is None:
                worker = self._new_worker(request, idle)
            if worker is None:
                return
            worker.start(self._queue.popleft())

    def _has_memory(self, request: Request) -> bool:
        if request.memory is None or self.machine.memory is None:
            return True
        used = sum(worker.job.request.memory or 0 for worker in self._workers if worker.job is not None)
        return used + request.memory <= self.machine.memory

    def _new_worker(self, request: Request, idle: list[Worker]) -> Worker | None:
        """A worker with these resources, if they are free or idle workers hold them."""
        while True:
            held = {core for worker in self._workers for core in worker.cores}
            cores = [core for core in self.machine.cores if core not in held][: request.cores]
            taken = {gpu for worker in self._workers for gpu in worker.gpus}
            gpus = [gpu for gpu in self.machine.gpus if gpu not in taken][: request.gpus]
            if len(cores) == request.cores and len(gpus) == request.gpus:
                break
            if not idle:
                return None
            self._end(idle.pop())
        self._count += 1
        try:
            worker = Worker(self._count, tuple(cores), tuple(gpus))
        except ActorLost as lost:
            self._queue.popleft().fail(JobLost(lost.detail))
            return None
        self._workers.append(worker)
        return worker

    def _finish(self, worker: Worker) -> None:
        """Take the result of a worker, or of its loss."""
        job = worker.job
        assert job is not None
        try:
            kind, value = worker.handle.result()
        except ActorLost as lost:
            with self._lock:
                worker.job = None
                self._end(worker)
                if job.cancelled():
                    return
                if job.can_start_again(lost.detail):
                    self._queue.appendleft(job)
                    return
            job.lose(lost.detail)
            return
        with self._lock:
            worker.job = None
            if job.cancelled():  # its worker was killed although the result had arrived
                self._end(worker)
            elif time.monotonic() - worker.began > SHORT_SECONDS:
                memory = worker.own_memory()
                worker.memory = memory if worker.memory is None else worker.memory
                if memory > worker.memory + GROWTH:
                    self._end(worker)
        job.finish(kind, value)

    def _watch_memory(self) -> None:
        with self._lock:
            limited = [worker for worker in self._workers if worker.job is not None and worker.job.request.memory]
        for worker in limited:
            used, job = worker.own_memory(), worker.job
            if job is not None and job.request.memory is not None and used > job.request.memory:
                limit = amount(job.request.memory)
                worker.handle.kill(f"{TOO_MUCH_MEMORY} {amount(used)} of memory, and was to use at most {limit}")

    def _end(self, worker: Worker) -> None:
        """End a worker without waiting; its cores are free at once."""
        self._workers.remove(worker)
        worker.handle.stop()
        thread = threading.Thread(target=worker.handle.close, daemon=True)
        thread.start()
        self._closing = [other for other in self._closing if other.is_alive()] + [thread]


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Any:
    """These environment variables in the block, for a process that is started there."""
    with one_thread():
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


_pool: Pool | None = None
_pool_lock = threading.Lock()


def pool() -> Pool:
    """The pool of this process. Its workers end with the process."""
    global _pool
    with _pool_lock:
        if _pool is None or _pool._closed or _pool_pid != os.getpid():
            _open()
        assert _pool is not None
        return _pool


_pool_pid = 0


def _open() -> None:
    global _pool, _pool_pid
    _pool, _pool_pid = Pool(), os.getpid()
    before_exit(close)


def close() -> None:
    """End the workers of this process's pool; the next job starts new ones."""
    with _pool_lock:
        if _pool is not None and _pool_pid == os.getpid():
            _pool.close()
