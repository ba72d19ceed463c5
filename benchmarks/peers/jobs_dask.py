"""Dask with two worker processes: 1,000 jobs that do nothing, and 20 jobs on one array of 16 MB. jobs_dask.py"""

from __future__ import annotations

import json
import time

import distributed
import numpy as np
import psutil


def nothing(item: int) -> int:
    return item


def first(array: np.ndarray) -> float:
    return float(array[0])


def used() -> float:
    """Processor seconds of Dask's processes and of this one."""
    this = psutil.Process()
    times = [process.cpu_times() for process in [this, *this.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


def main() -> None:
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True)
    with cluster, distributed.Client(cluster) as client:
        client.gather(client.map(nothing, range(4)))
        before, began = used(), time.perf_counter()
        client.gather(client.map(nothing, range(1000), pure=False))
        jobs, processor = time.perf_counter() - began, used() - before
        array = np.zeros(2_000_000)
        began = time.perf_counter()
        stored = client.scatter(array, broadcast=True)
        client.gather([client.submit(first, stored, pure=False) for _ in range(20)])
        arrays = time.perf_counter() - began
    print(json.dumps({"jobs": jobs, "processor": processor, "arrays": arrays, "version": distributed.__version__}))


if __name__ == "__main__":
    main()
