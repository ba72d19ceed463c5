"""Hostile environments: a quick choice of them, each as a whole command. All: scripts/bench hostile_environments."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from hostile.cases import Case, cases, run, wrong

CASES = {case.id: case for case in cases()}
QUICK = """
    endings.ExitsAtOnce[reset] 0
    values.Broadcast[later] 0
    odd_spaces.Unbounded 0
    agents.OneNan[later] 0
"""
MORE = """
    process_state.Everything 0
    process_state.Interrupted 0
    children.ForgottenDouble 2
    endings.Exits[later] 2
    shadows.BesideStandard 2
    wrapped.Clips 0
    endings.CloseRaises[close] 0
    children.Executor 2
    process_state.LeavesThread 0
    hangs.HoldsLock[reset] 0
    hangs.CloseSleeps[close] 2
    values.RewardText[later] 0
    values.FlagNone[later] 0
    odd_spaces.Double[sac] 0
    at_import.ImportKilled 0
"""
LINES = [line.strip() for line in QUICK.strip().splitlines()]
LINES += [pytest.param(line.strip(), marks=pytest.mark.sweep) for line in MORE.strip().splitlines()]


@functools.cache
def fingerprint(case: Case) -> str:
    return run(case, 0).fingerprint


@pytest.mark.parametrize("line", LINES)
def test_hostile_environment(line: str) -> None:
    name, _, workers = line.rpartition(" ")
    case = CASES[name]
    twin = fingerprint(CASES[case.twin]) if case.trains and case.twin else None

    outcome = run(case, int(workers))

    assert not wrong(case, int(workers), outcome, twin), outcome.err


def test_a_fault_of_the_command_is_seen() -> None:
    """The harness finds what is wrong: another status, a missing line, a traceback, a process that is left over."""
    case = Case("endings", "Exits", "", "init", expect={"says": "never printed", "status": 3})

    assert len(wrong(case, 2, run(case, 2))) >= 2


def test_there_are_many_and_each_says_what_it_does() -> None:
    assert len({(case.module, case.name) for case in CASES.values()}) >= 60
    assert all(case.text for case in CASES.values())
    assert all(case.twin in CASES for case in CASES.values() if case.twin)


def test_the_page_names_every_environment() -> None:
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.M)

    assert sorted(set(rows)) == sorted({(case.name, case.text.replace("|", "/")) for case in CASES.values()})
