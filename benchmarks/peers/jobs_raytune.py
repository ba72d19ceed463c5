"""Ray Core with two workers: 1,000 jobs that do nothing, and 20 jobs on one array of 16 MB. jobs_raytune.py"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import numpy as np
import psutil
import ray


@ray.remote
def nothing(item: int) -> int:
    return item


@ray.remote
def first(array: np.ndarray) -> float:
    return float(array[0])


def used() -> float:
    """Processor seconds of Ray's processes and of this one."""
    this = psutil.Process()
    times = [process.cpu_times() for process in [this, *this.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    task: Any = nothing
    ray.get([task.remote(i) for i in range(4)])
    before, began = used(), time.perf_counter()
    ray.get([task.remote(i) for i in range(1000)])
    jobs, processor = time.perf_counter() - began, used() - before
    array, task = np.zeros(2_000_000), first
    began = time.perf_counter()
    stored = ray.put(array)
    ray.get([task.remote(stored) for _ in range(20)])
    arrays = time.perf_counter() - began
    print(json.dumps({"jobs": jobs, "processor": processor, "arrays": arrays, "version": ray.__version__}))


if __name__ == "__main__":
    main()
