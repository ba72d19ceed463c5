"""A setting that changes before the first update has the effect of one that had the value from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain import algorithms
from rltrain.algorithms.settings import changeable
from rltrain.errors import ConfigError
from rltrain.learner.changes import change_settings, checked_change

OTHER: dict[str, Any] = {
    "lr": 2e-3, "lr_q": 3e-3, "lr_temperature": 5e-3, "lr_end": 1e-3, "lr_end_share": 0.25, "max_grad_norm": 0.01,
    "lam": 0.7, "entropy": 0.2, "entropy_end": 0.1, "value": 0.3, "clip": 0.05, "clip_end": 0.01, "value_clip": 0.02,
    "max_kl": 1e-4, "kl": 0.5, "tau": 0.3, "epsilon": 0.7, "epsilon_end": 0.3, "epsilon_share": 0.6, "noise": 0.4,
    "noise_end": 0.2, "smoothing": 0.6, "smoothing_clip": 0.8, "regularize": 0.1,
    "q_weight": 1.0, "advantage_factor": 0.4, "max_weight": 1.01, "expectile": 0.9, "conservative": 0.7,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "preset": "none", "workers": 0, "streams": 2, "unroll": 8, "widths": (8, 8), "eval_every": 0,
    "checkpoint_every": 0, "steps": 120, "quiet": True, "minibatches": 1, "epochs": 2, "warmup": 40, "batch": 8,
    "capacity": 200, "updates_per_step": 0.3, "target_every": None, "tau": 0.1, "wait": 2, "widths_q": (8, 8),
    "normalize_obs": False, "policy_delay": 1, "overlap": False,
}  # fmt: skip
WORLDS = dict.fromkeys(("ddpg", "td3", "tqc", "crossq", "sac", "droq", "redq", "td3_bc", "cql"), "probe:box")
CASES = [(algo, WORLDS.get(algo, "two-step" if algorithms.for_several(algo) else "CartPole-v1"))
         for algo in algorithms.names()]  # fmt: skip
CASES += [("ppo", "generations"), ("sac", "CartPole-v1")]
EXPLORATION = ("epsilon", "noise")  # actors get these with the weights of the next update, not before
MAIN = {("ppo", "generations"), ("dqn", "CartPole-v1")}


class Change(rltrain.Callback):
    """Changes settings before the first update."""

    def __init__(self, changes: dict[str, Any]) -> None:
        self.changes = changes

    def on_start(self, run: rltrain.RunView) -> None:
        for name, value in self.changes.items():
            run.change(name, value)


@pytest.mark.parametrize(
    ("algo", "env"),
    [pytest.param(*case, marks=() if case in MAIN else pytest.mark.sweep) for case in CASES],
)
def test_all_changes_together_are_as_if_they_had_been_given(algo: str, env: str, tmp_path: Path) -> None:
    own = algorithms.settings_class(algo)
    given = {
        key: value for key, value in SMALL.items() if key in {**own.model_fields, **rltrain.RunConfig.model_fields}
    }
    if "tau" in own.model_fields and "target_every" not in own.model_fields:
        given.pop("target_every", None)
    if "tau" not in own.model_fields:
        given.pop("target_every", None)
    changes = {name: OTHER[name] for name in changeable(own) if not name.startswith(EXPLORATION)}
    assert changes
    if getattr(own, "data_only", False):
        some = {"workers": 0, "steps": 90, "warmup": 40, "eval_every": 0, "checkpoint_every": 0, "quiet": True}
        rltrain.train(algo="sac", env=env, **some, out=str(tmp_path / "sac"), record=str(tmp_path / "data"))
        given["data"] = str(tmp_path / "data")

    def fingerprint(callbacks: list[Any], **more: Any) -> str:
        out = str(tmp_path / "runs")
        return rltrain.train(algo=algo, env=env, **{**given, **more}, out=out, callbacks=callbacks).fingerprint

    changed = fingerprint([Change(changes)])
    assert changed == fingerprint([], **changes)
    assert changed != fingerprint([])


@pytest.mark.parametrize(
    ("algo", "env", "changes", "buffer", "value"),
    [
        ("dqn", "CartPole-v1", {"epsilon": 0.7, "epsilon_end": 0.7}, "epsilon", 0.7),
        ("td3", "probe:box", {"noise": 0.4}, "sigma", 0.4),
        pytest.param("maddpg", "spread", {"noise": 0.4, "noise_end": 0.4}, "sigma", 0.4, marks=pytest.mark.sweep),
    ],
)
def test_actors_get_changed_exploration_with_the_next_weights(
    algo: str, env: str, changes: dict[str, Any], buffer: str, value: float, tmp_path: Path
) -> None:
    class Look(Change):
        def on_end(self, run: rltrain.RunView) -> None:
            self.seen = run.modules["policy"].state_dict()[buffer].flatten().tolist()

    own = algorithms.settings_class(algo)
    few = {key: value for key, value in SMALL.items() if key not in ("minibatches", "epochs", "wait", "target_every")}
    given = {key: value for key, value in few.items() if key in {**own.model_fields, **rltrain.RunConfig.model_fields}}
    look = Look(changes)
    rltrain.train(algo=algo, env=env, **given, out=str(tmp_path), callbacks=[look])

    assert look.seen == pytest.approx([value])


def test_what_actors_use_cannot_change() -> None:
    """The actors of A3C make its gradients."""
    settings = rltrain.A3CConfig()

    assert changeable(type(settings)) == ["lr", "lr_end"]
    with pytest.raises(ConfigError, match="entropy cannot change during a run; what can: lr, lr_end"):
        checked_change(settings, "entropy", 0.5)


def test_rules_between_settings_hold() -> None:
    with pytest.raises(ConfigError, match="either copies every target_every updates or follows by tau"):
        checked_change(rltrain.DQNConfig(target_every=10), "tau", 0.5)


def test_an_algorithm_without_a_config_is_told() -> None:
    class Plain:
        def parts(self) -> dict[str, Any]:
            return {}

    plain: Any = Plain()
    with pytest.raises(ConfigError, match="Plain keeps no config"):
        change_settings(plain, {"lr": 1.0})
