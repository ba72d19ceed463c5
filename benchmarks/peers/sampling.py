"""What all sides of benchmarks/replay.py share: the rows, and how a batch's time is taken."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np

BATCH, GAMMA = 256, 0.99
OBS, ACTION = 17, 6  # of the vectors
STACK, PIXELS = 4, 84  # of the images
EPISODE = 500  # steps; every one ends by termination
ALPHA, BETA = 0.6, 0.4


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("obs", choices=["vector", "images"])
    parser.add_argument("rows", type=int)
    parser.add_argument("--priorities", action="store_true")
    parser.add_argument("--lean", action="store_true", help="the peer's own way to keep an observation once")
    parser.add_argument("--seconds", type=float, default=4.0)
    return parser.parse_args()


def chunks(obs: str, rows: int, size: int = 1000) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(row, arrays) of rows that follow each other; `frame` [n, 84, 84] of images, `obs` [n, 17] of vectors."""
    rng = np.random.default_rng(0)
    for begin in range(0, rows, size):
        count = min(size, rows - begin)
        done = (np.arange(begin, begin + count) + 1) % EPISODE == 0
        found: dict[str, np.ndarray] = {"done": done, "reward": rng.random(count, dtype=np.float32)}
        if obs == "vector":
            found["obs"] = rng.standard_normal((count, OBS), dtype=np.float32)
            found["action"] = rng.uniform(-1, 1, (count, ACTION)).astype(np.float32)
        else:
            found["frame"] = rng.integers(0, 256, (count, 1, PIXELS), np.uint8) + np.zeros((1, PIXELS, 1), np.uint8)
            found["action"] = rng.integers(0, 6, count)
        yield begin, found


def errors() -> np.ndarray:
    """Of a batch, to make new priorities of."""
    return np.random.default_rng(1).random(BATCH).astype(np.float32)


def timed(call: Callable[[], Any], seconds: float) -> float:
    """Microseconds of one call: the median over 20 spells, of which the first is left out."""
    call()
    began = time.perf_counter()
    for _ in range(10):
        call()
    each = (time.perf_counter() - began) / 10
    count = max(1, int(seconds / 21 / each))
    spells = []
    for _ in range(21):
        began = time.perf_counter()
        for _ in range(count):
            call()
        spells.append((time.perf_counter() - began) / count)
    return 1e6 * sorted(spells[1:])[10]


def memory_gib() -> float:
    """What this process holds now, its share of memory-mapped files included (PSS)."""
    with open("/proc/self/smaps_rollup") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return kib / 2**20


def tell(peer: str, package: str, **numbers: float) -> None:
    """The last line."""
    names = {package: peer, "torch": f"{peer} torch", "numpy": f"{peer} numpy"}
    versions = {shown: metadata.version(name) for name, shown in names.items()}
    print(json.dumps({**numbers, "memory_gib": memory_gib(), "versions": versions}))
