"""SAC, TD3 and DDPG on problems whose answer is known. See `envs/problems/probes.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles.probing import best_of_the_legal

import rltrain
from rltrain.storage import checkpoint

pytestmark = pytest.mark.learning

SMALL = {
    "streams": 8,
    "unroll": 4,
    "updates_per_step": 0.5,
    "capacity": 10_000,
    "batch": 64,
    "warmup": 200,
    "widths": (32, 32),
    "lr": 3e-3,
    "lr_q": 3e-3,
    "tau": 0.02,
    "gamma": 0.9,
}
OF = {"sac": {"temperature": 0.2}, "td3": {"noise": 0.3}, "ddpg": {"noise": 0.3}}
HARD = {"n_step": 3, "prioritized": True, "normalize_obs": True}
all_three = pytest.mark.parametrize("algo", ["sac", "td3", "ddpg"])


def value(result: Any, *inputs: float) -> list[float]:
    """What the critics say of one row: observation and action, or the observation alone, of each action."""
    parts = checkpoint.load(result.checkpoint).state["learner"]["parts"]
    arrays = parts["critics"] if "critics" in parts else parts["critic"]
    x, i = torch.tensor(inputs)[None, None, :], 0
    while f"dense.weight{i}" in arrays:
        x = torch.relu(x) if i else x
        weight, bias = (torch.as_tensor(np.asarray(arrays[f"dense.{name}{i}"])) for name in ("weight", "bias"))
        x, i = x @ weight.mT + bias, i + 1
    found: list[float] = x.amin(0)[0].tolist()
    return found


@all_three
@pytest.mark.parametrize("settings", [{}, HARD], ids=["plain", "n-step-prioritized-normalized"])
def test_endless_teaches_that_a_time_limit_is_not_a_death(algo, settings, train):
    """6.51 would be the value of ten steps and nothing after them. SAC's temperature is 0, so entropy adds nothing."""
    without = {"temperature": 0.0, "learn_temperature": False} if algo == "sac" else {}
    result, _ = train(algo, "endless-box", 4_000, tau=0.1, **without, **settings)

    assert value(result, 0.0, 0.3) == pytest.approx([10.0], abs=0.5)


def test_endless_for_discrete_actions(train):
    result, _ = train("sac", "endless", 4_000, tau=0.1)  # of one action there is no entropy

    assert value(result, 0.0) == pytest.approx([10.0], abs=0.5)


def test_two_steps_teaches_discounting(train):
    """If the endless one passes and this fails, the bootstrap after a termination is wrong."""
    result, _ = train("sac", "two-steps", 3_000)

    assert value(result, 0.0) == pytest.approx([0.9], abs=0.03)
    assert value(result, 1.0) == pytest.approx([1.0], abs=0.03)


@all_three
@pytest.mark.parametrize("settings", [{}, HARD], ids=["plain", "n-step-prioritized-normalized"])
@pytest.mark.parametrize(("env", "target", "steps"), [("box", [1.5], 3_000), ("box3", [0.5, -1.0, 3.0], 4_000)])
def test_a_box_action_lands_between_its_bounds(algo, settings, env, target, steps, train):
    _, trained = train(algo, env, steps, **settings)

    assert trained.act(np.zeros(1, np.float32)) == pytest.approx(target, abs=0.15)


@all_three
def test_bounds_that_are_not_symmetric_are_reached(algo, train):
    """0.5 or 3, as the observation says: both ends of the bounds, to the environment's own units."""
    surer = {"target_entropy": -3.0} if algo == "sac" else {}
    _, trained = train(algo, "box-given-obs", 4_000, **surer)

    assert trained.act(np.float32([-1.0])) == pytest.approx([0.5], abs=0.15)
    assert trained.act(np.float32([1.0])) == pytest.approx([3.0], abs=0.15)


@pytest.mark.parametrize("noise_kind", ["normal", "ou"])
def test_ddpg_explores_with_either_noise(noise_kind, train):
    _, trained = train("ddpg", "box", 3_000, noise_kind=noise_kind)

    assert trained.act(np.zeros(1, np.float32)) == pytest.approx([1.5], abs=0.15)


@pytest.mark.parametrize(
    ("env", "steps", "settings"),
    [
        ("choice", 1_000, {}),
        ("choice-given-obs", 1_500, {}),
        ("choice-given-obs", 1_500, HARD),
        ("discrete-start", 3_000, {}),
    ],
)
def test_the_best_discrete_action_is_found(env, steps, settings, train):
    _, trained = train("sac", env, steps, **settings)

    assert rltrain.evaluate(trained, episodes=100).returns == (1.0,) * 100


@pytest.mark.parametrize("env", ["masked", "masked-obs"])
@pytest.mark.parametrize("settings", [{}, {"n_step": 2, "prioritized": True}], ids=["plain", "n-step-prioritized"])
def test_masked_finds_the_best_of_the_legal_actions(env, settings, train):
    """The environment raises at an illegal action; a run that meets one starts its actor anew."""
    result, trained = train("sac", env, 6_000, target_entropy_share=0.3, **settings)

    assert result.restarts == 0
    assert best_of_the_legal(trained, env)


def test_dict_is_read_whole(train):
    _, trained = train("sac", "dict", 6_000)

    assert rltrain.evaluate(trained, episodes=300).return_mean > 0.58


def test_an_image_is_seen(train):
    _, trained = train("sac", "image", 1_200, lr=1e-3, lr_q=1e-3)

    assert rltrain.evaluate(trained, episodes=100).return_mean > 0.95
