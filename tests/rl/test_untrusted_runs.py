"""Runs that somebody else made: a resume changes nothing outside of them, and a damaged one is refused in one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import safetensors.numpy
from oracles.forged import forge, forge_config, forge_state

import rltrain
from rltrain import cli
from rltrain.errors import CheckpointError
from rltrain.storage import checkpoint
from rltrain.storage.checkpoint import META
from rltrain.storage.run_folder import RUN_FILE, saved_config
from rltrain.storage.schema import check_sizes, read_spec

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "mutations.py"


@pytest.fixture(scope="module")
def mutations() -> Any:
    """scripts/mutations.py as a module."""
    spec = importlib.util.spec_from_file_location("mutations", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(mutations: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    runs: dict[str, Path] = mutations.templates(tmp_path_factory.mktemp("made"), ("ppo", "dqn"))
    return runs


@pytest.fixture
def run(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of DQN that somebody else made, with segments of its replay."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    folder = tmp_path / "run"
    shutil.copytree(made["dqn"], folder)
    assert any((folder / "checkpoints" / "segments").iterdir())
    return folder


def newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()


def refused(run: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert cli.main(["--resume", str(run), "--steps", "240", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_changed_runs_do_nothing_but_end_in_one_line(
    mutations: Any, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample of the changes that scripts/mutations.py tries by the thousand: two of each kind."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    mutations.signature.sign("")
    reports = list(mutations.cases(made, tmp_path, range(2 * len(mutations.MUTATIONS))))

    assert [f"{report.change}: {report.faults} {report.text}" for report in reports if report.faults] == []
    assert {report.status for report in reports} >= {0, 2}
    assert max(report.memory for report in reports) < 2**31


def test_the_sandbox_notices_what_it_looks_for(mutations: Any, made: dict[str, Path], tmp_path: Path) -> None:
    """A user's consent lets the code of a run do everything that is counted."""
    (tmp_path / "outside").mkdir()
    case = mutations.Case(tmp_path, mutations.random.Random(0))
    shutil.copytree(made["ppo"], case.run)
    (tmp_path / "payload.py").write_text(
        f"import os, pathlib\npathlib.Path({str(tmp_path / 'executed')!r}).touch()\n"
        f"open({str(tmp_path / 'outside' / 'new')!r}, 'w').close()\nos.system('true')\nraise RuntimeError\n"
    )
    forge_config(case.run, torso="payload:X")

    def trusting(path: str) -> Any:
        return load(path, trust=True)

    load, mutations.rltrain.load = rltrain.load, trusting
    try:
        report = mutations.try_case(case, "load", "")
    finally:
        mutations.rltrain.load = load

    kinds = {fault.partition(":")[0] for fault in report.faults}
    assert kinds == {"executed", "outside", "program", "status", "traceback"}


