"""DQN and SAC with memory solve what they cannot solve without: a cue that is shown once, and hidden velocities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rltrain

pytestmark = [pytest.mark.learning, pytest.mark.timeout(3600)]

QUIET: dict[str, Any] = {
    "workers": 0, "preset": "none", "eval_every": 0, "checkpoint_every": 0, "quiet": True, "unroll": 4,
}  # fmt: skip
CUE: dict[str, Any] = {"env": "probe:memory", "streams": 8, "warmup": 400, "widths": (16,), "capacity": 4000}
OF: dict[str, dict[str, Any]] = {
    "dqn": {
        **CUE, "steps": 5000, "lr": 2e-3, "target_every": 50, "updates_per_step": 0.05, "epsilon_share": 0.4,
    },
    "sac": {**CUE, "steps": 4000, "lr": 3e-3, "tau": 0.03, "updates_per_step": 0.08, "target_entropy": 0.1},
}  # fmt: skip
GRU: dict[str, Any] = {"memory": "gru", "memory_size": 16, "length": 8, "burn_in": 4, "batch": 16}
CARTPOLE: dict[str, Any] = {
    "algo": "dqn", "env": "probe:stateless-cartpole", "streams": 8, "unroll": 8, "steps": 80_000, "capacity": 50_000,
    "warmup": 500, "lr": 2e-3, "lr_end": 0.0, "n_step": 3, "double": True, "tau": 0.01, "epsilon_share": 0.4,
    "epsilon_end": 0.06, "widths": (128,), "activation": "relu", "normalize_obs": True, "updates_per_step": 0.125,
}  # fmt: skip
PENDULUM: dict[str, Any] = {
    "algo": "sac", "env": "probe:stateless-pendulum", "streams": 4, "steps": 16_000, "capacity": 20_000, "warmup": 500,
    "lr": 1e-3, "gamma": 0.98, "widths": (64, 64), "updates_per_step": 0.5,
}  # fmt: skip


def greedy(out: Path, episodes: int, **settings: Any) -> float:
    """The mean return of greedy episodes after a run."""
    run = rltrain.train(**{**QUIET, **settings}, out=str(out)).run
    return rltrain.evaluate(rltrain.load(run), episodes=episodes).return_mean


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("algo", OF)
def test_the_cue_is_remembered_with_a_memory_only(algo: str, seed: int, tmp_path: Path) -> None:
    asked = {"algo": algo, "seed": seed, **OF[algo]}

    assert greedy(tmp_path, 200, **asked, **GRU) == 1.0
    assert abs(greedy(tmp_path, 200, **asked, batch=128)) < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_cartpole_without_velocities_is_balanced_with_a_memory_only(seed: int, tmp_path: Path) -> None:
    memory = {"memory": "gru", "memory_size": 64, "length": 16, "burn_in": 8, "batch": 32}

    assert greedy(tmp_path, 30, **CARTPOLE, **memory, seed=seed) > 400
    assert greedy(tmp_path, 30, **CARTPOLE, batch=512, seed=seed) < 80


@pytest.mark.parametrize("seed", range(3))
def test_pendulum_without_its_velocity_is_held_up_with_a_memory_only(seed: int, tmp_path: Path) -> None:
    memory = {"memory": "gru", "memory_size": 32, "length": 16, "burn_in": 8, "batch": 16}

    assert greedy(tmp_path, 30, **PENDULUM, **memory, seed=seed) > -200
    assert greedy(tmp_path, 30, **PENDULUM, batch=128, seed=seed) < -800
