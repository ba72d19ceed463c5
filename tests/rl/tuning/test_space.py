"""The search space: its text, its bounds, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from rltrain import algorithms
from rltrain.config.load import load
from rltrain.errors import ConfigError
from rltrain.tuning.space import Space, default_space

PPO = load({"algo": "ppo", "env": "CartPole-v1", "workers": 0})


def test_ranges_choices_and_one_minus() -> None:
    space = Space.of(
        "lr=1e-5..1e-2:log, 1-gamma=1e-3..1e-1:log,epochs=2..9,widths=64,64|32,normalize-obs=true|false", PPO
    )
    low, high = ({one.name: one.at(share) for one in space.dimensions} for share in (0.0, 1.0))
    assert space.settings(low) == {"lr": 1e-5, "gamma": 0.999, "epochs": 2, "widths": (64, 64), "normalize_obs": True}
    assert space.settings(high) == {"lr": 1e-2, "gamma": 0.9, "epochs": 9, "widths": (32,), "normalize_obs": False}
    assert space.dimensions[0].at(0.5) == pytest.approx(10**-3.5)
    assert sorted({space.dimensions[2].at(i / 100) for i in range(101)}) == list(range(2, 10))
    assert Space.from_json(space.to_json()) == space
    python = {"lr": (1e-5, 1e-2, "log"), "epochs": (2, 9), "widths": [(64, 64), (32,)]}
    assert [one.ends() for one in Space.of(python, PPO).dimensions] == [(1e-5, 1e-2), (2, 9), ((64, 64), (32,))]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("lrr=1..2", "--space: unknown setting lrr; did you mean lr?"),
        ("learning_rate=1..2", "--space: unknown setting learning_rate; did you mean lr?"),
        ("tau=0.1..0.2", "--space: unknown setting tau; it is a setting of"),
        ("steps=1..2", "--space steps: steps is a setting of the run; only those of ppo can vary"),
        ("lr=1e-2..1e-5", "--space lr: the range must grow"),
        ("lr=0..1:log", "--space lr: a range with :log must begin above 0"),
        ("lr=a..b", "--space lr: the bounds of a range must be numbers"),
        ("lr=1..2:lin", "--space lr: a range is LOW..HIGH or LOW..HIGH:log"),
        ("lr=nan..1", "--space lr: the range must grow"),
        ("epochs=1.5..3", "--space epochs: epochs is a whole number"),
        ("activation=tanh..relu", "--space activation: activation has no range"),
        ("activation=tanh|elu", "--space: activation elu: activation must be"),
        ("gamma=0.9..1.5", "--space: gamma 1.5: gamma must be at most 1"),
        ("lr=-1|1", "--space: lr -1: lr must be greater than 0"),
        ("lr=1e-3|1e-3", "--space lr: 0.001 is there twice"),
        ("gamma=0.9..0.99,1-gamma=0.1..0.2", "--space: gamma varies twice"),
        ("memory=gru|none,sequence=16|100", "--space: memory gru, sequence 100: sequence must divide unroll"),
        ("lr", "--space lr: has no values"),
        ("", "--space is empty"),
        ({"lr": 3}, "--space lr: must be text, a tuple"),
        ({"lr": (1.0, 2.0, "logs")}, "--space lr: a range is (low, high)"),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(given: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Space.of(given, PPO)
    assert str(caught.value).startswith(line), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algo", algorithms.names())
def test_every_algorithm_has_a_default_space(algo: str) -> None:
    config = load({"algo": algo, "env": "probe:box", "preset": "none", "workers": 0})
    space = Space.of(default_space(config), config)
    learns_values = "gamma" in algorithms.settings_class(algo).model_fields
    assert {"lr", *(("gamma",) if learns_values else ())} <= {one.setting for one in space.dimensions}
    assert len(space.dimensions) >= 3