def test_segments_that_are_elsewhere_are_not_removed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resume removes segments that no checkpoint lists."""
    elsewhere = tmp_path / "documents"
    shutil.move(run / "checkpoints" / "segments", elsewhere)
    (elsewhere / "thesis.txt").write_text("precious")
    (elsewhere / f"{'0' * 64}.safetensors").write_text("precious")
    (run / "checkpoints" / "segments").symlink_to(elsewhere)
    before = sorted(path.name for path in elsewhere.iterdir())

    assert "segments is a link" in refused(run, capsys)

    assert sorted(path.name for path in elsewhere.iterdir()) == before


@pytest.mark.parametrize("name", ["../../../precious", "/etc/passwd", "x"])
def test_names_of_files_in_a_checkpoint_lead_nowhere(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(newest(run) / META, lambda meta: next(iter(meta["segments"].values())).update(sha256=name))

    with pytest.raises(CheckpointError, match="sha256"):
        rltrain.load(newest(run))


@pytest.mark.parametrize("key", ["atoms", "critics", "quantiles"])
def test_a_small_checkpoint_cannot_ask_for_many_outputs(key: str, run: Path) -> None:
    config = {"settings": {key: 10**9}, "streams": 1}
    with pytest.raises(CheckpointError, match=f"{key} 1000000000 do not fit its 6 numbers"):
        check_sizes(newest(run) / META, config, {"weights": np.zeros(5)})


def small(folder: Path, algo: str, env: Any) -> rltrain.Trained:
    """The policy of a short run with small layers."""
    few: dict[str, Any] = {"streams": 1, "steps": 8, "warmup": 4, "batch": 4, "widths": (8,), "eval_every": 0}
    result = rltrain.train(algo=algo, env=env, workers=0, preset="none", quiet=True, out=str(folder), **few)
    return rltrain.load(result.run)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("critics", 900, "900 critics with layers of"),
        ("widths_q", [3000], "2 critics with layers of"),
        ("quantiles", 9000, "2 critics with layers of"),
    ],
)
def test_a_small_checkpoint_cannot_ask_for_large_critics(key: str, value: Any, words: str, tmp_path: Path) -> None:
    """The numbers of one critic, or of one layer, would fit."""
    trained = small(tmp_path, "sac", "Pendulum-v1")
    saved = checkpoint.load(trained.path)
    config = saved.meta["config"]
    check_sizes(trained.path, config, saved.state, spec=trained.spec)
    changed = {**config, "settings": {**config["settings"], key: value}}
    with pytest.raises(CheckpointError, match=f"{words}.* do not fit its"):
        check_sizes(trained.path, changed, {**saved.state, "more": np.zeros(10_000)}, spec=trained.spec)


def test_layers_next_to_observations_and_actions_must_fit(tmp_path: Path) -> None:
    trained = small(tmp_path, "dqn", "CartPole-v1")
    saved, spec = checkpoint.load(trained.path), trained.spec
    state, config = {**saved.state, "more": np.zeros(4000)}, saved.meta["config"]
    check_sizes(trained.path, config, state, spec=spec)
    many = {**config, "settings": {**config["settings"], "atoms": 1000}}
    with pytest.raises(CheckpointError, match=r"widths \[8\] do not fit its"):
        check_sizes(trained.path, many, state, spec=spec)
    large = dataclasses.replace(spec, obs=dataclasses.replace(spec.leaves()[0], shape=(2000,)))
    with pytest.raises(CheckpointError, match=r"widths \[8\] do not fit its"):
        check_sizes(trained.path, config, state, spec=large)


class Bits(gymnasium.Env[Any, Any]):
    """Its action is 500 bits, so that most weights are next to it."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.MultiBinary(500)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, bool(action[0]), False, {}


def test_a_checkpoint_of_an_honest_run_fits(tmp_path: Path) -> None:
    """A best policy has nothing but its own weights; CQL with Discrete actions has no critics, however many are set."""
    few: dict[str, Any] = {"workers": 0, "preset": "none", "quiet": True, "out": str(tmp_path), "widths": (8,)}
    acts = {"streams": 2, "unroll": 8, "steps": 32, "eval_every": 16, "eval_episodes": 1}
    result = rltrain.train(algo="ppo", env=Bits, **few, **acts)
    assert rltrain.load(result.run, best=True).policy is not None

    rltrain.train(algo="ppo", env="CartPole-v1", **few, **acts, record=str(tmp_path / "data"))
    learn = {"data": tmp_path / "data", "critics": 100, "batch": 4, "eval_every": 0}
    result = rltrain.train(algo="cql", env="CartPole-v1", **few, steps=4, **learn)
    assert rltrain.train(resume=result.run, steps=8, quiet=True).steps == 8


