"""Trains in a process of multiprocessing.Pool, which is daemonic."""

import multiprocessing
import sys

from harmless import Harmless

import rltrain


def train(workers: int) -> str:
    return rltrain.train(env=Harmless, workers=workers, **eval(sys.argv[2])).fingerprint


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(train, [int(sys.argv[1])]))
