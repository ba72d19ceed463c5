"""Weights are read whole or not at all; memory is the same memory in another process."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from oracles.faulty import open_rollout, weights_of

from rltrain.rollout.shared_memory.memory import SharedMemory, tree_at, tree_bytes
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.types import Weights
from rltrain.rollout.workers.process import ProcessHandle

SHAPES = {"a": (700, 100), "b": (3,), "c": (200, 333)}


class Adder:
    """Lives in another process; writes into shared memory."""

    def __init__(self, ticket: Any) -> None:
        self.memory = SharedMemory.attach(ticket)

    def add(self, value: int) -> list[int]:
        array = self.memory.array(64, (3,), np.int64)
        array += value
        return [int(number) for number in array]


class Reader:
    """Reads weights for a while as fast as it can, in another process."""

    def __init__(self, ticket: Any) -> None:
        self.into = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.board = WeightsBoard(self.into, SharedMemory.attach(ticket))

    def read(self, seconds: float) -> tuple[int, int, list[str]]:
        """How often; of how many versions; what was torn."""
        torn, seen, reads, last = [], set(), 0, -1
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            version, step = self.board.read(self.into)
            values = {float(v) for array in self.into.values() for v in (array.min(), array.max())}
            if values != {float(version)} or step != 7 * version:
                torn.append(f"version {version} step {step} holds {sorted(values)}")
            if version < last:
                torn.append(f"version {version} after {last}")
            reads, last = reads + 1, version
            seen.add(version)
        return reads, len(seen), torn[:3]


def whole(version: int) -> Weights:
    return Weights(version, 7 * version, {name: np.full(shape, version, np.float32) for name, shape in SHAPES.items()})


@pytest.mark.usefixtures("fork_server")
def test_memory_is_attached_in_another_process() -> None:
    memory = SharedMemory(128)
    handle = ProcessHandle(0, Adder, memory.ticket())
    here = memory.array(64, (3,), np.int64)
    here[:] = 1, 2, 3
    handle.call("add", 10)
    assert handle.result() == [11, 12, 13]
    assert here.tolist() == [11, 12, 13]
    assert memory.array(0, (8,), np.int64).tolist() == [0] * 8
    handle.close()
    memory.close()
    assert here.tolist() == [11, 12, 13], "views stay valid"


@pytest.mark.usefixtures("fork_server")
def test_weights_are_never_torn() -> None:
    board = WeightsBoard(whole(0).arrays)
    board.publish(whole(1))
    handle = ProcessHandle(0, Reader, board.memory.ticket())
    handle.call("read", 2.0)
    version = 1
    while not handle.waitable.poll():
        version += 1
        board.publish(whole(version))
    reads, versions, torn = handle.result()
    handle.close()
    assert not torn
    assert version > 50
    assert reads >= 5
    assert versions >= 3


def test_the_newest_version_is_read() -> None:
    board = WeightsBoard(whole(0).arrays)
    with pytest.raises(RuntimeError, match="no weights"):
        board.read({})
    into = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for version in (1, 2, 3):
        board.publish(whole(version))
        assert board.sequence == version
        assert board.read(into) == (version, 7 * version)
        assert all((array == version).all() for array in into.values())


def test_an_unroll_is_of_one_version_and_says_which() -> None:
    rollout, policy = open_rollout("CartPole-v1", workers=2, backend="local")
    versions = []
    for version in (5, 5, 9):
        rollout.publish(weights_of(policy, version))
        rollout.start()
        versions.append([unroll.version.tolist() for unroll in rollout.gather()])
    rollout.close()
    assert versions == [[[5] * 3, [5] * 2], [[5] * 3, [5] * 2], [[9] * 3, [9] * 2]]


def test_a_tree_in_a_slot() -> None:
    like = {"b": (np.zeros((3, 5), np.uint8), np.zeros(7)), "a": np.zeros((2, 2), np.int64)}
    size = tree_bytes(like)
    assert size == 3 * 64, "each array begins at a cache line"
    memory = SharedMemory(2 * size)
    slots = [tree_at(memory, slot, like) for slot in range(2)]
    for number, slot in enumerate(slots):
        slot["a"][:], slot["b"][0][:], slot["b"][1][:] = number + 1, number + 3, number + 5
    assert [slot["a"].min() for slot in slots] == [slot["a"].max() for slot in slots] == [1, 2]
    assert [slot["b"][0].max() for slot in slots] == [3, 4]
    assert [slot["b"][1].min() for slot in slots] == [5, 6]
