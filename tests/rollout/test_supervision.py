"""A supervised worker against a clock that the test moves: timeouts, pauses between restarts, failures in a row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rltrain.rollout import supervision
from rltrain.rollout.supervision import BACKOFF, NO_NODE_SECONDS, START_SECONDS, SupervisedWorker, WorkerFailed
from rltrain.rollout.workers.handle import ActorLost, NoNode


class Worker:
    """The handle of a worker that never answers."""

    exit_reason: str | None = None

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.closed = False

    def kill(self, reason: str) -> None:
        self.killed.append(reason)

    def close(self) -> None:
        self.closed = True


class World:
    """The clock, the steps of the worker, and what the next start of one gives."""

    def __init__(self) -> None:
        self.now, self.steps = 1000.0, 7
        self.next: Any = None

    def open(self) -> Any:
        if isinstance(self.next, Exception):
            raise self.next
        return Worker()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: world.now))
    return world


def supervised(world: World, timeout: float = 5.0, max_restarts: int = 9) -> SupervisedWorker:
    return SupervisedWorker(world.open, lambda: world.steps, timeout, max_restarts)  # type: ignore[arg-type]


def watched_after(world: World, worker: SupervisedWorker, seconds: float) -> list[str]:
    """What the worker was killed for, if anything."""
    world.now += seconds
    worker.watch()
    killed: list[str] = worker.handle.killed  # type: ignore[union-attr]
    return killed


def test_a_worker_without_progress_is_killed_later_before_its_first_step(world: World) -> None:
    worker = supervised(world)
    worker.open()
    worker.watch()
    assert watched_after(world, worker, START_SECONDS - 1) == []
    world.steps += 1
    assert watched_after(world, worker, 5.0) == []
    assert watched_after(world, worker, 4.9) == []
    worker.reset_timer()
    assert watched_after(world, worker, 4.9) == []
    assert watched_after(world, worker, 0.2) == ["it made no step for 5 s, so it was ended"]

    worker.open()  # its count goes on, and it has made no step of its own
    worker.watch()
    assert watched_after(world, worker, START_SECONDS - 1) == []
    assert watched_after(world, worker, 1.1) == [f"it made no step for {START_SECONDS:g} s, so it was ended"]
    assert supervised(world, 50.0).timeout == 50.0


def test_pauses_grow_with_failures_in_a_row_and_a_success_ends_the_row(world: World) -> None:
    worker = supervised(world)
    pauses = []
    for failure in range(8):
        worker.open()
        old: Any = worker.handle
        worker.lost(ActorLost(3, "gone"))
        assert old.closed
        assert worker.handle is None
        pauses.append(worker.restart_at - world.now)
        assert worker.restart_due == (failure == 0)
        world.now = worker.restart_at
        assert worker.restart_due
    assert pauses == pytest.approx([*BACKOFF, BACKOFF[-1], BACKOFF[-1]])
    worker.open()
    assert not worker.restart_due
    worker.succeeded()
    worker.lost(ActorLost(3, "gone"))
    assert worker.restart_at == world.now + BACKOFF[0]


def test_one_failure_more_than_allowed_ends_the_run(world: World) -> None:
    worker = supervised(world, max_restarts=2)
    for _ in range(2):
        worker.lost(ActorLost(3, "gone"))
    with pytest.raises(WorkerFailed, match=r"failed 3 times in a row \(--max-restarts 2\); the last time: gone"):
        worker.lost(ActorLost(3, "gone"))
    with pytest.raises(WorkerFailed, match="failed 1 times in a row"):
        supervised(world, max_restarts=0).lost(ActorLost(3, "gone"))


FAULT = (
    "the environment of stream 3 (seed {}) failed at step {}:\nTraceback (most recent call last):\n"
    '  File "/home/me/mine.py", line 3, in step\nValueError: {}\n'
)


def test_the_same_fault_at_the_same_step_ends_the_run_at_the_second_time(world: World) -> None:
    def lose(worker: SupervisedWorker, seed: int, step: int, steps: int = 1) -> None:
        worker.open()
        world.steps += steps
        worker.lost(ActorLost(3, FAULT.format(seed, step, seed)))

    worker = supervised(world)
    lose(worker, seed=1, step=40)
    lose(worker, seed=2, step=41)
    worker.succeeded()  # a delivery between the two makes no difference
    with pytest.raises(WorkerFailed, match=r"worker 3 failed twice at the same step, so it would fail again: the env"):
        lose(worker, seed=3, step=41)

    before_its_first_step = supervised(world, max_restarts=2)
    for seed in (1, 2):
        lose(before_its_first_step, seed, step=40, steps=0)
    with pytest.raises(WorkerFailed, match="failed 3 times in a row"):
        lose(before_its_first_step, 3, step=40, steps=0)


def test_without_a_machine_it_is_tried_again_soon_and_that_is_no_failure(world: World) -> None:
    worker = supervised(world)
    world.next = NoNode()
    assert not worker.open()
    assert not worker.restart_due
    world.now += NO_NODE_SECONDS
    assert worker.restart_due
    assert worker.failures == 0
    world.next = None
    assert worker.open()
