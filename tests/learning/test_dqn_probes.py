"""DQN and its switches on problems whose answer is known. See `envs/problems/probes.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles.probing import best_of_the_legal, masks, values

import rltrain

pytestmark = pytest.mark.learning

SMALL: dict[str, Any] = {
    "algo": "dqn",
    "streams": 4,
    "unroll": 4,
    "widths": (16,),
    "lr": 5e-3,
    "gamma": 0.9,
    "capacity": 2_000,
    "warmup": 200,
    "updates_per_step": 0.25,
    "target_every": 20,
    "epsilon_share": 0.5,
    "epsilon_end": 0.1,
}
C51 = {"atoms": 17, "v_min": -2.0, "v_max": 14.0, "lr": 2e-2, "adam_eps": 1e-5}
OF: dict[str, dict[str, Any]] = {
    "plain": {},
    "double-dueling": {"double": True, "dueling": True, "loss": "squared"},
    "n-step": {"n_step": 3, "tau": 0.05, "target_every": None},
    "prioritized": {"prioritized": True},
    "c51": C51,
    "noisy": {"noisy": True},
    "rainbow": {**C51, "double": True, "dueling": True, "n_step": 3, "prioritized": True, "noisy": True},
}
kinds = pytest.mark.parametrize("kind", OF)


@kinds
def test_constant_teaches_the_value_of_one_observation(kind, train):
    _, trained = train(kind, "constant", 2_000, updates_per_step=0.5)

    assert values(trained, 0.0) == pytest.approx([1.0], abs=0.05)


@kinds
def test_obs_reward_teaches_which_row_is_whose(kind, train):
    _, trained = train(kind, "obs-reward", 3_000)

    assert values(trained, -1.0, 1.0) == pytest.approx([-1.0, 1.0], abs=0.05)


@kinds
def test_two_steps_teaches_discounting(kind, train):
    """If the constant one passes and this fails, discounting or the bootstrap is wrong."""
    _, trained = train(kind, "two-steps", 4_000)

    assert values(trained, 0.0, 1.0) == pytest.approx([0.9, 1.0], abs=0.04)


@kinds
def test_endless_teaches_that_a_time_limit_is_not_a_death(kind, train):
    """6.51 would be the value of ten steps and nothing after them."""
    _, trained = train(kind, "endless", 6_000, lr=2e-2, updates_per_step=0.5)

    assert values(trained, 0.0) == pytest.approx([10.0], abs=0.5)


@kinds
@pytest.mark.parametrize(
    ("env", "steps", "settings"),
    [
        ("choice", 1_500, {}),
        ("choice-given-obs", 3_000, {}),
        ("discrete-start", 4_000, {}),
        ("choice-given-obs", 3_000, {"normalize_obs": True, "epsilon_per_stream": True}),
    ],
)
def test_the_best_action_is_found(kind, env, steps, settings, train):
    _, trained = train(kind, env, steps, **settings)

    assert rltrain.evaluate(trained, episodes=100).returns == (1.0,) * 100


@pytest.mark.parametrize(("kind", "env"), [*((kind, "masked") for kind in OF), ("plain", "masked-obs")])
def test_masked_finds_the_best_of_the_legal_actions(kind, env, train):
    """The environment raises at an illegal action; a run that meets one starts its actor anew.

    Observations do not tell the time, so a target is one of two numbers, with a third of the chance that the episode
    ends: their mean is the answer, which the Huber loss does not look for.
    """
    result, trained = train(kind, env, 8_000, lr=1e-2, lr_end=0.0, batch=64, loss="squared")

    assert result.restarts == 0
    assert best_of_the_legal(trained, env)
    if kind == "plain" and env == "masked":  # 61/24 a step, ended by a third: 61/24 / (1 - 0.6) to come
        for mask in masks():
            best = int(np.flatnonzero(mask)[-1])
            q = trained.policy.q(torch.from_numpy(mask.astype(np.float32))[None])[0, best].item()
            assert q == pytest.approx(best + 0.6 * 61 / 24 / 0.4, abs=0.7)


@pytest.mark.parametrize("kind", ["plain", "rainbow"])
def test_dict_is_read_whole(kind, train):
    """Without any one of its parts at most 0.5 can be had; the exclusive or inside keeps some seeds below 1."""
    _, trained = train(kind, "dict", 8_000, widths=(64,), batch=64)

    assert rltrain.evaluate(trained, episodes=300).return_mean > 0.58


@pytest.mark.parametrize("kind", ["plain", "double-dueling"])
def test_an_image_is_seen(kind, train):
    _, trained = train(kind, "image", 1_500, widths=(), lr=1e-3)

    assert rltrain.evaluate(trained, episodes=100).return_mean > 0.95


@pytest.mark.parametrize("kind", ["plain", "rainbow"])
def test_a_random_start_alone_does_not_find_the_cue(kind, train):
    """Without memory the cue is lost: 0 on average, or the environment gives its secret away."""
    _, trained = train(kind, "memory", 6_000)

    assert abs(rltrain.evaluate(trained, episodes=200).return_mean) < 0.3
