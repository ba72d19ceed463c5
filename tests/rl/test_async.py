"""Whole runs whose actors do not wait: they learn, nothing is lost or counted twice, and turns repeat to the bit."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from oracles.faulty import killed, raises

import rltrain
from rltrain.algorithms.on_policy.impala import IMPALA
from rltrain.envs.problems.probes import Counter
from rltrain.errors import ConfigError
from rltrain.learner.learner import Learner
from rltrain.storage import checkpoint
from rltrain.storage.recording import Recording

pytestmark = pytest.mark.usefixtures("fork_server")

TINY: dict[str, Any] = {
    "env": "CartPole-v1", "workers": 3, "streams": 6, "unroll": 8, "steps": 1500, "widths": (8,), "preset": "none",
    "eval_every": 0, "checkpoint_every": 0, "quiet": True,
}  # fmt: skip
ALGOS: dict[str, dict[str, Any]] = {
    "impala": {"wait": 2, "max_in_flight": 2, "max_lag": None, "sequence": 8},
    "appo": {"wait": 2, "max_in_flight": 2, "max_lag": None, "sequence": 8, "buffer_size": 2, "reuse": 2},
    "a3c": {"max_in_flight": 2},
}


class Jittery(Counter):
    """Now and then a step takes a while, in each process and run at other moments."""

    def step(self, action: Any) -> Any:
        if os.urandom(1)[0] < 8:
            time.sleep(0.01)
        return super().step(action)


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[tuple[int, int]]]:
    """Of every stream, (row, rows) of each unroll that the learner got."""
    real, kept = Learner.step, dict[int, list[tuple[int, int]]]()

    def step(self: Learner, unrolls: list[Any], progress: float) -> None:
        for unroll in unrolls:
            for stream, row in zip(unroll.stream.tolist(), unroll.row.tolist(), strict=True):
                kept.setdefault(stream, []).append((row, unroll.rows))
        real(self, unrolls, progress)

    monkeypatch.setattr(Learner, "step", step)
    return kept


def add_up(books: dict[int, list[tuple[int, int]]], streams: int = 6) -> dict[int, int]:
    """Each stream's rows follow each other, without a gap and without one twice; returns where they stand."""
    assert sorted(books) == list(range(streams))
    ends = {}
    for stream, entries in books.items():
        expected = 0
        for row, rows in entries:
            assert row == expected, f"stream {stream}"
            expected += rows
        ends[stream] = expected
    return ends


@pytest.mark.parametrize(
    "algo", [pytest.param(name, marks=() if name == "a3c" else pytest.mark.sweep) for name in ALGOS]
)
def test_nothing_is_lost_or_counted_twice(algo: str, tmp_path: Path, books: dict[int, list[tuple[int, int]]]) -> None:
    """Evaluations and checkpoints in between, then a resume."""
    asked = TINY | ALGOS[algo] | {"algo": algo, "eval_every": 400, "eval_episodes": 2, "checkpoint_every": 300}
    first = rltrain.train(**asked, out=str(tmp_path))
    for _ in range(2):
        ends = add_up(books)
        state = checkpoint.load(first.checkpoint).state
        assert state["rollout"]["steps"] == first.steps
        assert {int(unit["streams"][0]): int(unit["row"][0]) for unit in state["rollout"]["units"]} == ends
        first = rltrain.train(resume=first.run, steps=first.steps + 500)


@pytest.mark.parametrize(
    ("algo", "fault"),
    [
        pytest.param("impala", killed, marks=pytest.mark.sweep),
        pytest.param("impala", raises, marks=pytest.mark.sweep),
        ("a3c", killed),
    ],
)
def test_an_actor_that_is_lost_is_replaced(
    algo: str, fault: Any, tmp_path: Path, books: dict[int, list[tuple[int, int]]]
) -> None:
    once = str(tmp_path / "once")
    asked = TINY | ALGOS[algo] | {"algo": algo, "env": lambda: fault(at=1100, once=once), "streams": 3, "wait": 1}
    asked = {key: value for key, value in asked.items() if key != "wait" or algo != "a3c"}
    result = rltrain.train(**asked | {"steps": 6000}, out=str(tmp_path / "runs"))
    assert os.path.exists(once)
    assert result.restarts == 1
    assert result.steps >= 6000
    add_up(books, streams=3)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "algo", [pytest.param(name, marks=() if name == "impala" else pytest.mark.sweep) for name in ALGOS]
)
def test_turns_repeat_to_the_bit(algo: str, tmp_path: Path) -> None:
    asked = TINY | ALGOS[algo] | {"algo": algo, "env": Jittery, "deterministic": True, "eval_every": 500}
    one, other = (rltrain.train(**asked, out=str(tmp_path / name), eval_episodes=2) for name in ("one", "other"))
    assert one.fingerprint == other.fingerprint
    assert one.steps == other.steps


