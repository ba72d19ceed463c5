"""Settings of every algorithm change its weights, alone and in pairs: a sample of benchmarks/switches.py."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rltrain import algorithms

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = algorithms.names()


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("switches", ROOT / "benchmarks" / "switches.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["switches"] = module
    spec.loader.exec_module(module)
    return module


switches = _load()
# Pairs that were wrong once.
PAIRS = [
    pytest.param("qmix", "Discrete", "double", "memory", marks=pytest.mark.sweep),
    pytest.param("vdn", "Discrete", "double", "memory", marks=pytest.mark.sweep),
    ("mappo", "Box", "critic_memory", "activation"),
]
MAIN = ("impala", "dqn")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches.process_state, "LocalSettings", switches.Unprotected)


@pytest.mark.parametrize("algo", BUILT_IN)
def test_every_setting_has_another_value_or_a_reason(algo: str) -> None:
    assert not switches.untried(algo)


@pytest.mark.parametrize(
    "algo", [pytest.param(name, marks=() if name in MAIN else pytest.mark.sweep) for name in BUILT_IN]
)
def test_a_sample_of_settings_changes_the_weights_or_has_a_reason(algo: str) -> None:
    rng = random.Random(algo)
    case = rng.choice(switches.cases(algo))
    name, (one, other) = rng.choice(list(switches.others(algo))), rng.choice(switches.pairs(case))

    assert switches.alone(case, name) != "", (case, name)
    assert all(reason for _, _, reason in switches.pair(case, one, other)), (case, one, other)


@pytest.mark.parametrize(("algo", "kind", "one", "other"), PAIRS)
def test_pairs_that_were_wrong_once(algo: str, kind: str, one: str, other: str) -> None:
    assert not switches.pair(switches.Case(algo, kind), one, other)


def test_the_page_has_no_exception_without_a_reason() -> None:
    page = (ROOT / "docs" / "switches.md").read_text()

    assert {title.partition(",")[0] for title in re.findall("^## (.*)$", page, re.M)} <= set(BUILT_IN)
    assert "no reason known" not in page
