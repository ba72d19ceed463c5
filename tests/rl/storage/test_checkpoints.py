"""What a run goes on from when things are not as they were left: said in one line, and nothing is lost silently."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from oracles.forged import forge_config

import rltrain
from rltrain import cli
from rltrain.errors import CheckpointError, RunFailed
from rltrain.storage import checkpoint

QUICK: dict[str, Any] = {
    "algo": "ppo", "env": "probe:counter", "workers": 0, "streams": 4, "unroll": 16, "epochs": 1, "minibatches": 1,
    "widths": (8,), "steps": 200, "checkpoint_every": 64, "eval_every": 0, "preset": "none", "quiet": True,
}  # fmt: skip


class Changing(gymnasium.Env[Any, Any]):
    """Its observations are as wide as `width` says; a step raises once `broken` is set."""

    width, broken = 2, False
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (self.width,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(self.width, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(self.width, np.float32), 1.0, False, False, {}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with three checkpoints."""
    return Path(rltrain.train(**QUICK, out=str(tmp_path)).run)


def damage(path: Path) -> None:
    file = path / checkpoint.STATE
    file.write_bytes(file.read_bytes()[:-1])


def refused(run: Path, capsys: Any) -> str:
    """The one line with which a resume of it is refused."""
    assert cli.main(["--resume", str(run), "--steps", "400"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return str(line)


def test_a_resume_alone_is_no_reason_for_a_checkpoint(tmp_path: Path) -> None:
    """Deliveries have about 55 steps, so two or three of them lie between two checkpoints."""
    asked = {**QUICK, "steps": 256, "checkpoint_every": 128, "keep": 20}
    first = rltrain.train(**asked, out=str(tmp_path))
    rltrain.train(resume=first.run, steps=448)

    steps = [int(path.name[5:]) for path in first.run.glob("checkpoints/step-*")]
    following = min(step for step in steps if step > first.steps)
    assert following // 128 == first.steps // 128 + 1
    assert following < 448


def test_without_latest_it_goes_on_from_the_newest_that_loads(run: Path, capsys: Any) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "latest").unlink()
    _, second, last = sorted(checkpoints.glob("step-*"))
    damage(last)

    assert cli.main(["--resume", str(run), "--steps", "400"]) == 0

    said = capsys.readouterr().out
    assert f"latest is missing: continuing from {second.name}, the newest that can be loaded" in said
    assert f"{last / checkpoint.STATE} is damaged" in said
    assert f"resumed {run} at step {int(second.name[5:]):,}" in said
    assert rltrain.load(run).path > last


def test_if_none_loads_nothing_is_begun_anew(run: Path, capsys: Any) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "latest").unlink()
    for path in checkpoints.glob("step-*"):
        damage(path)
    before = sorted(checkpoints.iterdir())

    assert "latest is missing, and no checkpoint can be loaded" in refused(run, capsys)

    assert sorted(checkpoints.iterdir()) == before


def test_killed_between_the_first_checkpoint_and_its_name(launch: Any, tmp_path: Path) -> None:
    flags = "--algo ppo --env probe:counter --workers 0 --streams 4 --unroll 16 --widths 8 --eval-every 0".split()
    flags += ["--checkpoint-every", "64", "--steps", "300", "--preset", "none", "--json"]
    whole = launch(tmp_path, *flags, "--out", "whole").result
    for n in range(1, 9):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        assert launch(tmp_path, *flags, "--out", "cut", kill=("rename", n)).status == -9
        (run,) = (tmp_path / "cut").iterdir()
        if any(run.glob("checkpoints/step-*")):
            break
    assert not (run / "checkpoints" / "latest").exists()

    done = launch(tmp_path, "--resume", str(run), "--json")

    assert "latest is missing: continuing from step-" in done.err
    assert done.result["fingerprint"] == whole["fingerprint"]


def test_another_environment_is_named_with_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = rltrain.train(**{**QUICK, "env": Changing}, out=str(tmp_path))
    monkeypatch.setattr(Changing, "width", 3)

    with pytest.raises(
        CheckpointError, match=r"another Changing than Changing is now: obs.shape was \(2,\), is \(3,\)$"
    ):
        rltrain.train(resume=result.run, env=Changing, steps=400)


def test_other_settings_do_not_fit(run: Path, capsys: Any) -> None:
    forge_config(run, widths=[9])

    line = refused(run, capsys)

    assert "does not fit this run: " in line
    assert "size mismatch" in line
    forge_config(run, widths=[8, 8])
    assert "does not fit this run: " in refused(run, capsys)


def test_actors_that_cannot_go_on_fail_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rltrain.rollout.actor.actor import Actor

    def fail(*_: Any) -> None:
        raise OSError("no more room")

    monkeypatch.setattr(Actor, "load", fail)
    monkeypatch.setattr("rltrain.rollout.supervision.BACKOFF", (0.0,))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}

    with pytest.raises(
        RunFailed, match=r"(?s)could not be resumed; its checkpoints .*: worker 0 failed 6 .*no more room"
    ):
        rltrain.train(resume=run, steps=400)

    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
