"""The same seed gives the same weights to the last bit, for any number of workers and either backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl.train import train

TINY: dict[str, Any] = {
    "algo": "ppo",
    "preset": "none",
    "seed": 3,
    "unroll": 8,
    "sequence": 4,
    "epochs": 1,
    "minibatches": 2,
    "widths": (16,),
    "memory_size": 8,
    "normalize_obs": True,
    "normalize_return": True,
    "eval_every": 0,
    "checkpoint_every": 0,
    "quiet": True,
}
ENVS = ["CartPole-v1", "probe:multi-discrete", "probe:multi-binary", "probe:box", "probe:box3"]

pytestmark = pytest.mark.usefixtures("fork_server")


def fingerprint(folder: Path, env: str, **given: Any) -> str:
    streams = given.get("streams", 7)
    result = train(**(TINY | {"env": env, "out": str(folder), "steps": 8 * 3 * streams - 20} | given))
    assert result.restarts == 0
    return result.fingerprint


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("env", ENVS)
def test_any_number_of_workers(env: str, memory: str, tmp_path: Path) -> None:
    """7 streams: not divisible by 2 or 3 workers."""
    expected = fingerprint(tmp_path, env, memory=memory, workers=0)
    assert fingerprint(tmp_path, env, memory=memory, workers=3) == expected
    assert fingerprint(tmp_path, env, memory=memory, workers=2, backend="local") == expected


def test_eight_workers_and_fewer(tmp_path: Path) -> None:
    """17 streams do not fit one width of padding, 8 workers' shares do."""
    given = {"memory": "gru", "streams": 17}
    expected = fingerprint(tmp_path, "CartPole-v1", workers=0, **given)
    for workers in (1, 2, 8):
        assert fingerprint(tmp_path, "CartPole-v1", workers=workers, **given) == expected, f"{workers} workers"
    assert fingerprint(tmp_path, "CartPole-v1", workers=0, **given, seed=4) != expected


def test_native_environments(tmp_path: Path) -> None:
    given = {"streams": 136, "vector": "native", "unroll": 16, "steps": 16 * 136 * 2}
    expected = fingerprint(tmp_path, "CartPole-v1", workers=0, **given)
    for workers in (3, 8):
        assert fingerprint(tmp_path, "CartPole-v1", workers=workers, **given) == expected, f"{workers} workers"
    assert fingerprint(tmp_path, "CartPole-v1", workers=2, backend="local", **given) == expected


def test_images_and_masks(tmp_path: Path) -> None:
    for env in ("probe:image", "probe:masked", "probe:dict"):
        expected = fingerprint(tmp_path, env, workers=0, streams=5)
        assert fingerprint(tmp_path, env, workers=2, streams=5) == expected, env


def test_evaluations_and_checkpoints_change_nothing(tmp_path: Path) -> None:
    expected = fingerprint(tmp_path, "CartPole-v1", workers=2)
    watched = {"eval_every": 40, "eval_episodes": 2, "checkpoint_every": 40}
    assert fingerprint(tmp_path, "CartPole-v1", workers=2, **watched) == expected
