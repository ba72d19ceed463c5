"""--init-from: networks and normaliser of another run, a new optimiser; resume stays exact; refusals are one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rltrain
from rltrain.storage import checkpoint, retention

PPO: dict[str, Any] = {
    "algo": "ppo", "env": "CartPole-v1", "workers": 0, "streams": 2, "unroll": 16, "epochs": 1, "widths": (8,),
    "steps": 100, "eval_every": 0, "preset": "none", "quiet": True, "normalize_obs": True,
}  # fmt: skip
SAC: dict[str, Any] = {
    "algo": "sac", "env": "Pendulum-v1", "workers": 0, "warmup": 20, "batch": 8, "capacity": 200, "widths": (8,),
    "steps": 60, "eval_every": 30, "eval_episodes": 1, "preset": "none", "quiet": True, "keep": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> rltrain.Result:
    return rltrain.train(**PPO, seed=5, out=str(tmp_path_factory.mktemp("first")))


def parts(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = checkpoint.load(path).state["learner"]["parts"]
    return found


def at_step_0(run: Path) -> dict[str, dict[str, Any]]:
    return parts(run / "checkpoints" / "step-000000000000")


def test_a_run_begins_with_the_networks_and_the_normaliser(
    first: rltrain.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = rltrain.train(**{**PPO, "quiet": False}, init_from=str(first.run), out=str(tmp_path), keep=100)

    assert f"begins with policy of {first.checkpoint}" in capsys.readouterr().out
    before, after = parts(first.checkpoint), at_step_0(second.run)
    for name, value in before["policy"].items():
        np.testing.assert_array_equal(after["policy"][name], value)
    assert any("count" in name and float(np.sum(value)) > 1 for name, value in after["policy"].items())
    fresh = rltrain.train(**{**PPO, "steps": 1}, out=str(tmp_path / "fresh"))
    assert json.dumps(after["optimizer"], default=str) != json.dumps(before["optimizer"], default=str)
    assert second.fingerprint not in (first.fingerprint, fresh.fingerprint)
    config = json.loads((second.run / "run.json").read_text())["config"]
    assert config["init_from"] == str(first.checkpoint)


def test_settings_that_change_what_the_weights_compute_are_named(
    first: rltrain.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {**PPO, "quiet": False, "steps": 32, "init_from": str(first.run), "out": str(tmp_path)}
    rltrain.train(**asked)
    assert "come from a run with" not in capsys.readouterr().out
    rltrain.train(**asked, activation="relu")
    assert "the networks come from a run with activation tanh; this run has activation relu" in capsys.readouterr().out

    box = {"algo": "a2c", "env": "Pendulum-v1", "workers": 0, "steps": 40, "eval_every": 0, "preset": "none"}
    free = rltrain.train(**box, squash=False, out=str(tmp_path), quiet=True)
    rltrain.train(**box, init_from=str(free.run), out=str(tmp_path))
    assert "the networks come from a run with squash off; this run has squash on" in capsys.readouterr().out

    saved = checkpoint.load(free.checkpoint)  # of a version without the setting, and one of somebody else
    for before, known in (({}, False), ({"squash": [1] * 3000}, True)):
        settings = {name: value for name, value in saved.meta["config"]["settings"].items() if name != "squash"}
        saved.meta["config"]["settings"] = settings | before
        checkpoint.save(tmp_path, f"changed-{known}", saved.state, saved.meta)
        rltrain.train(**box, init_from=str(tmp_path / f"changed-{known}"), out=str(tmp_path))
        found = [line for line in capsys.readouterr().out.splitlines() if "come from a run with" in line]
        assert len(found) == known
        assert all(len(line) < 200 for line in found)

    few = {"algo": "rainbow", "env": "CartPole-v1", "workers": 0, "steps": 8, "eval_every": 0, "preset": "none"}
    few |= {"widths": (4,), "atoms": 5, "streams": 1, "warmup": 4, "batch": 2, "capacity": 50, "out": str(tmp_path)}
    first_bounds = rltrain.train(**few, v_min=-5.0, v_max=5.0, quiet=True)
    rltrain.train(**few, v_min=-5.0, v_max=50.0, init_from=str(first_bounds.run))
    assert "the networks come from a run with v_max 5.0; this run has v_max 50.0" in capsys.readouterr().out


def test_a_resume_does_not_need_the_other_run(first: rltrain.Result, tmp_path: Path) -> None:
    source = shutil.copytree(first.run, tmp_path / "source")
    whole = rltrain.train(**PPO, init_from=str(source), out=str(tmp_path / "whole"))
    cut = rltrain.train(**{**PPO, "steps": 100}, init_from=str(source), checkpoint_every=30, keep=9, out=str(tmp_path))
    shutil.rmtree(source)
    for folder in sorted((cut.run / "checkpoints").glob("step-*"))[2:]:
        shutil.rmtree(folder)  # as if it had been killed

    again = rltrain.train(resume=cut.run, quiet=True)

    assert (again.fingerprint, again.steps) == (whole.fingerprint, whole.steps)


def test_target_networks_are_copies_and_the_best_policy_alone_is_enough(tmp_path: Path) -> None:
    first = rltrain.train(**SAC, out=str(tmp_path / "first"))
    best = retention.find(first.run, best=True)[0].path

    whole = rltrain.train(**SAC, init_from=str(first.run), seed=1, out=str(tmp_path / "a"))
    policy = rltrain.train(**SAC, init_from=str(best), seed=1, out=str(tmp_path / "b"))

    before, after, other = parts(first.checkpoint), at_step_0(whole.run), at_step_0(policy.run)
    for name, value in before["critics"].items():
        np.testing.assert_array_equal(after["critics"][name], value)
        np.testing.assert_array_equal(after["target"][name], value)
        assert not np.array_equal(other["critics"][name], value) or not value.any()
    for name, value in parts(best)["policy"].items():
        np.testing.assert_array_equal(other["policy"][name], value)


def refused(first: rltrain.Result, tmp_path: Path, **more: Any) -> str:
    with pytest.raises(rltrain.ConfigError) as error:
        rltrain.train(**{**PPO, "init_from": str(first.run), "out": str(tmp_path), **more})
    assert not list(tmp_path.glob("ppo*"))
    (line,) = str(error.value).splitlines()
    return line


def test_what_does_not_fit_is_refused_with_what_fits(first: rltrain.Result, tmp_path: Path) -> None:
    line = refused(first, tmp_path, env="Acrobot-v1")
    assert line.startswith(f"--init-from {first.checkpoint}: policy.")
    assert " there and " in line

    line = refused(first, tmp_path, normalize_obs=False)
    assert " has no place in this run; what fits: --init-parts policy." in line
    selected = line.partition("--init-parts ")[2].split(",")
    rltrain.train(**{**PPO, "normalize_obs": False}, init_from=str(first.run), init_parts=selected, out=str(tmp_path))

    assert refused(first, tmp_path / "x", init_parts=("polcy",)) == (
        "--init-parts polcy: this run has no such part; it has policy"
    )
    assert refused(first, tmp_path / "x", init_from=None, init_parts=("policy",)).startswith("keyword init_parts: ")
    assert refused(first, tmp_path / "x", init_from="nowhere").endswith("nowhere does not exist")
    assert "cannot be changed by --resume" in refused_resume(first)


def refused_resume(first: rltrain.Result) -> str:
    with pytest.raises(rltrain.ConfigError) as error:
        rltrain.train(resume=first.run, init_from=str(first.run))
    return str(error.value)


def test_weights_that_are_not_finite_are_refused(first: rltrain.Result, tmp_path: Path) -> None:
    found = checkpoint.load(first.checkpoint)
    name = next(name for name, value in found.state["learner"]["parts"]["policy"].items() if value.ndim == 2)
    found.state["learner"]["parts"]["policy"][name][0, 0] = np.nan
    meta = {key: value for key, value in found.meta.items() if key not in ("files", "structure", "format")}
    bad = checkpoint.save(tmp_path, "step-000000000100", found.state, meta)

    with pytest.raises(rltrain.CheckpointError, match="holds numbers that are not finite"):
        rltrain.train(**PPO, init_from=str(bad), out=str(tmp_path / "out"))
