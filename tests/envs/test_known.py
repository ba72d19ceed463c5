"""Gymnasium's own environments change no setting of the process, and nothing else counts as one of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TransformReward

import rltrain
from rltrain.envs.known import PACKAGES, keeps_settings
from rltrain.envs.problems.probes import Counter
from rltrain.rollout.actor.isolated_env import IsolatedEnv
from rltrain.rollout.workers.in_process import LocalHandle
from rltrain.rollout.workers.process_state import LocalSettings


def newest(package: str) -> list[str]:
    """The newest version of each environment of a package."""
    found: dict[str, gymnasium.envs.registration.EnvSpec] = {}
    for spec in gymnasium.registry.values():
        if isinstance(spec.entry_point, str) and f"{spec.entry_point.split(':')[0]}.".startswith(package):
            found[spec.name] = max(spec, found.get(spec.name, spec), key=lambda one: one.version or 0)
    return sorted(spec.id for spec in found.values())


def play(env: gymnasium.Env[Any, Any]) -> None:
    env.reset(seed=3)
    over = False
    for _ in range(60):
        over = over or any(env.step(env.action_space.sample())[2:4])
        if over:
            env.reset()
            over = False


@pytest.mark.parametrize("package", PACKAGES)
def test_they_keep_all_settings(package: str) -> None:
    names = newest(package)
    assert len(names) >= 4
    settings, numpys = LocalSettings(), list[Any]()
    for name in names:
        with settings():
            env = gymnasium.make(name)
            env.action_space.seed(1)
            numpys.append(np.random.get_state(legacy=False))
        assert keeps_settings(env), name
        for _ in range(2):
            with settings():
                play(env)
        with settings():
            env.close()
            numpys.append(np.random.get_state(legacy=False))
        assert settings.unchanged, name
        assert str(numpys[-1]) == str(numpys[0]), name
    settings.end()


class Child(CartPoleEnv):
    """A class of a user's."""


def with_own_reward() -> Any:
    return TransformReward(gymnasium.make("CartPole-v1"), float)


def with_own_step() -> Any:
    env = gymnasium.make("CartPole-v1")
    env.unwrapped.step = functools.partial(CartPoleEnv.step, env.unwrapped)  # type: ignore[method-assign]
    return env


def with_own_reset_of_a_wrapper() -> Any:
    env = gymnasium.make("CartPole-v1")
    env.reset = env.unwrapped.reset  # type: ignore[method-assign]
    return env


@pytest.mark.parametrize(
    "make",
    [
        Child,
        with_own_reward,
        with_own_step,
        with_own_reset_of_a_wrapper,
        functools.partial(gymnasium.make, "CartPole-v1", render_mode="rgb_array"),
        Counter,
    ],
    ids=["subclass", "wrapper", "method of the object", "method of a wrapper", "pictures", "own class"],
)
def test_code_of_others_is_not_known(make: Callable[[], Any]) -> None:
    assert not keeps_settings(make())


def test_a_replaced_method_of_the_class_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    step = CartPoleEnv.step
    assert keeps_settings(gymnasium.make("CartPole-v1"))
    monkeypatch.setattr(CartPoleEnv, "step", lambda self, action: step(self, action))
    assert not keeps_settings(gymnasium.make("CartPole-v1"))


def seeds_numpy() -> Any:
    """Makes a known environment, and changes a setting before."""
    np.seterr(all="raise")
    return gymnasium.make("CartPole-v1")


class OwnTorso(torch.nn.Module):
    """A network of a user's."""

    features = 4

    def __init__(self, spec: Any) -> None:
        super().__init__()

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return obs


@pytest.mark.parametrize(
    ("settings", "separate", "isolated"),
    [
        ({"env": "CartPole-v1"}, "first", False),
        ({"env": Child}, "all", True),
        ({"env": seeds_numpy}, "all", False),
        ({"env": "CartPole-v1", "vector": "native"}, "all", True),
        ({"env": "CartPole-v1", "torso": OwnTorso}, "all", False),
        ({"env": "CartPole-v1", "algo": "a3c"}, "all", False),
    ],
    ids=["known", "unknown", "a setting changed", "native", "own network", "gradients by actors"],
)
def test_only_unknown_code_has_separate_settings(
    settings: dict[str, Any], separate: str, isolated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call, which makes the environment, always has them. Torch's are separate at each step of an actor."""
    calls, entered, steps = 0, 0, 0
    call, enter, step = LocalHandle.call, LocalSettings.__call__, IsolatedEnv.step

    def counted(self: LocalHandle, method: str, *args: Any) -> None:
        nonlocal calls
        calls += method == "collect"
        call(self, method, *args)

    def counted_settings(self: LocalSettings) -> Any:
        nonlocal entered
        entered += 1
        return enter(self)

    def counted_step(self: IsolatedEnv, *args: Any) -> None:
        nonlocal steps
        steps += 1
        step(self, *args)

    monkeypatch.setattr(IsolatedEnv, "step", counted_step)
    monkeypatch.setattr(LocalHandle, "call", counted)
    monkeypatch.setattr(LocalSettings, "__call__", counted_settings)
    quick: dict[str, Any] = {"algo": "ppo", "streams": 2, "unroll": 8, "steps": 96, "widths": (8,), "eval_every": 0}
    rltrain.train(**(quick | settings), workers=0, preset="none", quiet=True, checkpoint_every=0)
    assert calls >= 6
    assert steps == (8 * calls if isolated else 0)
    around = 3  # closing, the end, and perhaps the state for the last checkpoint
    if separate == "all":
        assert calls <= entered <= calls + around
    else:
        assert 1 <= entered <= 1 + around