def test_unrolls_of_all_lengths_are_recorded_whole(tmp_path: Path) -> None:
    """A stream may deliver twice in one delivery, and one that is slow delivers less."""
    asked = (
        TINY
        | ALGOS["impala"]
        | {"algo": "impala", "record": str(tmp_path / "record"), "max_in_flight": 3, "streams": 3}
    )
    once = str(tmp_path / "once")
    result = rltrain.train(
        **asked | {"env": lambda: killed(at=1100, once=once), "wait": 1, "steps": 5000, "checkpoint_every": 700},
        out=str(tmp_path / "runs"),
    )
    assert result.restarts == 1
    ends = dict.fromkeys(range(3), 0)
    for unroll in Recording.open(tmp_path / "record").pieces():
        for stream, row in zip(unroll.stream.tolist(), unroll.row.tolist(), strict=True):
            assert row == ends[stream]
            ends[stream] += unroll.rows
    state = checkpoint.load(result.checkpoint).state
    assert {int(unit["streams"][0]): int(unit["row"][0]) for unit in state["rollout"]["units"]} == ends


def test_overlap_of_ppo_repeats_to_the_bit(tmp_path: Path) -> None:
    asked = TINY | {"algo": "ppo", "env": Jittery, "deterministic": True, "overlap": True, "epochs": 2}
    one, other = (rltrain.train(**asked, out=str(tmp_path / name)) for name in ("one", "other"))
    without = rltrain.train(**asked | {"overlap": False}, out=str(tmp_path / "without"))
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != without.fingerprint, "its unrolls are one update old"


def test_the_lag_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One actor of three is slow, so that its unrolls would be older than allowed."""
    lags: list[int] = []
    learners: list[Learner] = []
    real, update = Learner.step, IMPALA.update

    def step(self: Learner, unrolls: list[Any], progress: float) -> None:
        learners[:] = [self]
        real(self, unrolls, progress)

    def measured(self: IMPALA, unrolls: Any, progress: float) -> Any:
        lags.append(learners[0].version - int(unrolls.version.min()))
        return update(self, unrolls, progress)

    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(IMPALA, "update", measured)
    asked = TINY | ALGOS["impala"] | {"algo": "impala", "max_lag": 3, "max_in_flight": 4, "steps": 4000, "env": Jittery}
    result = rltrain.train(**asked | {"checkpoint_every": 500}, out=str(tmp_path))
    assert max(lags) <= 3
    assert lags.count(0) < len(lags), "they did run ahead"
    assert result.steps >= 4000


def test_batches_have_one_shape_however_many_actors_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = set()
    real = IMPALA.update

    def update(self: IMPALA, unrolls: Any, progress: float) -> Any:
        shapes.add(tuple(unrolls.reward.shape))
        return real(self, unrolls, progress)

    monkeypatch.setattr(IMPALA, "update", update)
    for workers in (0, 1, 2, 3, 6):
        asked = TINY | ALGOS["impala"] | {"algo": "impala", "workers": workers, "steps": 600, "max_in_flight": 1}
        rltrain.train(**asked, out=str(tmp_path / str(workers)))
    assert shapes == {(8, 2), (8, 3)}, "two streams; three where actors have three"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"record": "there"}, "--record keeps every row, and --max-lag drops some: add --max-lag none"),
        (
            {"algo": "a3c", "record": "there"},
            "--record: the unrolls of a3c stay with its actors; use another algorithm",
        ),
        (
            {"replay_on_disk": True},
            "--replay-on-disk: impala learns from each unroll once and keeps no replay; use dqn, sac or td3",
        ),
    ],
)
def test_what_cannot_be_is_one_line(given: dict[str, Any], line: str, tmp_path: Path) -> None:
    given = {"record": str(tmp_path / "record")} | given if "record" in given else given
    asked = {"algo": "impala", "env": "CartPole-v1", "workers": 0, "out": str(tmp_path)} | given
    if asked["algo"] == "impala":
        asked["max_lag"] = 5
    with pytest.raises(ConfigError) as refused:
        rltrain.train(**asked)
    assert str(refused.value) == line
