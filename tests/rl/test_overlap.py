"""Actors that go on while the learner learns: they really do, and nothing is lost or counted twice when they rest."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles.faulty import HangsInReset, killed, open_rollout, pids, raises
from oracles.replaying import Tiny

import rltrain
from rltrain.errors import Interrupted
from rltrain.learner.learner import Learner
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.types import Trajectory
from rltrain.run import Run
from rltrain.storage import checkpoint
from rltrain.storage import retention as checkpoints

pytestmark = pytest.mark.usefixtures("fork_server")

TINY: dict[str, Any] = {
    "algo": "tiny", "env": "CartPole-v1", "workers": 2, "streams": 5, "unroll": 8, "steps": 600, "overlap": True,
    "eval_every": 0, "checkpoint_every": 0, "quiet": True,
}  # fmt: skip


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[tuple[int, int]]]:
    """Of every stream, (row, rows) of each unroll that the learner got."""
    real, kept = Learner.step, dict[int, list[tuple[int, int]]]()

    def step(self: Learner, unrolls: list[Trajectory], progress: float) -> None:
        for unroll in unrolls:
            for stream, row in zip(unroll.stream.tolist(), unroll.row.tolist(), strict=True):
                kept.setdefault(stream, []).append((row, len(unroll.reward)))
        real(self, unrolls, progress)

    monkeypatch.setattr(Learner, "step", step)
    return kept


def add_up(books: dict[int, list[tuple[int, int]]], begin: int = 0) -> None:
    """Each stream's rows follow each other, without a gap and without one twice."""
    for stream, entries in books.items():
        expected = begin
        for row, rows in entries:
            assert row == expected, f"stream {stream}"
            expected += rows


