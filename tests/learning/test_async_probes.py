"""IMPALA, APPO and A3C on problems whose answer is known. See `envs/problems/probes.py`.

Actors act in turns here, so that a run repeats; but updates are of half the streams each, so that half of the data is
old by then, APPO's batches are used again, and A3C's two actors send gradients that are an update old.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

import rltrain
from rltrain.algorithms.on_policy.settings import A3CConfig

pytestmark = pytest.mark.learning

Train = Callable[..., tuple[Any, Any]]  # to the run's result and its policy
SMALL = {
    "workers": 0,
    "preset": "none",
    "eval_every": 0,
    "checkpoint_every": 0,
    "quiet": True,
    "seed": 0,
    "streams": 8,
    "unroll": 8,
    "sequence": 8,
    "widths": (16,),
    "lr": 1e-2,
    "lr_end": 0.0,
    "gamma": 0.9,
    "entropy": 0.0,
}
OF = {
    "impala": {"wait": 4, "optimizer": "adam"},
    "appo": {"wait": 4, "buffer_size": 2, "reuse": 4, "target_every": 4},
    "a3c": {"workers": 2, "backend": "local", "optimizer": "adam"},
}
MEMORY = {"memory": "gru", "memory_size": 16, "entropy": 0.01, "lr": 5e-3}
each = pytest.mark.parametrize("algo", ["impala", "appo", "a3c"])


@pytest.fixture
def train(tmp_path) -> Train:
    def run(algo: str, env: str, steps: int, **settings: Any) -> tuple[Any, Any]:
        result = rltrain.train(
            algo=algo, env=f"probe:{env}", steps=steps, out=str(tmp_path), **{**SMALL, **OF[algo], **settings}
        )
        return result, rltrain.load(result.checkpoint)

    return run


def known(algo: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Without what A3C has not: running statistics, since observations stay with actors, and bounds of V-trace."""
    return {key: value for key, value in settings.items() if algo != "a3c" or key in A3CConfig.model_fields}


def values(trained: Any, *obs: float) -> list[float]:
    with torch.no_grad():
        found: list[float] = trained.policy.value(torch.tensor(obs)[:, None]).tolist()
    return found


@each
def test_constant_teaches_the_value_of_one_observation(algo, train):
    _, trained = train(algo, "constant", 2_000)

    assert values(trained, 0.0) == pytest.approx([1.0], abs=0.05)


@each
def test_obs_reward_teaches_which_row_is_whose(algo, train):
    _, trained = train(algo, "obs-reward", 3_000)

    assert values(trained, -1.0, 1.0) == pytest.approx([-1.0, 1.0], abs=0.05)


@each
def test_two_steps_teaches_discounting(algo, train):
    """If the constant one passes and this fails, discounting or the bootstrap is wrong."""
    _, trained = train(algo, "two-steps", 4_000)

    assert values(trained, 0.0, 1.0) == pytest.approx([0.9, 1.0], abs=0.03)


@each
@pytest.mark.parametrize("settings", [{}, {"rho_bar": 5.0, "c_bar": 0.5, "lam": 0.9}], ids=["plain", "bounds"])
def test_endless_teaches_that_a_time_limit_is_not_a_death(algo, settings, train):
    """6.51 would be the value of ten steps and nothing after them."""
    _, trained = train(algo, "endless", 8_000, **known(algo, settings))

    assert values(trained, 0.0) == pytest.approx([10.0], abs=0.5)


@each
@pytest.mark.parametrize(
    ("env", "steps", "best", "settings"),
    [
        ("choice", 1_500, 1.0, {}),
        ("choice-given-obs", 3_000, 1.0, {}),
        ("discrete-start", 4_000, 1.0, {}),
        ("multi-discrete", 4_000, 2.0, {}),
        ("multi-binary", 6_000, 3.0, {}),
        ("choice-given-obs", 3_000, 1.0, {"normalize_obs": True, "normalize_return": True, "shared_torso": True}),
    ],
)
def test_the_best_action_is_found(algo, env, steps, best, settings, train):
    _, trained = train(algo, env, steps, **known(algo, settings))

    assert rltrain.evaluate(trained, episodes=100).returns == (best,) * 100


@pytest.mark.parametrize("settings", [{"optimizer": "rmsprop"}, {"rho_bar_pg": 5.0, "rho_bar": 5.0}])
def test_impala_finds_it_with_other_settings_too(settings, train):
    _, trained = train("impala", "choice-given-obs", 3_000, **settings)

    assert rltrain.evaluate(trained, episodes=100).returns == (1.0,) * 100


@pytest.mark.parametrize("settings", [{"tau": 0.2}, {"kl": 0.5}, {"target_every": 1, "buffer_size": 1, "reuse": 1}])
def test_appo_finds_it_with_other_settings_too(settings, train):
    given = {"target_every": None} if "tau" in settings else {}
    _, trained = train("appo", "choice-given-obs", 3_000, **settings, **given)

    assert rltrain.evaluate(trained, episodes=100).returns == (1.0,) * 100


@each
@pytest.mark.parametrize(("env", "target", "steps"), [("box", [1.5], 5_000), ("box3", [0.5, -1.0, 3.0], 12_000)])
def test_a_box_action_lands_between_its_bounds(algo, env, target, steps, train):
    _, trained = train(algo, env, steps, **known(algo, {"normalize_return": True, "log_std_init": -0.5}))

    assert trained.act(np.zeros(1, np.float32)) == pytest.approx(target, abs=0.15)


@each
@pytest.mark.parametrize("env", ["masked", "masked-obs"])
def test_masked_finds_the_best_of_the_legal_actions(algo, env, train):
    """The environment raises at an illegal action; a run that meets one starts its actor anew."""
    result, trained = train(algo, env, 6_000)

    assert result.restarts == 0
    for legal in [*combinations(range(4), 2), *combinations(range(4), 3)]:
        mask = np.isin(np.arange(4), legal)
        seen = mask.astype(np.float32)
        obs = seen if env == "masked" else {"seen": seen, "action_mask": mask.astype(np.int8)}
        assert trained.act(obs, action_mask=mask) == max(legal)


@each
def test_dict_is_read_whole(algo, train):
    """Without any one of its parts at most 0.5 can be had; the exclusive or inside keeps some seeds below 1."""
    _, trained = train(algo, "dict", 12_000)

    assert rltrain.evaluate(trained, episodes=300).return_mean > 0.58


@each
def test_memory_is_solved_with_a_gru(algo, train):
    _, trained = train(algo, "memory", 20_000, **MEMORY)

    assert rltrain.evaluate(trained, episodes=100).return_mean == 1.0


@each
def test_memory_is_not_solved_without_one(algo, train):
    """Else the environment gives its secret away, and the test above says nothing."""
    result, trained = train(algo, "memory", 8_000)

    assert abs(rltrain.evaluate(trained, episodes=200).return_mean) < 0.3
    assert abs(result.train_return) < 0.4


@each
@pytest.mark.parametrize(("env", "steps"), [("image", 2_000), ("board", 2_000)])
def test_an_image_is_seen(algo, env, steps, train):
    settings = {"lr": 1e-3, "shared_torso": True, "normalize_return": True}
    _, trained = train(algo, env, steps, **known(algo, settings))

    assert rltrain.evaluate(trained, episodes=100).return_mean > 0.95
