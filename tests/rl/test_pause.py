"""`--pause-at`: the run ends at a checkpoint, and its continuation is the unbroken run to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain.reporting.metrics import read

PPO: dict[str, Any] = {
    "algo": "ppo", "env": "probe:counter", "steps": 400, "streams": 2, "unroll": 10, "widths": (4,), "workers": 0,
    "eval_every": 40, "checkpoint_every": 40, "eval_episodes": 1, "epochs": 1, "quiet": True,
}  # fmt: skip
DQN = {**PPO, "algo": "dqn", "unroll": 4, "warmup": 20, "batch": 4}
DQN.pop("epochs")


def evaluations(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["eval/return_mean"]) for line in read(run) if "eval/return_mean" in line]


@pytest.mark.parametrize("settings", [pytest.param(PPO, marks=pytest.mark.sweep), DQN], ids=["ppo", "dqn"])
def test_a_run_that_pauses_is_the_first_part_of_the_unbroken_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    unbroken = rltrain.train(**settings, out=str(tmp_path / "a"))
    part = rltrain.train(**settings, out=str(tmp_path / "b"), pause_at=100)
    assert part.stopped == "pause"
    assert 100 <= part.steps < 160  # the first checkpoint from step 100 on
    assert evaluations(part.run) == [one for one in evaluations(unbroken.run) if one[0] <= part.steps]
    assert rltrain.train(resume=part.run, pause_at=100, quiet=True).steps == part.steps  # it is there already
    assert 240 <= rltrain.train(resume=part.run, pause_at=240, quiet=True).steps < 280
    end = rltrain.train(resume=part.run, quiet=True)
    assert (end.stopped, end.fingerprint) == ("steps", unbroken.fingerprint)
    assert evaluations(end.run) == evaluations(unbroken.run)
