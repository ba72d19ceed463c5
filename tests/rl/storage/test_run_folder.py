"""A run's folder: where it can be made, who uses it, and that run.json tells the run as it is now."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain import PPOConfig, RunConfig, cli
from rltrain.envs.problems.probes import Counter
from rltrain.errors import ConfigError, RunFailed
from rltrain.reporting.metrics import Metrics
from rltrain.storage import files
from rltrain.storage import run_folder as folder
from rltrain.storage.run_folder import saved_config

FLAGS = "--algo ppo --env probe:counter --workers 0 --streams 4 --unroll 16 --widths 8 --eval-every 0".split()
FLAGS += ["--preset", "none", "--quiet"]


def begun(tmp_path: Path, *more: str) -> Path:
    assert cli.main([*FLAGS, "--steps", "128", "--out", str(tmp_path / "runs"), *more]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    return run


def test_more_steps_are_remembered_by_the_next_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rltrain", "first"])
    run = begun(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rltrain", "second"])
    assert cli.main(["--resume", str(run), "--steps", "400"]) == 0

    assert saved_config(run).values["steps"] == 400
    assert rltrain.train(resume=run).steps >= 400
    told = json.loads((run / "run.json").read_text())
    assert told["commands"][:2] == [["rltrain", "first"], ["rltrain", "second"]]
    assert len(told["commands"]) == 3


def test_a_refused_resume_leaves_run_json_alone(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for state in run.glob("checkpoints/step-*/state.safetensors"):
        state.write_bytes(state.read_bytes()[:-1])
    before = (run / "run.json").read_bytes()

    assert cli.main(["--resume", str(run), "--steps", "400"]) == 2

    assert (run / "run.json").read_bytes() == before


def test_run_json_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path)
    before = (run / "run.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=r"run.json cannot be written: no space left on device"):
        folder.write_run_file(run, rltrain.load(run).config, rltrain.load(run).spec)

    assert (run / "run.json").read_bytes() == before


@pytest.mark.parametrize("out", ["/proc/x", "a-file/runs"])
def test_a_folder_that_cannot_be_made_is_named(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()

    assert cli.main([*FLAGS, "--out", out]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rltrain: --out {out}: {tmp_path / out}/ppo-probe-counter-s0-")
    assert "cannot be made: no" in line


def test_a_run_has_one_user(tmp_path: Path, capsys: Any) -> None:
    run = begun(tmp_path)
    capsys.readouterr()
    text = "import sys; from pathlib import Path; from rltrain.storage.run_folder import lock"
    text += "; held = lock(Path(sys.argv[1]))"
    with subprocess.Popen(
        [sys.executable, "-c", f"{text}; print(flush=True); sys.stdin.read()", str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert cli.main(["--resume", str(run)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"rltrain: {run} is in use by process {other.pid}"
        other.kill()

    assert cli.main(["--resume", str(run)]) == 0, "a process that is gone uses nothing"
    folder.lock(run)()
    release = folder.lock(run)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        folder.lock(run)
    release()
    assert not (run / folder.LOCK).exists()


@pytest.mark.parametrize(
    "file",
    [
        pytest.param("checkpoints/step-000000000{}", marks=pytest.mark.sweep),
        "checkpoints/latest",
        pytest.param("metrics.jsonl", marks=pytest.mark.sweep),
    ],
    ids=lambda file: file[:15],
)
def test_a_full_disk_ends_the_run_and_spares_what_is_there(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = begun(tmp_path)
    good = rltrain.load(run).path
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = 0
    if file == "metrics.jsonl":
        largest = (run / file).stat().st_size + 10
    write, which = files.write_file, "latest" if "latest" in file else "step-"

    def full(path: Path, data: bytes) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
        try:
            write(path, data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def log(self: Any, step: int, values: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
        try:
            logged(self, step, values)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    logged = Metrics.log
    if file == "metrics.jsonl":
        monkeypatch.setattr(Metrics, "log", log)
    else:
        monkeypatch.setattr(files, "write_file", lambda path, data: (full if which in str(path) else write)(path, data))

    assert cli.main(["--resume", str(run), "--steps", "400"]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rltrain: {run / file.partition('{')[0]}"), line
    assert line.endswith("cannot be written: file too large"), line
    monkeypatch.undo()
    complete = file == "metrics.jsonl" or which == "latest"  # these come after a checkpoint
    assert (rltrain.load(run).path > good) if complete else (rltrain.load(run).path == good)
    assert not list(run.glob("checkpoints/.writing*"))
    assert rltrain.train(resume=run).steps >= 400


class Moves(Counter):
    """Once a run has a checkpoint, moves the folder of its checkpoints or run.json."""

    def __init__(self, runs: str, what: str) -> None:
        super().__init__()
        self.runs, self.what = Path(runs), what

    def reset(self, **kwargs: Any) -> Any:
        there = self.runs.parent / "there"
        for latest in self.runs.glob("*/checkpoints/latest"):
            if not there.exists():
                run = latest.parents[1]
                {"checkpoints": latest.parent, "run.json": run / "run.json"}[self.what].rename(there)
        return super().reset(**kwargs)


@pytest.mark.parametrize(
    ("algo", "what"), [("dqn", "checkpoints"), pytest.param("ppo", "run.json", marks=pytest.mark.sweep)]
)
def test_what_is_moved_while_a_run_trains_is_written_again(algo: str, what: str, tmp_path: Path) -> None:
    args = {"runs": str(tmp_path / "runs"), "what": what}
    small: dict[str, Any] = {"workers": 0, "streams": 2, "widths": (8,), "preset": "none", "eval_every": 0}
    replay = {"capacity": 2048, "warmup": 16, "batch": 8, "updates_per_step": 0.1} if algo == "dqn" else {"unroll": 16}
    result = rltrain.train(
        algo=algo,
        env=Moves,
        env_args=args,
        steps=2200,
        checkpoint_every=1100,
        quiet=True,
        out=args["runs"],
        **small,
        **replay,
    )

    assert (tmp_path / "there").exists()
    again = rltrain.train(resume=result.run, env=Moves, steps=2300)
    assert again.run == result.run
    assert again.steps >= 2300


def test_a_name_that_is_too_long_is_cut(tmp_path: Path) -> None:
    """A file system allows 255 bytes; "é" takes two."""
    run = folder.make_folder(RunConfig(algo="ppo", settings=PPOConfig(), env="é" * 300, out=str(tmp_path)))

    assert run.is_dir()
    assert run.name.startswith("ppo-ééé")


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """TensorBoard cannot write there."""
    where = tmp_path / os.fsdecode(b"folder\xff")
    where.mkdir()

    with pytest.raises(ConfigError, match="is not UTF-8: rename it"):
        folder.lock(where)
    with pytest.raises(ConfigError, match=r"--out .* is not UTF-8: rename it"):
        folder.make_folder(RunConfig(algo="ppo", settings=PPOConfig(), env="CartPole-v1", out=str(where)))


@pytest.mark.parametrize("flags", [["--resume"], ["--config"], ["--algo", "dqn", "--env", "x", "--replay-from"]])
def test_a_name_that_no_file_can_have_is_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*flags, "x" * 300]) == 2
    assert cli.main(["--algo", "ppo", "--env", "x" * 300]) == 2
    assert cli.main(["--algo", "ppo", "--env", f"{'x' * 300}.py:X"]) == 2
    assert cli.main(["--algo", "ppo", "--env", "CartPole-v1", "--init-from", "x" * 300]) == 2
    assert cli.main_eval(["x" * 300]) == 2
    assert cli.main_compare(["x" * 300]) == 2
    assert cli.main_compare([f"a={'x' * 300}"]) == 2

    assert len(capsys.readouterr().err.splitlines()) == 7


def test_a_recording_may_lie_in_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    where = tmp_path / os.fsdecode(b"folder\xff")

    run = begun(tmp_path, "--record", str(where))

    assert any(where.iterdir())
    assert rltrain.train(resume=run, steps=300).steps >= 300


@pytest.mark.parametrize(
    ("change", "continues"),
    [
        ({}, True),
        ({"torso": "payload:X"}, False),
        ({"env_args": {"args": ["x"]}}, False),
        ({"record": "/x"}, False),
        ({"cluster": "tcp://x:1"}, False),
    ],
    ids=lambda value: next(iter(value), "same") if isinstance(value, dict) else "",
)
def test_a_restart_of_torchrun_continues_no_run_with_other_code(
    change: dict[str, Any], continues: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    config = RunConfig(
        algo="ppo", settings=PPOConfig(), env="probe:counter", out=str(tmp_path), workers=0, eval_every=0
    )
    saved = config.to_json()
    for key, value in change.items():
        (saved["settings"] if key == "torso" else saved)[key] = value
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": saved, "launch": "job"}))

    assert folder.run_of_this_launch(config) == (run if continues else None)
