"""Actors that run ahead of the learner: who is waited for, how far they go, what is dropped, and in which order."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles.faulty import Picture, config_of, hangs, opened, pids, weights_of

from rltrain.envs.make import resolve
from rltrain.envs.vector.unroll_rows import UnrollBuffer, VectorEnv
from rltrain.learner.algorithm import make_algorithm
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.supervision import SupervisedActor, WorkerFailed, unroll_length
from rltrain.rollout.types import Gradients, Trajectory, Weights
from rltrain.setup.environment import open_environment
from rltrain.setup.rollout import rollout_spec

pytestmark = pytest.mark.usefixtures("fork_server")
PATIENCE = 60.0  # seconds after which a test gives up on something that should come at once


class Gated:
    """Streams that make `free` steps, and then none before a file is there."""

    def __init__(self, env: VectorEnv, gate: str, free: int) -> None:
        self._env, self._gate, self._free = env, gate, free

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def step(self, action: np.ndarray, rows: UnrollBuffer, t: int) -> None:
        self._free -= 1
        while self._free < 0 and not os.path.exists(self._gate):
            time.sleep(0.01)
        self._env.step(action, rows, t)


def open_rollout(
    env: Any = "probe:counter", gate: Path | None = None, free: int = 0, like: Any = None, **plan: Any
) -> Rollout:
    """Two actors of two streams, unrolls of 8; the first actor waits for the gate after `free` steps."""
    config = config_of(like or env, workers=2, streams=4, unroll=8)
    here = replace(open_environment(config)[0], source=resolve(env))
    algorithm = make_algorithm(config, here.spec)
    made = rollout_spec(config, here, algorithm.plan)
    if gate is not None:
        plan["make_env"] = _behind(made.make_env, str(gate), free)
    opened.append(Rollout(replace(made, **plan), weights_of(algorithm.policy), lambda lost: None))
    return opened[-1]


def _behind(make_env: Callable[..., VectorEnv], gate: str, free: int) -> Callable[..., Any]:
    def made(streams: Any, incarnations: Any) -> Any:
        env = make_env(streams, incarnations)
        return Gated(env, gate, free) if 0 in streams else env

    return made


def publish(rollout: Rollout, version: int) -> None:
    """The same weights under a new version."""
    read = {
        name: array.copy()
        for name, array in rollout._backend.board._copies[rollout._backend.board.sequence % 2][1].items()
    }
    rollout.publish(Weights(version, 0, read))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def both_are_ready(rollout: Rollout) -> None:
    until(lambda: all(wait([actor.handle.waitable], 0) for actor in rollout._actors if actor.handle is not None))


def streams(unrolls: list[Trajectory]) -> list[list[int]]:
    return [unroll.stream.tolist() for unroll in unrolls]


def rows(unrolls: list[Trajectory]) -> list[int]:
    return [int(unroll.row[0]) for unroll in unrolls]


def test_it_does_not_wait_for_who_is_slow(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    rollout = open_rollout(gate=gate)
    for expected in (0, 8, 16):
        rollout.start()
        unrolls = rollout.gather(2)
        assert streams(unrolls) == [[2, 3]]
        assert rows(unrolls) == [expected]
    gate.touch()
    unrolls = rollout.drain()
    assert streams(unrolls) == [[0, 1]]
    assert rows(unrolls) == [0]
    assert rollout.rows.tolist() == [8, 8, 24, 24]


def test_who_has_waited_longest_is_taken_first() -> None:
    """Else the first actor would always be quick enough to be taken again, and the second's unrolls grow old."""
    rollout = open_rollout()
    found = []
    for _ in range(4):
        rollout.start()
        both_are_ready(rollout)
        found += streams(rollout.gather(2))
    assert found == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_actors_in_this_process_are_taken_in_turn() -> None:
    rollout = open_rollout(backend="local")
    found = []
    for _ in range(4):
        rollout.start()
        found += streams(rollout.gather(2))
    assert found == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_an_actor_runs_ahead_by_max_in_flight_and_no_further() -> None:
    rollout = open_rollout(max_in_flight=3)
    rollout.start()
    until(lambda: all(actor.heartbeat.steps == 24 for actor in rollout._actors))
    time.sleep(0.3)
    assert [actor.heartbeat.steps for actor in rollout._actors] == [24, 24], "nobody acts beyond max_in_flight"
    publish(rollout, 5)
    assert [len(actor.in_flight) for actor in rollout._actors] == [3, 3]
    first = rollout.gather(4)
    rollout.start()
    second, third, fourth = rollout.gather(4), rollout.gather(4), rollout.gather(4)
    assert [rows(unrolls) for unrolls in (first, second, third, fourth)] == [[0, 0], [8, 8], [16, 16], [24, 24]]
    assert [int(unroll.version[0]) for unroll in (*third, *fourth)] == [0, 0, 5, 5]


