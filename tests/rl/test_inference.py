"""Runs whose actors hold no network: what is refused, what is kept in order, and that a killed run can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain.errors import ConfigError
from rltrain.learner.learner import Learner
from rltrain.reporting.metrics import read
from rltrain.storage import checkpoint

TINY: dict[str, Any] = {
    "env": "CartPole-v1", "workers": 3, "streams": 6, "unroll": 8, "steps": 1500, "widths": (8,), "preset": "none",
    "inference": "central", "eval_every": 0, "checkpoint_every": 0, "quiet": True,
}  # fmt: skip
ALGOS: dict[str, dict[str, Any]] = {
    "impala": {"wait": 2, "max_in_flight": 2, "max_lag": None, "sequence": 8},
    "appo": {"wait": 2, "max_in_flight": 2, "max_lag": None, "sequence": 8, "buffer_size": 2, "reuse": 2},
    "dqn": {"overlap": True, "warmup": 100, "batch": 8, "updates_per_step": 0.2},
}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"workers": 0},
            "inference central serves actor processes, and with workers 0 or backend local there are none",
        ),
        (
            {"backend": "local"},
            "inference central serves actor processes, and with workers 0 or backend local there are none",
        ),
        ({"algo": "a3c"}, "--inference central: the actors of a3c make gradients and need networks of their own"),
        ({"algo": "impala", "deterministic": True}, "--inference central: actors that do not wait for the learner"),
        ({"overlap": True, "deterministic": True}, "--inference central: actors that do not wait for the learner"),
    ],
)
def test_what_cannot_be_is_one_line(given: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        rltrain.train(**TINY | {"algo": "ppo"} | given, out=str(tmp_path))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(
    "algo", [pytest.param(name, marks=() if name == "impala" else pytest.mark.sweep) for name in ALGOS]
)
def test_nothing_is_lost_or_counted_twice(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors do not wait, weights move in the middle of unrolls, and evaluations and checkpoints come in between."""
    real, rows, late = Learner.step, dict.fromkeys(range(6), 0), list[int]()

    def step(self: Learner, unrolls: list[Any], progress: float) -> None:
        for unroll in unrolls:
            late.extend(self.version - int(version) for version in unroll.version)
            for stream, row in zip(unroll.stream.tolist(), unroll.row.tolist(), strict=True):
                assert row == rows[stream]
                rows[stream] += unroll.rows
        real(self, unrolls, progress)

    monkeypatch.setattr(Learner, "step", step)
    asked = TINY | ALGOS[algo] | {"algo": algo, "eval_every": 500, "eval_episodes": 2, "checkpoint_every": 400}
    result = rltrain.train(**asked, out=str(tmp_path))
    state = checkpoint.load(result.checkpoint).state
    assert state["rollout"]["steps"] == result.steps
    assert {int(unit["streams"][0]): int(unit["row"][0]) for unit in state["rollout"]["units"]} == rows
    assert min(late) >= 0
    means = [line["rollout/inference_rows"] for line in read(result.run) if "rollout/inference_rows" in line]
    assert means
    assert all(2 <= mean <= 6 for mean in means)
