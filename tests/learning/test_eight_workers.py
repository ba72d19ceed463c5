"""Eight processes and none give the same weights for every kind of action, with and without memory; takes minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rltrain.training_loop import train

pytestmark = [pytest.mark.learning, pytest.mark.usefixtures("fork_server")]

ENVS = ["CartPole-v1", "probe:multi-discrete", "probe:multi-binary", "probe:masked", "probe:box", "probe:box3"]


def fingerprint(folder: Path, **given: Any) -> str:
    settings = {"algo": "ppo", "preset": "none", "seed": 5, "streams": 11, "unroll": 16, "sequence": 8, "epochs": 2}
    settings |= {"normalize_obs": True, "normalize_return": True, "eval_every": 0, "checkpoint_every": 0, "quiet": True}
    return train(**{**settings, "out": str(folder), "steps": 11 * 16 * 4 - 50, **given}).fingerprint


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("env", ENVS)
def test_eight_workers_and_none(env: str, memory: str, tmp_path: Path) -> None:
    """11 streams: some of the 8 actors have two, some one."""
    expected = fingerprint(tmp_path, env=env, memory=memory, workers=0)
    for workers in (1, 8):
        assert fingerprint(tmp_path, env=env, memory=memory, workers=workers) == expected, f"{workers} workers"


HARD: dict[str, Any] = {"n_step": 3, "prioritized": True, "normalize_obs": True}
REPLAYS = [
    ("dqn", "CartPole-v1", {**HARD, "double": True}),
    ("sac", "Pendulum-v1", HARD),
    ("sac", "CartPole-v1", HARD),
    ("td3", "Pendulum-v1", HARD),
    ("ddpg", "Pendulum-v1", {**HARD, "noise_kind": "ou"}),
]


@pytest.mark.parametrize(("algo", "env", "given"), REPLAYS)
def test_a_replay_with_any_number_of_workers(algo: str, env: str, given: dict[str, Any], tmp_path: Path) -> None:
    """17 streams, in processes."""
    settings = {"algo": algo, "env": env, "preset": "none", "seed": 5, "streams": 17, "unroll": 4, "widths": (16,)}
    settings |= {"warmup": 100, "batch": 32, "updates_per_step": 0.2, "capacity": 510, "steps": 1000}
    settings |= {"eval_every": 0, "checkpoint_every": 0, "quiet": True, "out": str(tmp_path), **given}
    expected = train(**settings, workers=0).fingerprint
    for workers in (1, 2, 3, 8):
        assert train(**settings, workers=workers).fingerprint == expected, f"{workers} workers"
