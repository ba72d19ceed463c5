"""Each planted fault is found, with a hint and how it was seen; sound environments give no fault and no warning."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from oracles import planted

from rltrain.doctor.examination import TASKS, Effort, Examination, Subject
from rltrain.doctor.findings import NOTE, Finding
from rltrain.envs.errors import unwatched
from rltrain.envs.make import resolve

SMALL = Effort(
    steps=120, seconds=0.2, survey_steps=5_000, survey_seconds=1.0, episodes=6, instances=2, restore_seconds=0.02,
    render=True,
)  # fmt: skip
TINY = SMALL._replace(survey_steps=200)


REPEAT = ("seed", "determinism", "reset", "shared", "spaces", "second", "buffer", "action", "actions")
TASKS_OF = {kind: ["repeat"] for kind in REPEAT} | {  # that find a kind of fault; the interface is examined first
    **{kind: ["survey"] for kind in ("end", "observation", "time")},
    "reward": ["repeat", "survey"],
    "effect": ["repeat", "effects"],
    "global": ["globals"],
    "leak": ["leaks"],
}


def examined(env: Any, effort: Effort = TINY, tasks: Sequence[str] = TASKS) -> list[Finding]:
    examination = Examination(Subject(resolve(env), 0, effort), unwatched)
    spec, found = examination.spec()
    if spec is None:
        return found
    for task in tasks:
        result = examination.run(task)
        found += result[0] if isinstance(result, tuple) else result
        if any(finding.kind in ("interface", "exception", "second") for finding in found if finding.level == "fault"):
            break
    return found


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    folder = os.getcwd()
    planted.OnlyOnce.open = False
    planted.LeavesThreads.end.clear()
    planted.SpacesDiffer.count = itertools.count()
    yield
    os.chdir(folder)
    planted.LeavesThreads.end.set()
    for child in planted.LeavesChildren.left:
        child.kill()
        child.wait()
    planted.LeavesChildren.left.clear()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=() if name in ("LeavesThreads", "SlowReset", "NoEnd", "RewardInArray") else pytest.mark.sweep,
        )
        for name in planted.KINDS
    ],
)
def test_a_planted_fault_is_found(name: str) -> None:
    level, kind = planted.KINDS[name]
    tasks = ["interface", *TASKS_OF.get(kind, [])]
    found = examined(getattr(planted, name), SMALL if name == "NoEnd" else TINY, tasks)

    same = [finding for finding in found if (finding.level, finding.kind) == (level, kind)]
    assert same, found
    assert same[0].text
    assert same[0].hint
    assert same[0].seen


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.sweep) for name in planted.SOUND),
        "two-step",
        *(pytest.param(name, marks=pytest.mark.sweep) for name in ("CartPole-v1", "Pendulum-v1", "FrozenLake-v1")),
    ],
)
def test_a_sound_environment_is_sound(name: str) -> None:
    found = examined(getattr(planted, name, name))

    assert [finding for finding in found if finding.level != NOTE] == []


def test_the_generator_that_is_drawn_from_is_named() -> None:
    (finding,) = [one for one in examined(planted.GlobalNoise, tasks=["repeat"]) if one.kind == "determinism"]

    assert "step 8 in episode 1" in finding.text
    assert "it draws from numpy.random" in finding.hint


def test_an_exception_is_named_with_its_place() -> None:
    (finding,) = [one for one in examined(planted.RaisesLate, tasks=["interface"]) if one.kind == "exception"]

    assert "AttributeError" in finding.text
    assert "planted.py" in finding.text
    assert "in step" in finding.text


def test_one_cause_is_one_line() -> None:
    kinds = [finding.kind for finding in examined(planted.OutOfBounds, tasks=["interface"]) if finding.level != NOTE]

    assert kinds == ["interface"]


def test_the_process_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examined(planted.Walk)

    assert Path.cwd() == tmp_path
