"""A game of each family of PettingZoo, trained for a few hundred steps; those that are not installed are skipped."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain.envs.errors import EnvError
from rltrain.envs.make import read_spec, resolve

STATELESS = ("connect_four_v3", "leduc_holdem_v4", "multiwalker_v9", "rps_v2")

SMALL: dict[str, Any] = {
    "workers": 0, "preset": "none", "quiet": True, "streams": 2, "unroll": 8, "widths": (8,), "eval_every": 0,
    "eval_episodes": 1, "checkpoint_every": 0,
}  # fmt: skip
REPLAY: dict[str, Any] = {"warmup": 40, "batch": 4, "updates_per_step": 0.1}


# Of classic, sisl and magent2; games of the other families are in test_pettingzoo_parallel.py too.
QUICK = ("rps_v2", "multiwalker_v9", "battle_v4")


def game(module: str, needs: str, algo: str, steps: int = 200, **settings: Any) -> Any:
    there = (
        importlib.util.find_spec(needs) is not None and importlib.util.find_spec(module.partition(".")[0]) is not None
    )
    more = {**(REPLAY if algo in ("qmix", "vdn", "iql") else {}), **settings, "steps": steps}
    skip = pytest.mark.skipif(not there, reason=f"needs {needs}, of an extra")
    name = module.rpartition(".")[2]
    return pytest.param(module, algo, more, id=name, marks=skip if name in QUICK else [skip, pytest.mark.sweep])


GAMES = [
    game("mpe2.simple_spread_v3", "mpe2", "qmix", memory="gru", memory_size=8, last_action=True),
    game("mpe2.simple_speaker_listener_v4", "mpe2", "mappo"),
    game("pettingzoo.butterfly.knights_archers_zombies_v11", "pymunk", "qmix"),
    game("pettingzoo.classic.connect_four_v3", "rlcard", "vdn"),
    game("pettingzoo.classic.leduc_holdem_v4", "rlcard", "iql"),
    game("pettingzoo.classic.rps_v2", "rlcard", "ppo"),
    game("pettingzoo.sisl.multiwalker_v9", "Box2D", "mappo", 100, env_args={"max_cycles": 60}),
    game("magent2.environments.battle_v4", "magent2", "iql", 100, env_args={"map_size": 12, "max_cycles": 40}),
]


@pytest.mark.filterwarnings("ignore::Warning")  # those of the games, about themselves
@pytest.mark.parametrize(("module", "algo", "settings"), GAMES)
def test_a_game_of_the_family_is_learnt_from(module: str, algo: str, settings: dict[str, Any], tmp_path: Path) -> None:
    result = rltrain.train(algo=algo, env=f"pettingzoo:{module}", out=str(tmp_path), **{**SMALL, **settings})

    assert result.steps >= settings["steps"]
    assert result.restarts == 0
    assert math.isfinite(rltrain.evaluate(result.run, episodes=1).return_mean)
    trained = rltrain.load(result.run)
    assert len(trained.spec.agents) > 1
    assert (trained.spec.state_shape is None) == (module.rpartition(".")[2] in STATELESS)
    env: Any = rltrain.make_env(f"pettingzoo:{module}", **settings.get("env_args", {}))
    obs, _ = env.reset(seed=1)
    assert set(trained.act(obs)) == set(trained.spec.agents)
    env.close()


def test_what_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rlcard", None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith("pettingzoo.classic")]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(EnvError, match=r"leduc_holdem_v4 needs an extra: pip install 'rltrain\[classic\]'"):
        read_spec(resolve("pettingzoo:pettingzoo.classic.leduc_holdem_v4"), 0)


def test_a_module_that_no_family_has_is_no_missing_extra() -> None:
    with pytest.raises(EnvError, match=r"there is no module 'pettingzoo\.classic\.leduc_v9'"):
        read_spec(resolve("pettingzoo:pettingzoo.classic.leduc_v9"), 0)


@pytest.mark.skipif(importlib.util.find_spec("mpe2") is None, reason="needs mpe2, of an extra")
def test_of_another_version_the_one_that_is_there_is_named() -> None:
    with pytest.raises(EnvError, match=r"'mpe2\.simple_spread_v2'; .* Did you mean 'simple_spread_v3'\?$"):
        read_spec(resolve("pettingzoo:mpe2.simple_spread_v2"), 0)
