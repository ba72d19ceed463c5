"""From settings to an algorithm: what it refuses is one line, what is wrong with its code is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Self
from unittest.mock import ANY

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pydantic import model_validator

import rltrain
from rltrain import cli
from rltrain.algorithms.multi_agent.settings import MAPPOConfig
from rltrain.algorithms.on_policy.settings import A2CConfig, Epochs, Minibatches, PPOConfig
from rltrain.config.load import load
from rltrain.errors import ConfigError
from rltrain.learner.algorithm import make_algorithm
from rltrain.setup.environment import open_environment, settled


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("device mps cannot hold the policy"), ConfigError),
        (TypeError("Cannot convert a MPS Tensor to float64 dtype\nmore"), ConfigError),
        (TypeError("missing 1 required positional argument"), TypeError),
    ],
)
def test_what_an_algorithm_refuses_is_one_line(monkeypatch, error, raised):
    def refuses(*_):
        raise error

    config = load({"algo": "ppo", "env": "probe:choice", "preset": "none"})
    monkeypatch.setattr("rltrain.algorithms.algorithm_class", lambda name: refuses)
    monkeypatch.setattr("rltrain.learner.algorithm.in_user_code", lambda error: False)  # this file stands for ours
    with pytest.raises(raised) as caught:
        make_algorithm(config, open_environment(config)[0].spec)
    if raised is ConfigError:
        assert str(caught.value) == str(error).splitlines()[0]


def settled_settings(env: Any, algo: str = "ppo", **given: Any) -> tuple[Any, list[str]]:
    config = load({"algo": algo, "env": env, "preset": "none", "workers": 0, **given})
    config, notes = settled(config, open_environment(config)[0])
    return config.settings, notes


def test_box_actions_have_defaults_of_their_own() -> None:
    settings, notes = settled_settings("Pendulum-v1")

    assert settings == PPOConfig(**PPOConfig.BOX)
    assert (settings.unroll, settings.epochs, settings.minibatches, settings.entropy) == (256, 10, 32, 0.0)
    assert (settings.normalize_obs, settings.normalize_return) == (True, True)
    assert notes == [
        "defaults for Box actions: unroll 256, epochs 10, minibatches 32, entropy 0.0, normalize_obs on, "
        "normalize_return on"
    ]
    assert settled_settings("spread")[0].epochs == 10
    assert settled_settings("spread", "mappo") == (MAPPOConfig(), [])  # the authors have one set


class Task(gymnasium.Env[Any, Any]):
    """An environment with these spaces."""

    def __init__(self, action: str, obs: str = "numbers") -> None:
        self.action_space = {
            "discrete": spaces.Discrete(3),
            "multi_discrete": spaces.MultiDiscrete([2, 3]),
            "multi_binary": spaces.MultiBinary(2),
            "box": spaces.Box(-1, 1, (2,), np.float32),
            "half_open": spaces.Box(np.array([-1, -np.inf], np.float32), np.float32(1)),
        }[action]
        image, numbers = spaces.Box(0, 255, (48, 48, 3), np.uint8), spaces.Box(-1, 1, (3,), np.float32)
        both = spaces.Dict({"image": image, "numbers": numbers})
        self.observation_space = {"numbers": numbers, "image": image, "both": both}[obs]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def test_the_step_size_of_a2c_is_constant_for_box_actions_unless_it_is_given() -> None:
    box = {"env": Task, "algo": "a2c", "env_args": {"action": "box"}}

    assert settled_settings(**box)[0].lr_end is None
    assert settled_settings(**box, memory="gru")[0].lr_end is None
    assert settled_settings("spread", "a2c")[0].lr_end is None
    assert settled_settings(**box, lr_end=0.0)[0].lr_end == 0.0
    assert settled_settings("CartPole-v1", "a2c", memory="gru")[0].lr_end == 0.0


def test_a2c_keeps_actions_between_bounds_where_there_are_some() -> None:
    settings, notes = settled_settings(Task, "a2c", env_args={"action": "box"})
    assert settings == A2CConfig(**A2CConfig.BOX)
    assert settings.squash
    values = "lr_end none, lam 0.9, squash on, entropy 0.0, normalize_obs on, normalize_return on"
    assert notes == [f"defaults for Box actions: {values}"]

    settings, notes = settled_settings(Task, "a2c", env_args={"action": "half_open"})
    assert settings == A2CConfig(**{**A2CConfig.BOX, "squash": False})
    assert "squash off" in notes[0]
    config = load({"algo": "a2c", "env": Task, "env_args": {"action": "half_open"}, "workers": 0})
    made = open_environment(config)[0]
    make_algorithm(settled(config, made)[0], made.spec)
    wanted = config.model_copy(update={"settings": A2CConfig(squash=True)})
    with pytest.raises(ConfigError, match="squash keeps actions between bounds"):  # as the user has asked for it
        make_algorithm(settled(wanted, made)[0], made.spec)

    assert settled_settings("spread", "a2c")[0].squash
    config = load({"algo": "a2c", "env": "spread", "workers": 0})
    games = open_environment(config)[0]
    (group,) = games.spec.groups
    free = dataclasses.replace(group, name="free", action=made.spec.action)
    games = dataclasses.replace(games, spec=dataclasses.replace(games.spec, groups=(group, free)))
    assert not settled(config, games)[0].settings.squash
    assert not settled_settings("Pendulum-v1", "a2c", squash=False)[0].squash
    assert not settled_settings("Pendulum-v1", "a2c", preset="auto")[0].squash


@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "multi_binary"])
def test_discrete_actions_have_defaults_of_their_own(action: str) -> None:
    settings, notes = settled_settings(Task, env_args={"action": action})

    assert settings == PPOConfig(**PPOConfig.DISCRETE)
    assert (settings.unroll, settings.epochs, settings.minibatches, settings.lr_end) == (256, 10, 32, None)
    assert (settings.normalize_obs, settings.normalize_return) == (True, True)
    assert settings.entropy == 0.01
    assert notes == [
        "defaults for Discrete actions: unroll 256, epochs 10, minibatches 32, lr_end none, normalize_obs on, "
        "normalize_return on"
    ]


@pytest.mark.parametrize(
    ("env", "args", "given"),
    [
        (Task, {"action": "discrete", "obs": "image"}, {}),
        (Task, {"action": "multi_discrete", "obs": "both"}, {}),
        ("CartPole-v1", {}, {"memory": "gru"}),
        ("probe:masked", {}, {}),
        ("two-step", {}, {}),  # several agents
    ],
)
def test_images_memory_masks_and_several_agents_keep_the_defaults_of_the_fields(
    env: Any, args: dict[str, Any], given: dict[str, Any]
) -> None:
    assert settled_settings(env, env_args=args, **given) == (PPOConfig(**given), [])


def test_what_a_user_gives_wins_over_the_defaults_for_discrete_actions() -> None:
    given = {"epochs": 4, "lr_end": 0.0, "normalize_return": False, "unroll": 128, "streams": 2}
    settings, notes = settled_settings("CartPole-v1", **given)

    assert (settings.epochs, settings.lr_end, settings.normalize_return, settings.unroll) == (4, 0.0, False, 128)
    assert settings.minibatches == 4  # of 64 steps
    assert notes == ["defaults for Discrete actions: minibatches 4, normalize_obs on"]

    preset = load({"algo": "ppo", "env": "CartPole-v1"})
    assert settled(preset, open_environment(preset)[0]) == (preset.model_copy(update={"products": ANY}), [])


@pytest.mark.parametrize(
    ("env", "given", "expected"),
    [
        ("CartPole-v1", {}, (5e-4, 250, None, True)),
        ("CartPole-v1", {"tau": 0.01}, (5e-4, None, 0.01, True)),  # it replaces the copies
        ("CartPole-v1", {"lr": 1e-3, "double": False, "target_every": 10}, (1e-3, 10, None, False)),
        ("CartPole-v1", {"memory": "gru"}, (1e-4, 1000, None, False)),
        (Task, {"env_args": {"action": "discrete", "obs": "image"}}, (1e-4, 1000, None, False)),
        ("probe:masked", {}, (1e-4, 1000, None, False)),
    ],
)
def test_dqn_without_images_learns_in_larger_steps(env: Any, given: dict[str, Any], expected: Any) -> None:
    settings, _ = settled_settings(env, "dqn", **given)

    assert (settings.lr, settings.target_every, settings.tau, settings.double) == expected
    assert settled_settings("CartPole-v1", "rainbow")[0].target_every == 2000


def test_a2c_without_images_normalises() -> None:
    settings, _ = settled_settings("CartPole-v1", "a2c")
    assert (settings.lr_end, settings.normalize_obs, settings.normalize_return) == (None, True, True)
    settings, _ = settled_settings("CartPole-v1", "a2c", memory="gru")
    assert (settings.lr_end, settings.normalize_obs, settings.sequence) == (0.0, False, 5)


def test_a_sequence_of_a2c_is_the_unroll() -> None:
    """Unless it was given, or nothing else was."""
    assert A2CConfig(memory="gru", unroll=12).sequence == 12
    assert A2CConfig(memory="gru", unroll=12, sequence=3).sequence == 3
    assert (A2CConfig(memory="gru").unroll, A2CConfig(memory="gru").sequence) == (5, 5)
    with pytest.raises(ValueError, match="sequence must divide unroll, got sequence 5 and unroll 12"):
        A2CConfig(memory="gru", unroll=12, sequence=5)


def test_help_shows_the_defaults_of_both_kinds_of_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--algo", "ppo", "--help"])
    text = " ".join(capsys.readouterr().out.split())

    assert "[4; Box and Discrete actions: 10]" in text  # epochs
    assert "[0.0; Discrete actions: none]" in text  # lr_end
    assert "of one agent without images, action masks and memory" in text


def test_what_a_user_gives_wins_over_the_defaults_for_box_actions(tmp_path: Path) -> None:
    settings, notes = settled_settings("Pendulum-v1", epochs=4, normalize_obs=False, unroll=128, entropy=0.01)
    assert (settings.epochs, settings.normalize_obs, settings.unroll, settings.entropy) == (4, False, 128, 0.01)
    assert notes == ["defaults for Box actions: minibatches 16, normalize_return on"]

    settings, _ = settled_settings("Pendulum-v1", settings=PPOConfig(epochs=4, minibatches=4))
    assert (settings.epochs, settings.minibatches, settings.unroll) == (4, 4, 256)

    file = tmp_path / "mine.toml"
    file.write_text("[ppo]\nepochs = 3\n")
    config = load({"algo": "ppo", "env": "Pendulum-v1"}, file)
    assert settled(config, open_environment(config)[0])[0].settings.epochs == 3

    preset = load({"algo": "ppo", "env": "Pendulum-v1", "preset": "none", "streams": 1, "unroll": 32})
    assert settled(preset, open_environment(preset)[0])[0].settings.minibatches == 1  # not 32 of one step


def test_minibatches_of_a_memory_have_a_whole_sequence() -> None:
    settings = PPOConfig(memory="gru", sequence=128).for_actions("Box", 1)

    assert (settings.unroll, settings.minibatches) == (256, 2)


class Strict(PPOConfig):
    """A user's settings with a rule that the defaults for Box actions break."""

    @model_validator(mode="after")
    def _few_epochs(self) -> Self:
        if self.epochs > 5:
            raise ValueError("epochs must be at most 5")
        return self