def test_an_edited_run_json_is_refused_with_what_to_do(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (run / RUN_FILE).read_text()
    (run / RUN_FILE).write_text(text.replace('"gamma": 0.99', '"gamma": 0.98'))

    assert "does not match its hash. To change a setting, give --resume its flag (steps, " in refused(run, capsys)


def test_another_runs_run_json_does_not_fit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(run / RUN_FILE, lambda content: content["config"]["settings"].update(gamma=0.098))

    assert "settings.gamma is 0.098, and was 0.99 at the checkpoint" in refused(run, capsys)


def test_settings_that_a_resume_changes_may_differ(run: Path) -> None:
    forge(run / RUN_FILE, lambda content: content["config"].update(steps=240, workers=1))

    assert rltrain.train(resume=run, workers=0, quiet=True).steps >= 240


def test_no_bit_of_run_json_can_flip(run: Path) -> None:
    whole = (run / RUN_FILE).read_bytes()
    for at in range(0, len(whole), 31):
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 8)
        (run / RUN_FILE).write_bytes(changed)
        with pytest.raises(CheckpointError):
            saved_config(run)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("row", lambda row: row.astype(bool), "row of the streams [1] is damaged"),
        ("row", lambda row: -row, "row of the streams [1] is damaged"),
        ("row", lambda row: np.tile(row, 2), "row of the streams [1] is damaged"),
        ("row", lambda row: row - 3, "stream 1 is at row "),
        ("first", lambda first: first.astype(np.int64), "first of the streams [1] is damaged"),
        ("length", lambda length: length + 0.5, "length of the streams [1] is damaged"),
        ("ret", lambda ret: ret + np.nan, "ret of the streams [1] is damaged"),
        ("ret", lambda ret: ret.astype(np.int64), "ret of the streams [1] is damaged"),
    ],
)
def test_a_stream_whose_numbers_are_wrong_is_refused(
    name: str, change: Any, said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = safetensors.numpy.load((newest(run) / "state.safetensors").read_bytes())
    arrays[f"rollout/units/1/{name}"] = change(arrays[f"rollout/units/1/{name}"])
    forge_state(newest(run), safetensors.numpy.save(arrays))

    assert f"does not fit this run: {said}" in refused(run, capsys, "--workers", "0")


@pytest.mark.parametrize("part", ["takes", "dtype"])
@pytest.mark.parametrize("dtype", ["antigravity:geohash", "O", "float128x", "U9", ""])
def test_a_spec_of_other_things_than_numbers_is_refused(part: str, dtype: str, run: Path) -> None:
    spec = json.loads((newest(run) / META).read_text())["spec"]
    (spec["action"] if part == "takes" else spec["obs"]["leaf"])[part] = dtype
    with pytest.raises(CheckpointError, match="its spec is wrong: ValueError no numbers are of type"):
        read_spec(run, spec)


def test_whole_numbers_of_a_run_are_of_64_bits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge_config(run, unroll=10**39)
    assert "unroll must be between -2^63 and 2^63 - 1" in refused(run, capsys)


@pytest.mark.parametrize("use", ["load", "resume"])
def test_weights_that_are_not_finite_are_refused(use: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = safetensors.numpy.load((newest(run) / "state.safetensors").read_bytes())
    name = next(name for name in arrays if name.startswith("learner/parts/policy/") and arrays[name].size > 1)
    arrays[name] = np.full_like(arrays[name], np.nan)
    forge_state(newest(run), safetensors.numpy.save(arrays))

    with pytest.raises(CheckpointError, match="not finite"):
        rltrain.load(newest(run)) if use == "load" else rltrain.train(resume=run, steps=240)


@pytest.mark.parametrize(
    ("algo", "name"),
    [
        ("dqn", "optimizer/mean"),
        ("dqn", "optimizer/square"),
        pytest.param("ppo", "policy/normalizer.count0", marks=pytest.mark.sweep),
        ("ppo", "policy/return_scale.count"),
        pytest.param("ppo", "policy/return_scale.m2", marks=pytest.mark.sweep),
    ],
)
@pytest.mark.parametrize("value", [np.nan, pytest.param(np.inf, marks=pytest.mark.sweep)])
def test_optimizers_and_statistics_that_are_not_finite_are_not_resumed(
    algo: str, name: str, value: float, made: dict[str, Path], tmp_path: Path
) -> None:
    """Otherwise the weights are spoilt by the first update, and the environment gets actions that are nan."""
    run = tmp_path / "run"
    if algo == "dqn":
        shutil.copytree(made["dqn"], run)
    else:
        normal = {"normalize_obs": True, "normalize_return": True, "unroll": 8, "epochs": 1, "minibatches": 1}
        made_now = rltrain.train(algo=algo, env="CartPole-v1", steps=100, workers=0, streams=2, widths=(4,),
                                 eval_every=0, preset="none", quiet=True, out=str(tmp_path), **normal)  # fmt: skip
        made_now.run.rename(run)
    arrays = safetensors.numpy.load((newest(run) / "state.safetensors").read_bytes())
    key = f"learner/parts/{name}"
    arrays[key] = np.full_like(arrays[key], value)
    forge_state(newest(run), safetensors.numpy.save(arrays))

    with pytest.raises(CheckpointError, match=rf"not finite, in {name.rpartition('policy/')[2].replace('/', '.')}"):
        rltrain.train(resume=run, steps=240)
