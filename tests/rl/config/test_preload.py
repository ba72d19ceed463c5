"""Modules that the fork server imports before the workers need them."""

from __future__ import annotations

import pytest
from oracles.cases import DISCRETE
from oracles.off_policy import BOX
from oracles.teams import THREE, TWO, team_spec

from rltrain import algorithms
from rltrain.config.load import load
from rltrain.config.run_config import preload
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import make_algorithm

OURS = sorted(name for name, entry in algorithms._registry.items() if isinstance(entry.algorithm, str))  # not a test's


@pytest.mark.parametrize("algo", OURS)
def test_the_modules_of_the_policy_are_among_them(algo: str) -> None:
    config = load({"algo": algo, "env": "X-v0", "workers": 1})
    found = set[str]()
    for spec in [team_spec(THREE, TWO)] if algorithms.for_several(algo) else [DISCRETE, BOX]:
        try:
            policy = make_algorithm(config, spec).policy
        except ConfigError:
            continue  # not for this kind of action
        found |= {type(module).__module__ for module in policy.modules()}

    found = {name for name in found if name.startswith("rltrain.") and ".networks." not in name}
    assert found
    assert found <= set(preload(config))


def test_a_run_of_one_agent_needs_no_module_of_several() -> None:
    for algo in ("ppo", "sac"):
        assert not [name for name in preload(load({"algo": algo, "env": "X-v0"})) if "multi_agent" in name]