def test_actors_act_while_the_learner_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside an update every actor is busy, and one that is waited for there delivers."""
    from multiprocessing.connection import wait

    found: dict[str, Any] = {}
    real_open, real_update = Run.__init__, Tiny.update

    def opened(self: Run, *args: Any) -> None:
        real_open(self, *args)
        found["rollout"] = self.rollout

    def update(self: Tiny, batch: Any, progress: float) -> Any:
        seats = found["rollout"]._actors
        found.setdefault("busy", []).append([actor.busy for actor in seats])
        if len(found["busy"]) == 5:  # they come to the end of their unrolls with nobody but this update going on
            found["ready"] = [bool(wait([actor.handle.waitable], 60)) for actor in seats]
        return real_update(self, batch, progress)

    monkeypatch.setattr(Run, "__init__", opened)
    monkeypatch.setattr(Tiny, "update", update)
    rltrain.train(**TINY, out=str(tmp_path))

    assert found["ready"] == [True, True]
    assert all(all(busy) for busy in found["busy"][:20])


def test_without_overlap_nobody_acts_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, busy = Learner.step, []
    rollouts: list[Rollout] = []
    real_start = Rollout.start
    monkeypatch.setattr(Rollout, "start", lambda self: (rollouts.append(self), real_start(self))[1])
    monkeypatch.setattr(
        Learner, "step", lambda *args: (busy.append([s.busy for s in rollouts[-1]._actors]), real(*args))[1]
    )
    rltrain.train(**TINY | {"overlap": False}, out=str(tmp_path))
    rltrain.train(**TINY | {"workers": 0}, out=str(tmp_path))  # in this process nothing can go on beside it

    assert not any(any(one) for one in busy)


def test_nothing_is_lost_or_counted_twice(tmp_path: Path, books: dict[int, list[tuple[int, int]]]) -> None:
    asked = TINY | {"eval_every": 150, "eval_episodes": 2, "checkpoint_every": 100}
    result = rltrain.train(**asked, out=str(tmp_path))

    add_up(books)
    state = checkpoint.load(result.checkpoint).state
    assert state["rollout"]["steps"] == state["feed"]["steps"] == result.steps
    assert state["feed"]["updates"] == (result.steps - 30) // 2
    rows = {int(unit["streams"][0]): int(unit["row"][0]) for unit in state["rollout"]["units"]}
    assert rows == {stream: sum(rows for _, rows in entries) for stream, entries in books.items()}
    assert sorted(rows) == [0, 1, 2, 3, 4]


def test_a_resumed_run_goes_on_with_each_streams_next_row(
    tmp_path: Path, books: dict[int, list[tuple[int, int]]]
) -> None:
    first = rltrain.train(**TINY, out=str(tmp_path))
    steps = first.steps

    again = rltrain.train(resume=first.run, steps=1200)

    assert again.steps >= 1200 > steps
    add_up(books)
    state = checkpoint.load(again.checkpoint).state
    assert state["feed"]["steps"] == again.steps
    assert state["feed"]["updates"] == (again.steps - 30) // 2


def test_a_stop_settles_first(
    tmp_path: Path, books: dict[int, list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = Tiny.update, 0

    def update(self: Tiny, batch: Any, progress: float) -> Any:
        nonlocal count
        count += 1
        if count == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, progress)

    monkeypatch.setattr(Tiny, "update", update)
    with pytest.raises(Interrupted, match="checkpoint"):
        rltrain.train(**TINY | {"steps": 10_000}, out=str(tmp_path))

    (run,) = tmp_path.iterdir()
    found = checkpoints.find(run)[0]
    add_up(books)
    assert found.meta["exact"] is True
    assert found.state["feed"]["steps"] == found.state["rollout"]["steps"] == found.meta["step"]
    assert {int(u["row"][0]) for u in found.state["rollout"]["units"]} == {sum(n for _, n in books[0])}


def test_the_run_ends_with_the_weights_that_reached_the_goal(tmp_path: Path) -> None:
    asked = TINY | {"steps": 5000, "eval_every": 130, "stop_return": 5.0}
    result = rltrain.train(**asked, out=str(tmp_path))

    assert result.stopped == "return"
    best = checkpoints.find(result.run, best=True)[0]
    whole = checkpoint.load(result.checkpoint)
    assert best.meta["step"] == whole.meta["step"] == result.steps
    for name, array in best.state["learner"]["parts"]["policy"].items():
        np.testing.assert_array_equal(array, whole.state["learner"]["parts"]["policy"][name])


@pytest.mark.parametrize("fault", [killed, pytest.param(raises, marks=pytest.mark.sweep)])
def test_an_actor_that_is_lost_meanwhile_is_replaced(
    fault: Any, tmp_path: Path, books: dict[int, list[tuple[int, int]]]
) -> None:
    once = str(tmp_path / "once")
    result = rltrain.train(
        **TINY | {"env": lambda: fault(at=500, once=once), "steps": 4000, "checkpoint_every": 500},
        out=str(tmp_path / "runs"),
    )
    assert os.path.exists(once)
    assert result.restarts == 1
    assert result.steps >= 4000
    add_up(books)


@pytest.mark.sweep
def test_an_actor_that_hangs_meanwhile_is_replaced(tmp_path: Path, books: dict[int, list[tuple[int, int]]]) -> None:
    from oracles.faulty import hangs

    once = str(tmp_path / "once")
    asked = TINY | {"env": lambda: hangs(at=500, once=once), "steps": 4000, "actor_timeout": 2.0}
    result = rltrain.train(**asked, out=str(tmp_path / "runs"))
    assert result.restarts >= 1
    add_up(books)


def test_rest_waits_for_what_is_under_way_and_begins_nothing() -> None:
    rollout, _ = open_rollout("probe:counter", workers=2, streams=5, unroll=8)
    assert rollout.drain() == []
    rollout.start()
    first = rollout.gather()
    rollout.start()
    rest = rollout.drain()

    assert [u.row.tolist() for u in first] == [[0, 0, 0], [0, 0]]
    assert [u.row.tolist() for u in rest] == [[8, 8, 8], [8, 8]]
    assert not any(actor.busy for actor in rollout._actors)
    assert len(rollout.state()["units"]) == 5
    assert rollout.drain() == []


def test_rest_waits_for_the_successor_of_a_lost_actor() -> None:
    rollout, _ = open_rollout("probe:counter", workers=2, streams=4, unroll=8)
    rollout.start()
    rollout.gather()
    os.kill(pids(rollout)[0], signal.SIGKILL)
    rollout.start()

    rest = rollout.drain()

    assert [u.stream.tolist() for u in rest] == [[0, 1], [2, 3]]
    assert [u.row.tolist() for u in rest] == [[8, 8], [8, 8]]
    assert rest[0].first[0].all()
    assert rollout.restarts == 1


def test_patience_ends_the_wait_too(tmp_path: Path) -> None:
    """One actor hangs while a stop waits for it: the unrolls under way are given up."""
    reached = str(tmp_path / "reached")
    rollout, _ = open_rollout(
        lambda: HangsInReset(3, reached), workers=1, streams=1, unroll=64, looks_like="probe:counter"
    )
    rollout.start()
    rollout.deadline = 0.0

    with pytest.raises(InterruptedError):
        rollout.drain()
