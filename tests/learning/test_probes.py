"""PPO and A2C on problems whose answer is known. Which one fails says what is broken; see `envs/problems/probes.py`."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.probing import best_of_the_legal, values

import rltrain

pytestmark = pytest.mark.learning

SMALL = {
    "streams": 8,
    "unroll": 16,
    "widths": (16,),
    "lr": 1e-2,
    "gamma": 0.9,
    "entropy": 0.0,
}
RAW = {"normalize_obs": False, "normalize_return": False}  # values are those of the rewards themselves
OF = {"ppo": {"epochs": 4, "minibatches": 2, "lr_end": 0.0, **RAW}, "a2c": {"unroll": 8}}
MEMORY = {"memory": "gru", "memory_size": 16, "sequence": 8, "normalize_advantage": True}
both = pytest.mark.parametrize("algo", ["ppo", "a2c"])


@both
def test_constant_teaches_the_value_of_one_observation(algo, train):
    _, trained = train(algo, "constant", 2_000)

    assert values(trained, 0.0) == pytest.approx([1.0], abs=0.05)


@both
def test_obs_reward_teaches_which_row_is_whose(algo, train):
    _, trained = train(algo, "obs-reward", 3_000)

    assert values(trained, -1.0, 1.0) == pytest.approx([-1.0, 1.0], abs=0.05)


@both
def test_two_steps_teaches_discounting(algo, train):
    """If the constant one passes and this fails, discounting or the bootstrap is wrong."""
    _, trained = train(algo, "two-steps", 4_000)

    assert values(trained, 0.0, 1.0) == pytest.approx([0.9, 1.0], abs=0.03)


@both
def test_endless_teaches_that_a_time_limit_is_not_a_death(algo, train):
    """6.51 would be the value of ten steps and nothing after them."""
    _, trained = train(algo, "endless", 6_000)

    assert values(trained, 0.0) == pytest.approx([10.0], abs=0.5)


@both
@pytest.mark.parametrize(
    ("env", "steps", "best", "settings"),
    [
        ("choice", 1_500, 1.0, {}),
        ("choice-given-obs", 3_000, 1.0, {}),
        ("discrete-start", 4_000, 1.0, {}),
        ("multi-discrete", 3_000, 2.0, {}),
        ("multi-binary", 5_000, 3.0, {}),
        ("choice-given-obs", 3_000, 1.0, {"normalize_obs": True, "normalize_return": True, "shared_torso": True}),
    ],
)
def test_the_best_action_is_found(algo, env, steps, best, settings, train):
    _, trained = train(algo, env, steps, **settings)

    assert rltrain.evaluate(trained, episodes=100).returns == (best,) * 100


@both
@pytest.mark.parametrize(("env", "target", "steps"), [("box", [1.5], 5_000), ("box3", [0.5, -1.0, 3.0], 10_000)])
def test_a_box_action_lands_between_its_bounds(algo, env, target, steps, train):
    _, trained = train(algo, env, steps, normalize_advantage=True, log_std_init=-0.5)

    assert trained.act(np.zeros(1, np.float32)) == pytest.approx(target, abs=0.15)


@both
@pytest.mark.parametrize("env", ["masked", "masked-obs"])
def test_masked_finds_the_best_of_the_legal_actions(algo, env, train):
    """The environment raises at an illegal action; a run that meets one starts its actor anew."""
    result, trained = train(algo, env, 6_000)

    assert result.restarts == 0
    assert best_of_the_legal(trained, env)


@both
def test_dict_is_read_whole(algo, train):
    """Without any one of its parts at most 0.5 can be had; the exclusive or inside keeps some seeds below 1."""
    _, trained = train(algo, "dict", 12_000, normalize_advantage=True)

    assert rltrain.evaluate(trained, episodes=300).return_mean > 0.58


@both
def test_memory_is_solved_with_a_gru(algo, train):
    settings = {"entropy": 0.03, "lr": 5e-3} if algo == "ppo" else {}
    _, trained = train(algo, "memory", 12_000 if algo == "ppo" else 20_000, **MEMORY, **settings)

    assert rltrain.evaluate(trained, episodes=100).return_mean == 1.0


@both
def test_memory_is_not_solved_without_one(algo, train):
    """Else the environment gives its secret away, and the test above says nothing."""
    result, trained = train(algo, "memory", 8_000)

    assert abs(rltrain.evaluate(trained, episodes=200).return_mean) < 0.3
    assert abs(result.train_return) < 0.4


@both
def test_an_image_is_seen(algo, train):
    settings = {"lr": 1e-3, "normalize_advantage": True, "shared_torso": True}
    _, trained = train(algo, "image", 1_500, **settings)

    assert rltrain.evaluate(trained, episodes=100).return_mean > 0.95
