"""Switches of every algorithm change its weights, alone and in pairs: a sample of benchmarks/switches.py."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest

from rltrain import algorithms

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "switches.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("switches", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


switches = _load()
BUILT_IN = algorithms.names()
# Pairs that were wrong once.
PAIRS = [("qmix", "double", "memory"), ("vdn", "double", "memory"), ("mappo", "critic_memory", "activation")]


MAIN = ("ppo", "impala", "dqn", "sac", "qmix")


@pytest.mark.parametrize(
    "algo", [pytest.param(name, marks=() if name in MAIN else pytest.mark.sweep) for name in BUILT_IN]
)
def test_switches_change_the_weights_or_have_a_reason(algo: str) -> None:
    rng = random.Random(algo)
    for name in rng.sample(switches.switches(algo), 2):
        assert switches.alone(algo, name) != "", name
    for one, other in rng.sample(switches.pairs(algo), 1):
        assert all(reason for _, _, reason in switches.pair(algo, one, other)), (one, other)


@pytest.mark.parametrize(("algo", "one", "other"), PAIRS)
def test_pairs_that_were_wrong_once(algo: str, one: str, other: str) -> None:
    assert not switches.pair(algo, one, other)