def test_defaults_that_break_a_users_rule_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltrain.algorithms.settings_class", lambda name: Strict)
    with pytest.raises(ConfigError, match=r"defaults for Box actions: .*epochs must be at most 5") as caught:
        settled_settings("Pendulum-v1")
    assert "\n" not in str(caught.value)
    assert settled_settings("Pendulum-v1", epochs=3)[0].epochs == 3


class Mine(PPOConfig):
    """A user's settings: defaults that it changes are its own for every action."""

    epochs: Epochs = 3
    minibatches: Minibatches = 2


def test_a_subclass_keeps_the_defaults_that_it_changes() -> None:
    settings = Mine().for_actions("Box", 8)

    assert (settings.epochs, settings.minibatches, settings.unroll, settings.normalize_obs) == (3, 2, 256, True)


class Open(A2CConfig):
    """A user's settings: they declare the default that A2C's fields have, so that it holds for Box actions too."""

    squash: bool = False


class Bounded(PPOConfig):
    """A user's settings whose actions need bounds."""

    squash: bool = True


def test_a_default_that_a_subclass_declares_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltrain.algorithms.settings_class", lambda name: Open)
    settings, notes = settled_settings("Pendulum-v1")
    assert (settings.squash, settings.lam) == (False, 0.9)
    assert "squash" not in notes[0]

    monkeypatch.setattr("rltrain.algorithms.settings_class", lambda name: Bounded)
    config = load({"algo": "ppo", "env": Task, "env_args": {"action": "half_open"}, "workers": 0})
    made = open_environment(config)[0]
    with pytest.raises(ConfigError, match="squash keeps actions between bounds"):  # not turned off without a line
        make_algorithm(settled(config, made)[0], made.spec)


def test_a_run_keeps_and_says_the_defaults_for_its_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"steps": 64, "workers": 0, "eval_every": 0, "out": str(tmp_path), "unroll": 8, "streams": 2, "epochs": 1}
    run = rltrain.train(algo="ppo", env="Pendulum-v1", preset="none", **small).run

    saved = json.loads((run / "run.json").read_text())["config"]["settings"]
    assert (saved["normalize_obs"], saved["normalize_return"], saved["entropy"]) == (True, True, 0.0)
    line = "defaults for Box actions: minibatches 1, entropy 0.0, normalize_obs on, normalize_return on"
    assert capsys.readouterr().out.count(line) == 1

    run = rltrain.train(algo="ppo", env="Pendulum-v1", preset="none", **small, entropy=0.01, normalize_obs=False).run
    capsys.readouterr()
    rltrain.train(resume=run, steps=128)
    saved = json.loads((run / "run.json").read_text())["config"]["settings"]
    assert (saved["entropy"], saved["normalize_obs"], saved["normalize_return"]) == (0.01, False, True)
    assert "defaults for Box" not in capsys.readouterr().out
