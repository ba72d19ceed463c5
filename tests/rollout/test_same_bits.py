"""The same seed gives the same weights to the last bit, for any number of workers and either backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rltrain.training_loop import train

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
QUICK = [  # the others: scripts/test -m sweep
    pytest.param(env, memory, marks=() if (env, memory) == ("CartPole-v1", "gru") else pytest.mark.sweep)
    for place, env in enumerate(ENVS)
    for memory in ("none", "gru")
]

pytestmark = pytest.mark.usefixtures("fork_server")


def fingerprint(folder: Path, env: str, **given: Any) -> str:
    streams = given.get("streams", 7)
    result = train(**(TINY | {"env": env, "out": str(folder), "steps": 8 * 3 * streams - 20} | given))
    assert result.restarts == 0
    return result.fingerprint


@pytest.mark.parametrize(("env", "memory"), QUICK)
def test_any_number_of_workers(env: str, memory: str, tmp_path: Path) -> None:
    """7 streams: not divisible by 2 or 3 workers."""
    expected = fingerprint(tmp_path, env, memory=memory, workers=0)
    assert fingerprint(tmp_path, env, memory=memory, workers=3) == expected
    assert fingerprint(tmp_path, env, memory=memory, workers=2, backend="local") == expected


def test_noise_that_is_held(tmp_path: Path) -> None:
    given = {"sde": True, "sde_every": 5, "squash": True}
    expected = fingerprint(tmp_path, "Pendulum-v1", workers=0, **given)
    assert fingerprint(tmp_path, "Pendulum-v1", workers=3, **given) == expected
    assert fingerprint(tmp_path, "Pendulum-v1", workers=2, inference="central", **given) == expected


@pytest.mark.parametrize("workers", [*(pytest.param(n, marks=pytest.mark.sweep) for n in (1, 2)), 8])
def test_eight_workers_and_fewer(workers: int, tmp_path: Path) -> None:
    """17 streams do not fit one width of padding, 8 workers' shares do."""
    given = {"memory": "gru", "streams": 17}
    expected = fingerprint(tmp_path, "CartPole-v1", workers=0, **given)
    assert fingerprint(tmp_path, "CartPole-v1", workers=workers, **given) == expected
    assert fingerprint(tmp_path, "CartPole-v1", workers=0, **given, seed=4) != expected


@pytest.mark.parametrize(
    "way",
    [
        {"workers": 3},
        pytest.param({"workers": 8}, marks=pytest.mark.sweep),
        pytest.param({"workers": 2, "backend": "local"}, marks=pytest.mark.sweep),
    ],
    ids=str,
)
def test_native_environments(way: dict[str, Any], tmp_path: Path) -> None:
    given = {"streams": 136, "vector": "native", "unroll": 16, "steps": 16 * 136 * 2}
    expected = fingerprint(tmp_path, "CartPole-v1", workers=0, **given)
    assert fingerprint(tmp_path, "CartPole-v1", **way, **given) == expected


@pytest.mark.parametrize(
    "env", ["probe:image", *(pytest.param(env, marks=pytest.mark.sweep) for env in ("probe:masked", "probe:dict"))]
)
def test_images_and_masks(env: str, tmp_path: Path) -> None:
    expected = fingerprint(tmp_path, env, workers=0, streams=5)
    assert fingerprint(tmp_path, env, workers=2, streams=5) == expected


def test_evaluations_and_checkpoints_change_nothing(tmp_path: Path) -> None:
    expected = fingerprint(tmp_path, "CartPole-v1", workers=2)
    watched = {"eval_every": 40, "eval_episodes": 2, "checkpoint_every": 40}
    assert fingerprint(tmp_path, "CartPole-v1", workers=2, **watched) == expected


# --- learning from a replay ---

DQN: dict[str, Any] = {
    "algo": "dqn", "preset": "none", "seed": 3, "unroll": 4, "widths": (16,), "warmup": 40, "batch": 16,
    "updates_per_step": 0.5, "target_every": 7, "normalize_obs": True, "eval_every": 0, "checkpoint_every": 0,
    "quiet": True,
}  # fmt: skip
RAINBOW: dict[str, Any] = {
    "double": True, "n_step": 3, "prioritized": True, "capacity": 120, "epsilon_per_stream": True,
}  # fmt: skip


def replayed(folder: Path, env: str, **given: Any) -> str:
    result = train(**(DQN | {"env": env, "out": str(folder), "steps": 300} | given))
    assert result.restarts == 0
    return result.fingerprint


SEQUENCES: dict[str, Any] = {"memory": "gru", "memory_size": 8, "length": 5, "burn_in": 3}


