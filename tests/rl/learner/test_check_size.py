"""Networks that do not fit into memory are refused before they are made, with what makes them smaller."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rltrain.algorithms.networks.encoder import load_torso
from rltrain.algorithms.networks.sizes import largest_parts
from rltrain.config.load import load
from rltrain.envs.make import read_spec, resolve
from rltrain.envs.spaces import env_spec
from rltrain.errors import ConfigError
from rltrain.learner import algorithm
from rltrain.learner.algorithm import check_size

CAMERA = spaces.Box(0, 255, (1300, 1300, 3), np.uint8)  # 5 MB


class Camera(gymnasium.Env[Any, Any]):
    observation_space = CAMERA
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(CAMERA.shape, np.uint8), {}

    def step(self, action: Any) -> Any:
        return np.zeros(CAMERA.shape, np.uint8), 0.0, False, True, {}


def config_of(**values: Any) -> Any:
    return load({"env": "CartPole-v1", "algo": "ppo", "workers": 2, "streams": 2, **values})


def spec_of(observation: Any, action: Any = None) -> Any:
    return env_spec("X", observation, action or spaces.Discrete(2), None)


@pytest.mark.parametrize(
    ("observation", "action", "free", "words"),
    [
        (CAMERA, None, 20e9, ["needs a network of 8", "million weights", "ResizeObservation(env, (84, 84))"]),
        (CAMERA, None, 1e9, ["of memory, of which 953.7 MiB is free", "ResizeObservation"]),
        (spaces.Dict({"n": spaces.Discrete(2**40)}), None, 1e12, ["observation['n'] needs a network", "MultiDiscrete"]),
        (spaces.Discrete(2), spaces.Discrete(2**40), 1e12, ["the action needs a network", "fewer values"]),
        (spaces.Discrete(2), spaces.MultiDiscrete([2**40, 2]), 1e12, ["the action needs a network", "fewer values"]),
        (spaces.Box(-1, 1, (10**5,)), None, 200e6, ["observation needs a network of 6 million", "leave out"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_with_a_remedy(
    observation: Any, action: Any, free: float, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(algorithm, "free_memory", lambda: int(free))
    with pytest.raises(ConfigError) as caught:
        check_size(config_of(), spec_of(observation, action))
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_unrolls_that_do_not_fit_are_one_line_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "free_memory", lambda: int(1e9))
    with pytest.raises(
        ConfigError, match=r"unrolls of 32 steps of 64 streams take at least .* use a smaller --streams"
    ):
        check_size(config_of(streams=64), spec_of(spaces.Box(-1, 1, (10**5,))))


def test_a_large_network_that_fits_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "free_memory", lambda: int(1e15))
    (note,) = check_size(config_of(), spec_of(CAMERA))
    assert "million weights because of observation" in note
    assert check_size(config_of(), spec_of(spaces.Box(0, 255, (84, 84, 4), np.uint8))) == []
    assert check_size(config_of(torso="impala"), spec_of(spaces.Box(0, 255, (84, 84, 4), np.uint8))) == []


def test_the_wrapper_that_is_named_makes_the_network_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "free_memory", lambda: int(2e9))
    spec = read_spec(resolve(lambda: gymnasium.wrappers.ResizeObservation(Camera(), (84, 84))), 0)
    assert check_size(config_of(), spec) == []


@pytest.mark.parametrize("torso", ["auto", "nature", "impala"])
@pytest.mark.parametrize("shape", [(84, 84, 4), (3, 100, 61), (40, 50)])
def test_the_estimate_is_near_the_real_number(torso: str, shape: tuple[int, ...]) -> None:
    spec = spec_of(spaces.Box(0, 255, shape, np.uint8))
    real = sum(parameter.numel() for parameter in load_torso(torso, spec).parameters())
    estimate = largest_parts(spec, config_of(torso=torso).settings)[0].weights
    assert 0.4 * real < estimate < 1.1 * real + 512 * 64
