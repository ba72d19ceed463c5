"""`rltrain.map` and `rltrain.submit`: functions on many cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import Any, TypeVar

from rltrain.errors import ConfigError
from rltrain.jobs.job import Job, Jobs
from rltrain.jobs.pool import close as close_pool
from rltrain.jobs.pool import pool
from rltrain.jobs.resources import Request
from rltrain.jobs.worker import IN_JOB

Item = TypeVar("Item")
Value = TypeVar("Value")


def submit(
    function: Callable[..., Any],
    *args: Any,
    cores: int = 1,
    gpus: int = 0,
    memory: int | str | None = None,
    retries: int = 1,
    cluster: Any = None,
    **keywords: Any,
) -> Job:
    """Start `function(*args, **keywords)` in a process of this machine, or of a cluster. Returns its future at once.

    The function and its arguments are pickled. NumPy arrays of more than 1 MiB are copied once into shared memory; the
    function gets them read-only. Its process is used for later jobs, and looks like a new one to each of them: settings
    of Python, NumPy and torch, environment variables and the working folder are set back. Modules stay imported.

    Args:
        cores:   on which the job runs: affinity, and threads of torch and of BLAS libraries.
        gpus:    that it sees, by CUDA_VISIBLE_DEVICES.
        memory:  bytes, or text as "2G", that the job and its children may use in addition to shared memory, the
                 interpreter and torch included. A job that uses more is ended.
        retries: how often a job is started again whose process was lost, for example because memory ran out. So a job
                 runs at least once, and may do its work more than once. A job that raises is not started again.
        cluster: address (tcp://HOST:PORT) or scheduler file of a Dask cluster, or a `distributed.Client`. Jobs run on
                 its nodes, each on one of them; code from files of the user is sent with them.

    Returns:
        A `concurrent.futures.Future`: `result()` raises the job's own exception, with its traceback, or `JobLost`.
        `cancel()` ends the process of a job that runs.

    Raises:
        ConfigError: the request is wrong, or exceeds this machine or the largest node; the cluster cannot be used.
    """
    request, jobs = _request(function, cores, gpus, memory, retries), jobs_of(cluster)
    return jobs.submit(jobs.dumps(function), (args, keywords), request, retries)


def map(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    cores: int = 1,
    gpus: int = 0,
    memory: int | str | None = None,
    retries: int = 1,
    cluster: Any = None,
) -> list[Value]:
    """`[function(item) for item in items]`, with as many jobs at a time as the machine, or the cluster, has room for.

    Arguments and errors are those of `submit`. The first exception of a job cancels all others and is raised, and so
    does Ctrl-C.
    """
    request, all_jobs = _request(function, cores, gpus, memory, retries), jobs_of(cluster)
    all_jobs.refuse(request)
    payload = all_jobs.dumps(function)
    jobs: list[Job] = []
    try:
        for item in items:
            jobs.append(all_jobs.submit(payload, ((item,), {}), request, retries))
        wait(jobs, return_when=FIRST_EXCEPTION)
        for job in jobs:
            if job.done() and job.exception() is not None:
                job.result()
        return [job.result() for job in jobs]
    finally:
        for job in jobs:
            job.cancel()


def _request(function: Any, cores: Any, gpus: Any, memory: Any, retries: Any) -> Request:
    if not callable(function):
        raise ConfigError(f"the first argument must be a function, got {function!r}")
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise ConfigError(f"retries must be a whole number of at least 0, got {retries!r}")
    return Request.of(cores, gpus, memory)


def jobs_of(cluster: Any) -> Jobs:
    """Where the jobs of this process run: on this machine if `cluster` is None."""
    if cluster is None:
        return pool()
    if os.environ.get(IN_JOB):
        raise ConfigError(
            "cluster: a job cannot wait for jobs of a cluster, whose place it takes; leave cluster out here"
        )
    from rltrain.jobs.cluster import ClusterJobs, cluster_jobs

    return cluster if isinstance(cluster, ClusterJobs) else cluster_jobs(cluster)


def close() -> None:
    """End all jobs of this process, and their processes."""
    close_pool()
    if (cluster := sys.modules.get("rltrain.jobs.cluster")) is not None:
        cluster.close()