@pytest.mark.parametrize(
    ("env", "given"),
    [
        pytest.param("probe:masked", {}, id="masked"),
        pytest.param("CartPole-v1", RAINBOW, id="3 steps and priorities", marks=pytest.mark.sweep),
        pytest.param("CartPole-v1", {}, id="plain", marks=pytest.mark.sweep),
        pytest.param("probe:masked", RAINBOW, id="masked, 3 steps and priorities", marks=pytest.mark.sweep),
    ],
)
@pytest.mark.parametrize(
    "way",
    [
        *(pytest.param({"workers": n, "backend": "local"}, marks=pytest.mark.sweep) for n in (1, 2, 3)),
        {"workers": 3},
    ],
    ids=str,
)
def test_a_replay_with_any_number_of_workers(
    env: str, given: dict[str, Any], way: dict[str, Any], tmp_path: Path
) -> None:
    expected = replayed(tmp_path, env, workers=0, streams=7, **given)
    assert replayed(tmp_path, env, streams=7, **given, **way) == expected
    assert replayed(tmp_path, env, workers=0, streams=7, **given, seed=4) != expected


@pytest.mark.parametrize(
    "algo",
    [
        "td3",
        *(
            pytest.param(name, marks=pytest.mark.sweep)
            for name in ("sac, memory", "sac, gsde", "sac", "crossq", "ddpg")
        ),
    ],
)
def test_continuous_actions(algo: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"algo": algo, "streams": 5, "unroll": 2, "widths": (8,), "warmup": 40, "batch": 16}
    given |= {"updates_per_step": 0.3, "steps": 200, "n_step": 2, "prioritized": True, "normalize_obs": True}
    given |= {"preset": "none", "seed": 3, "eval_every": 0, "checkpoint_every": 0, "quiet": True}
    given |= {
        "sac, gsde": {"algo": "sac", "sde": True, "sde_every": 3},
        "sac, memory": {"algo": "sac", **SEQUENCES, "memory": "lstm"},
        "crossq": {"widths_q": (8,)},
    }.get(algo, {})

    def found(workers: int) -> str:
        return train(**given, env="Pendulum-v1", out=str(tmp_path), workers=workers).fingerprint

    expected = found(0)
    assert found(2) == found(3) == expected


HARD: dict[str, Any] = {"n_step": 3, "prioritized": True, "normalize_obs": True}
SEVENTEEN = [("dqn", "probe:masked", {**HARD, **SEQUENCES, "noisy": True, "epsilon_per_stream": True})]
MORE = [
    ("dqn", "probe:masked", {**HARD, "dueling": True, "noisy": True, "atoms": 5}),
    ("td3", "Pendulum-v1", HARD),
    ("dqn", "CartPole-v1", {**HARD, "double": True, "epsilon_per_stream": True}),
    ("sac", "Pendulum-v1", HARD),
    ("sac", "CartPole-v1", {}),
    ("sac", "probe:masked", HARD),
    ("ddpg", "Pendulum-v1", {"noise_kind": "ou"}),
]


@pytest.mark.parametrize(
    ("algo", "env", "given"), [*SEVENTEEN, *(pytest.param(*case, marks=pytest.mark.sweep) for case in MORE)]
)
def test_seventeen_streams_with_eight_workers(algo: str, env: str, given: dict[str, Any], tmp_path: Path) -> None:
    """Some have three, some two. In processes, and with 1, 2 and 3 too: tests/learning/test_eight_workers.py."""
    small: dict[str, Any] = {
        "algo": algo, "env": env, "preset": "none", "seed": 3, "streams": 17, "unroll": 3, "widths": (8,), "warmup": 51,
        "batch": 16, "updates_per_step": 0.2, "capacity": 170, "steps": 300, "eval_every": 0, "checkpoint_every": 0,
        "quiet": True, "out": str(tmp_path),
    }  # fmt: skip

    def found(workers: int, **more: Any) -> str:
        return train(**{**small, **given, **more}, workers=workers, backend="local").fingerprint

    assert found(8) == found(0) != found(0, seed=4)


@pytest.mark.parametrize(
    "way",
    [pytest.param({"workers": 8}, marks=pytest.mark.sweep), {"workers": 0, "replay_on_disk": True}],
    ids=["eight workers", "on disk"],
)
def test_a_replay_with_eight_workers_or_on_disk(way: dict[str, Any], tmp_path: Path) -> None:
    expected = replayed(tmp_path, "CartPole-v1", workers=0, streams=17, **RAINBOW)
    assert replayed(tmp_path, "CartPole-v1", streams=17, **RAINBOW, **way) == expected