@pytest.mark.parametrize(
    "max_in_flight", [pytest.param(1, marks=pytest.mark.sweep), 2, pytest.param(3, marks=pytest.mark.sweep)]
)
def test_big_observations_are_whole_as_long_as_they_are_looked_at(max_in_flight: int) -> None:
    """Those of an unroll in the learner's hands are not overwritten by the ones that were begun after it."""
    rollout = open_rollout(Picture, max_in_flight=max_in_flight, unroll=10)
    alone = open_rollout(Picture, unroll=10, workers=0, backend="local")
    assert rollout._backend.slots.memories
    wanted: list[np.ndarray] = []
    for _ in range(10):
        alone.start()
        wanted.append(alone.gather()[0].obs.copy())
    for _ in range(5):
        rollout.start()
        held = rollout.gather(4)  # of one actor alone, it may be
        rollout.start()
        until(lambda: all(actor.heartbeat.begun == actor.reads for actor in rollout._actors))
        both_are_ready(rollout)
        for unroll in held:
            np.testing.assert_array_equal(unroll.obs, wanted[int(unroll.row[0]) // 10][:, unroll.stream])


def test_what_a_lost_actor_left_is_not_overwritten_by_its_successor() -> None:
    rollout = open_rollout(Picture, max_in_flight=2, unroll=10)
    rollout.start()
    until(lambda: all(actor.heartbeat.begun == 2 for actor in rollout._actors))
    both_are_ready(rollout)
    held = [unroll for unroll in rollout.gather(2) if unroll.stream[0] == 0]
    held += [] if held else [unroll for unroll in rollout.gather(2) if unroll.stream[0] == 0]
    before = [unroll.obs.copy() for unroll in held]
    os.kill(pids(rollout)[0], signal.SIGKILL)
    rollout.drain()  # all that it had sent may be here already: then its death shows when it is asked for more
    rollout.start()
    rollout.drain()
    assert rollout.restarts == 1
    assert held
    for unroll, obs in zip(held, before, strict=True):
        np.testing.assert_array_equal(unroll.obs, obs)


def test_a_wait_that_is_given_up_counts_nothing(tmp_path: Path) -> None:
    """The unroll of one actor is there, that of the other will not come."""
    rollout = open_rollout(gate=tmp_path / "gate")
    rollout.start()
    until(lambda: bool(wait([rollout._actors[1].handle.waitable], 0)))  # type: ignore[union-attr]
    rollout.deadline = time.monotonic() + 0.5
    with pytest.raises(InterruptedError):
        rollout.gather()
    assert rollout.steps == 0
    assert rollout.rows.tolist() == [0] * 4
    (tmp_path / "gate").touch()


def test_a_rollout_that_fails_counts_nothing_of_what_came_meanwhile() -> None:
    """One unroll lies there, and behind it the news that the other actor was lost once too often."""
    rollout = open_rollout(max_restarts=0)
    rollout.start()
    both_are_ready(rollout)
    os.kill(pids(rollout)[1], signal.SIGKILL)
    rollout.gather()  # what it had finished comes first
    before, steps = rollout.rows.tolist(), rollout.steps
    rollout.start()
    both_are_ready(rollout)
    with pytest.raises(WorkerFailed):
        rollout.gather()
    assert rollout.rows.tolist() == before
    assert rollout.steps == steps


def test_an_actor_that_stops_in_the_middle_of_an_answer_is_replaced() -> None:
    """It is stopped when the pipe is full and the rest of the answer still with it."""
    rollout = open_rollout(unroll=20_000, actor_timeout=3.0, workers=1, units=((0,), (1,), (2,), (3,)))
    rollout.start()
    until(lambda: bool(wait([rollout._actors[0].handle.waitable], 0)))  # type: ignore[union-attr]
    time.sleep(0.2)
    os.kill(pids(rollout)[0], signal.SIGSTOP)
    (unroll,) = rollout.gather()
    assert rollout.restarts == 1
    assert unroll.first[0].all()


def test_what_is_too_old_is_dropped_and_counted() -> None:
    rollout = open_rollout(max_lag=3, workers=1, units=((0,), (1,), (2,), (3,)))
    keeps = open_rollout(workers=1, units=((0,), (1,), (2,), (3,)))
    episodes: dict[Rollout, list[Any]] = {rollout: [], keeps: []}
    for each in (rollout, keeps):
        each.start()
        both_are_ready(each)  # with version 0
        publish(each, 4)
    for each, expected in ((rollout, 8), (keeps, 0)):
        (unroll,) = each.gather()
        assert rows([unroll]) == [expected]
        episodes[each] += unroll.episodes
    assert rollout.dropped == 4
    assert rollout.rows.tolist() == [16] * 4, "its rows were acted, and are counted"
    keeps.start()
    episodes[keeps] += keeps.gather()[0].episodes
    assert rollout.steps == keeps.steps
    assert episodes[rollout] == episodes[keeps], "and its episodes are told"
    assert rollout.metrics() == {
        "rollout/dropped": 4.0,
        "rollout/policy_lag_mean": 2.0,  # 4 of the one, 0 of the other
        "rollout/policy_lag_max": 4.0,
    }
    assert "rollout/policy_lag_max" not in rollout.metrics(), "nothing new"


def test_what_is_just_old_enough_is_kept() -> None:
    rollout = open_rollout(max_lag=4)
    rollout.start()
    both_are_ready(rollout)
    publish(rollout, 4)
    assert rows(rollout.gather()) == [0, 0]
    assert rollout.dropped == 0


def test_resting_drops_too_and_begins_nothing() -> None:
    rollout = open_rollout(max_lag=3)
    rollout.start()
    both_are_ready(rollout)
    publish(rollout, 4)
    assert rollout.drain() == []
    assert rollout.dropped == 4
    assert rollout.rows.tolist() == [8] * 4


def test_the_start_of_a_process_is_not_held_against_an_actor() -> None:
    rollout = open_rollout()
    rollout.start()
    rollout.gather()
    assert [one.pace for one in rollout._actors] == [0.0, 0.0]
    rollout.start()
    rollout.gather()
    assert all(one.pace > 0 for one in rollout._actors)


def actor_of(pace: float) -> SupervisedActor:
    rollout = open_rollout(workers=0, backend="local") if not opened else opened[-1]
    like = rollout._actors[0]
    return SupervisedActor(0, (0,), like.heartbeat, like.worker, pace=pace)


@pytest.mark.parametrize(
    ("paces", "expected"),
    [
        ([1, 1, 1], [None, None, None]),
        ([1, 1, 3.9], [None, None, None]),
        ([1, 1, 4], [None, None, 32]),
        ([1, 1, 20], [None, None, 8]),
        ([1, 20], [None, 8]),
        ([1, 1, 1e6], [None, None, 4]),
        ([0, 1, 20], [None, None, 8]),  # nothing is known of the first
    ],
)
def test_who_is_many_times_slower_is_given_shorter_unrolls(paces: list[float], expected: list[int | None]) -> None:
    actors = [actor_of(pace) for pace in paces]
    assert [unroll_length(one, actors, 64) for one in actors] == expected


def test_a_short_unroll_is_followed_by_the_next_row() -> None:
    """Counter's observations say which step of its episode it is, and how long that will be."""
    rollout = open_rollout(workers=1, units=((0,), (1,), (2,), (3,)))
    pieces: list[Trajectory] = []
    for asked in (3, 8, 5, None):
        rollout._actors[0].begin(asked)
        pieces += rollout.gather()
    assert rows(pieces) == [0, 3, 11, 16]
    assert [len(piece.obs) for piece in pieces] == [4, 9, 6, 9]
    for piece, following in pairwise(pieces):
        np.testing.assert_array_equal(piece.obs[-1], following.obs[0])
        np.testing.assert_array_equal(piece.first[-1], following.first[0])
    t = np.concatenate([piece.obs[:-1, :, 0] for piece in pieces])
    first = np.concatenate([piece.first[:-1] for piece in pieces])
    assert (t[first] == 0).all()
    assert (t[1:][~first[1:]] == t[:-1][~first[1:]] + 1).all()
    for name in ("action", "reward", "terminated", "truncated"):
        assert len(np.concatenate([getattr(piece, name) for piece in pieces])) == 24
    ended = np.concatenate([piece.terminated | piece.truncated for piece in pieces])
    told = [episode.length for piece in pieces for episode in piece.episodes]
    assert sorted(told) == sorted(np.concatenate([piece.obs[1:, :, 0] for piece in pieces])[ended].tolist())


def test_a_stream_can_be_brought_back_after_a_short_unroll() -> None:
    rollout = open_rollout("CartPole-v1", workers=1, units=((0,), (1,), (2,), (3,)))
    rollout._actors[0].begin(5)
    rollout.gather()
    state = rollout.state()
    rollout.start()
    (wanted,) = rollout.gather()
    other = open_rollout("CartPole-v1", workers=2)
    assert other.load(state)
    other.start()
    found = other.gather()
    np.testing.assert_array_equal(np.concatenate([unroll.obs for unroll in found], 1), wanted.obs)
    assert rows(found) == [5, 5]


def test_taking_turns_waits_for_the_one_whose_turn_it_is(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    rollout = open_rollout(gate=gate, deterministic=True)
    rollout.start()
    until(lambda: bool(wait([rollout._actors[1].handle.waitable], 0)))  # type: ignore[union-attr]
    threading.Timer(0.5, gate.touch).start()
    assert streams(rollout.gather(2)) == [[0, 1]]
    rollout.start()
    assert streams(rollout.gather(2)) == [[2, 3]]
    both_are_ready(rollout) if all(actor.busy for actor in rollout._actors) else None
    assert streams(rollout.gather(2)) == [[0, 1]]


def test_weights_are_published_when_all_have_read_theirs() -> None:
    """Else it would hang on the moment whether an unroll begins with the old weights or the new ones."""
    rollout = open_rollout(deterministic=True)
    for version in range(1, 30):
        rollout.start()
        publish(rollout, version)
        assert [int(unroll.version[0]) for unroll in rollout.gather()] == [version - 1] * 2


def test_an_actor_that_hangs_is_found_while_others_deliver(tmp_path: Path) -> None:
    once = str(tmp_path / "once")
    rollout = open_rollout(lambda: hangs(at=200, once=once), like="probe:counter", actor_timeout=1.0)
    end = time.monotonic() + PATIENCE
    while not rollout.restarts:
        assert time.monotonic() < end, "nobody noticed"
        rollout.start()
        rollout.gather(2)
    assert os.path.exists(once)


def test_what_a_killed_actor_had_finished_is_not_lost(tmp_path: Path) -> None:
    """It has begun its third unroll, so that the answers with the first two are on their way."""
    rollout = open_rollout(max_in_flight=3, gate=tmp_path / "gate", free=16)
    rollout.start()
    until(lambda: rollout._actors[0].heartbeat.begun == 3)
    os.kill(pids(rollout)[0], signal.SIGKILL)
    mine = [unroll for unroll in rollout.drain() if unroll.stream[0] == 0]
    assert rollout.restarts == 1
    assert rows(mine) == [0, 8, 16]
    assert [bool(unroll.first[0].all()) for unroll in mine] == [True, False, True], "its successor begins anew"


def test_a_closed_rollout_does_not_wait_for_what_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers bigger than a pipe takes: an actor must get rid of them before it hears that it should end."""
    monkeypatch.setattr("rltrain.rollout.workers.process.CLOSE_SECONDS", PATIENCE)
    rollout = open_rollout(max_in_flight=5, unroll=2000)
    rollout.start()
    until(lambda: all(wait([actor.handle.waitable], 0) for actor in rollout._actors if actor.handle is not None))
    killed: list[str] = []
    for one in rollout._actors:
        assert one.handle is not None
        one.handle.kill = killed.append  # type: ignore[method-assign]
    rollout.close()
    assert killed == [], "each ended by itself"
    assert all(one.heartbeat.begun < 5 for one in rollout._actors), "and without beginning all it was asked for"


def reduced(policy: Any, unroll: Trajectory) -> Gradients:
    """What an actor would send in place of its unroll."""
    return Gradients({}, {}, unroll.version, unroll.stream, unroll.row, unroll.rows, unroll.steps, unroll.episodes)


def test_gradients_come_in_the_order_in_which_they_were_made(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    rollout = open_rollout(gate=gate, reduce=reduced, max_in_flight=2)
    rollout.start()
    until(lambda: bool(wait([rollout._actors[1].handle.waitable], 0)))  # type: ignore[union-attr]
    first = rollout.gather(2)
    gate.touch()
    rest = rollout.drain()
    assert isinstance(first[0], Gradients)
    assert streams(first) == [[2, 3]]
    assert sorted(zip(rows(rest), streams(rest), strict=True)) == [(0, [0, 1]), (8, [0, 1]), (8, [2, 3])]
    assert rollout.rows.tolist() == [16] * 4


def test_actors_tell_how_long_they_waited() -> None:
    rollout = open_rollout()
    rollout.start()
    rollout.gather()
    time.sleep(0.5)
    rollout.start()
    rollout.gather()
    assert 0 < rollout.waited < 1
    assert all(one.heartbeat.waited >= 0.4 for one in rollout._actors)
