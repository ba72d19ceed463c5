"""Gymnasium's own environments change no setting of the process, and nothing else counts as one of them."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv, cartpole
from gymnasium.wrappers import TimeLimit, TransformReward

import rltrain
from rltrain.envs.known import PACKAGES, is_gymnasiums, keep_settings
from rltrain.envs.problems.probes import Counter
from rltrain.rollout.actor.isolated_env import IsolatedEnv
from rltrain.rollout.workers.in_process import LocalHandle
from rltrain.rollout.workers.process_state import LocalSettings

ENTRY = "gymnasium.envs.classic_control.cartpole:CartPoleEnv"
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "BipedalWalker-v3": [{"hardcore": True}],
    "CarRacing-v3": [{"domain_randomize": True, "continuous": False}],
    "FrozenLake-v1": [{"is_slippery": False}],
    "LunarLander-v3": [{"continuous": True, "enable_wind": True}],
    "Taxi-v4": [{"is_rainy": True, "fickle_passenger": True}],
}


def all_of(package: str) -> list[tuple[str, dict[str, Any]]]:
    """All environments of a package, and some with options."""
    ids = [spec.id for spec in gymnasium.registry.values() if is_gymnasiums(spec.id, {})]
    chosen = [name for name in ids if str(gymnasium.registry[name].entry_point).startswith(package[:-1])]
    return [(name, kwargs) for name in chosen for kwargs in ({}, *OPTIONS.get(name, []))]


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
    settings, numpys, played = LocalSettings(), list[Any](), set[str]()
    for name, kwargs in all_of(package):
        with settings():
            try:
                env = gymnasium.make(name, **kwargs)
            except ImportError:  # Pusher-v4 needs an older MuJoCo
                continue
            env.action_space.seed(1)
            numpys.append(np.random.get_state(legacy=False))
        assert keep_settings([env]), name
        for _ in range(2):
            with settings():
                play(env)
        with settings():
            env.close()
            numpys.append(np.random.get_state(legacy=False))
        assert settings.unchanged, name
        assert str(numpys[-1]) == str(numpys[0]), name
        played.add(env.unwrapped.spec.name)  # type: ignore[union-attr]
    settings.end()
    assert len(played) >= 4


class Child(CartPoleEnv):
    """A class of a user's."""


class Function:
    """Can be called, and is no function."""

    def __call__(self, *args: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    "make",
    [
        Child,
        lambda: TransformReward(gymnasium.make("CartPole-v1"), float),
        lambda: gymnasium.make("CartPole-v1", render_mode="rgb_array"),
        Counter,
    ],
    ids=["subclass", "wrapper", "pictures", "own class"],
)
def test_code_of_others_is_not_known(make: Callable[[], Any]) -> None:
    env = make()
    assert not keep_settings([env])
    assert not keep_settings([gymnasium.make("CartPole-v1"), env])


step, made = CartPoleEnv.step, functools.wraps(CartPoleEnv.step)
without_module: dict[str, Any] = {}
exec("def step(self, action): ...", without_module)
REPLACED: list[tuple[Any, str, Any]] = [
    (CartPoleEnv, "step", lambda self, action: step(self, action)),
    (CartPoleEnv, "step", made(lambda self, action: step(self, action))),
    (CartPoleEnv, "step", functools.partialmethod(Function())),
    (CartPoleEnv, "step", functools.partial(Function())),
    (CartPoleEnv, "step", without_module["step"]),
    (CartPoleEnv, "reset", Function()),
    (CartPoleEnv, "set_progress", lambda self, progress: None),
    (CartPoleEnv, "spec", property(lambda self: None)),
    (gymnasium.Env, "close", lambda self: None),
    (TimeLimit, "step", lambda self, action: self.env.step(action)),
    (cartpole, "batch_space", lambda *args: None),
    (cartpole, "batch_space", functools.partial(Function())),
]


@pytest.mark.parametrize(("owner", "name", "value"), REPLACED, ids=range(len(REPLACED)))
def test_a_replaced_function_is_not_known(owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = gymnasium.make("CartPole-v1")
    assert keep_settings([env])
    monkeypatch.setattr(owner, name, value, raising=False)
    assert not keep_settings([env])


def test_ids_with_code_of_the_users_are_not_gymnasiums() -> None:
    assert is_gymnasiums("CartPole-v1", {"sutton_barto_reward": True})
    assert not is_gymnasiums("CartPole-v1", {"reward": Function()})
    assert not is_gymnasiums(CartPoleEnv, {})
    assert not is_gymnasiums("Nothing-v0", {})
    own = {
        "own/Class-v0": {"entry_point": f"{__name__}:Child"},
        "own/Function-v0": {"entry_point": lambda: gymnasium.make("CartPole-v1")},
        "own/Wrapper-v0": {"entry_point": ENTRY, "additional_wrappers": (TransformReward.wrapper_spec(func=float),)},
        "own/Value-v0": {"entry_point": ENTRY, "kwargs": {"reward": Function()}},
    }
    try:
        for name, fields in own.items():
            gymnasium.register(name, **fields)  # type: ignore[arg-type]
        assert [is_gymnasiums(name, {}) for name in own] == [False] * len(own)
    finally:
        for name in own:
            gymnasium.registry.pop(name, None)


def makes_cartpole() -> Any:
    """Makes an environment of Gymnasium, whose methods it could replace."""
    return gymnasium.make("CartPole-v1")


def linear_torso(spec: Any) -> Any:
    """A function of a user's that makes a network of torch's parts only."""
    network: Any = torch.nn.Sequential(torch.nn.Linear(4, 4))
    network.features = 4
    return network


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
        ({"env": makes_cartpole}, "all", True),
        ({"env": "CartPole-v1", "vector": "native"}, "all", True),
        ({"env": "CartPole-v1", "torso": OwnTorso}, "all", True),
        ({"env": "CartPole-v1", "torso": linear_torso}, "all", True),
        ({"env": "CartPole-v1", "algo": "a3c"}, "all", True),
    ],
    ids=["known", "unknown", "own function", "native", "own network", "torch's parts", "gradients by actors"],
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


@pytest.mark.parametrize("change", ["nothing", "a setting", "a handler"])
def test_an_object_that_has_changed_settings_keeps_them_separate(change: str) -> None:
    """Also if it says that it changes none from now on: the first call, which makes it, may have changed some."""
    around = np.geterr()["over"], signal.getsignal(signal.SIGTERM)
    theirs = "raise" if change == "a setting" else around[0], signal.SIG_IGN if change == "a handler" else around[1]

    class Object:
        keeps_settings = True

        def __init__(self) -> None:
            np.seterr(over=theirs[0])  # type: ignore[arg-type]
            if change == "a handler":
                signal.signal(signal.SIGTERM, theirs[1])

        def look(self) -> Any:
            return np.geterr()["over"], signal.getsignal(signal.SIGTERM), type(os._exit).__name__

    handle = LocalHandle(0, Object)
    try:
        for _ in range(2):
            handle.call("look")
            found = handle.result()
            assert (np.geterr()["over"], signal.getsignal(signal.SIGTERM)) == around
        assert found[0] == theirs[0]
        assert found[2] == ("builtin_function_or_method" if change == "nothing" else "method")
    finally:
        handle.close()
