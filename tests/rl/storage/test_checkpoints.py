"""What a run goes on from when things are not as they were left: said in one line, and nothing is lost silently."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
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
from rltrain.storage import checkpoint, files, retention
from rltrain.storage.retention import find, newest_intact, point, prune

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
    assert f"latest is missing; {second.name}, the newest checkpoint that is intact, is used" in said
    assert f"{last / checkpoint.STATE} is damaged" in said
    assert f"resumed {run} at step {int(second.name[5:]):,}" in said
    assert rltrain.load(run).path > last


def test_if_none_loads_nothing_is_begun_anew(run: Path, capsys: Any) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "latest").unlink()
    for path in checkpoints.glob("step-*"):
        damage(path)
    before = sorted(checkpoints.iterdir())

    newest = max(checkpoints.glob("step-*"))
    line = refused(run, capsys)

    assert line.startswith(f"rltrain: {newest / checkpoint.STATE} is damaged: ")
    assert line.endswith("; no other checkpoint is intact")
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

    assert "latest is missing; step-" in done.err
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

    twice = r"(?s)could not be resumed; its checkpoints .*: worker 0 failed twice at the same step.*no more room"
    with pytest.raises(RunFailed, match=twice):
        rltrain.train(resume=run, steps=400)

    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


class Failing(Changing):
    """Raises at the 40th step of the program, once."""

    steps = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Failing.steps += 1
        if Failing.steps == 40:
            raise ValueError("no more room")
        return super().step(action)


def test_a_run_whose_actors_were_lost_is_resumed_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "steps", 0)
    with pytest.raises(RunFailed, match="no more room"):
        rltrain.train(**{**QUICK, "env": Failing, "checkpoint_every": 0, "max_restarts": 0}, out=str(tmp_path))
    (run,) = tmp_path.iterdir()
    saved = find(run)[0]
    assert saved.state["rollout"]["units"] == []

    assert rltrain.load(run).path == saved.path
    assert rltrain.train(resume=run, env=Failing).steps >= 200


def cut(path: Path, name: str) -> None:
    file = path / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {  # of the newest checkpoint, which `latest` names
    "state cut": lambda path: cut(path, checkpoint.STATE),
    "state zeroed": lambda path: (path / checkpoint.STATE).write_bytes(bytes((path / checkpoint.STATE).stat().st_size)),
    "state gone": lambda path: (path / checkpoint.STATE).unlink(),
    "meta cut": lambda path: cut(path, checkpoint.META),
    "meta empty": lambda path: (path / checkpoint.META).write_bytes(b""),
    "meta gone": lambda path: (path / checkpoint.META).unlink(),
    "both gone": lambda path: (shutil.rmtree(path), path.mkdir()),
    "all gone": shutil.rmtree,
}


@pytest.mark.parametrize(
    "damage",
    [pytest.param(name, marks=() if name in ("state cut", "both gone") else pytest.mark.sweep) for name in DAMAGES],
)
def test_the_newest_intact_checkpoint_is_resumed_loaded_and_evaluated(
    run: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = run / "checkpoints"
    _, second, last = sorted(checkpoints.glob("step-*"))
    DAMAGES[damage](last)

    assert rltrain.load(run).path == second
    (line,) = capfd.readouterr().err.splitlines()
    assert str(last if last.exists() else checkpoints / "latest") in line
    assert second.name in line
    assert cli.main_eval([str(run), "--episodes", "1", "--json"]) == 0
    done = capfd.readouterr()
    assert json.loads(done.out)["checkpoint"] == str(second)
    assert done.err.splitlines() == [line]
    if last.exists():  # a checkpoint that is named itself is not replaced by another one
        assert cli.main_eval([str(last)]) == 2
        assert str(last) in capfd.readouterr().err

    assert cli.main(["--resume", str(run), "--steps", "400"]) == 0

    said = capfd.readouterr().out.splitlines()
    assert line.removeprefix("rltrain: ") in said
    assert f"resumed {run} at step {int(second.name[5:]):,}" in said
    for path in checkpoints.glob("step-*"):
        checkpoint.load(path)
    assert find(run)[1] == []


@pytest.mark.parametrize(
    "damage",
    [
        "gone",
        pytest.param("elsewhere", marks=pytest.mark.sweep),
        pytest.param("zeroed", marks=pytest.mark.sweep),
        "older",
        pytest.param("folder", marks=pytest.mark.sweep),
    ],
)
def test_latest_does_not_decide(run: Path, damage: str) -> None:
    checkpoints = run / "checkpoints"
    older, *_, last = sorted(checkpoints.glob("step-*"))
    link = checkpoints / "latest"
    text = {"elsewhere": b"step-000000000001\n", "zeroed": bytes(18), "older": f"{older.name}\n".encode()}
    link.unlink()
    if damage == "folder":
        link.mkdir()
    elif damage != "gone":
        link.write_bytes(text[damage])

    found, notes = find(run)

    assert found.path == last
    assert len(notes) == (damage != "older")  # a run that ends between the last two files of a checkpoint leaves that


def test_a_damaged_best_policy_is_replaced_by_one_before_it_only(run: Path) -> None:
    checkpoints = run / "checkpoints"
    first = checkpoint.save(checkpoints, "best-000000000064", {}, {})
    second = checkpoint.save(checkpoints, "best-000000000128", {}, {})
    point(checkpoints, "best", second.name)
    damage(second)
    found, (line,) = find(run, best=True)
    assert found.path == first
    assert line.startswith(f"{second / checkpoint.STATE} is damaged: ")

    shutil.rmtree(first)

    with pytest.raises(CheckpointError, match=r"best-000000000128/state.safetensors is damaged"):
        find(run, best=True)


def test_a_best_policy_is_smaller_than_its_critics(tmp_path: Path) -> None:
    settings = {**QUICK, "algo": "tqc", "env": "Pendulum-v1", "streams": 1, "warmup": 64, "updates_per_step": 0.05}
    for name in ("unroll", "epochs", "minibatches"):
        del settings[name]
    settings |= {"widths_q": (99, 99), "eval_every": 64, "eval_episodes": 1, "checkpoint_every": 0, "steps": 100}

    run = rltrain.train(**settings, out=str(tmp_path)).run

    assert rltrain.load(run, best=True).path.name.startswith("best-")


def test_what_a_crash_left_half_written_or_half_removed_is_passed_over(run: Path) -> None:
    checkpoints = run / "checkpoints"
    last = max(checkpoints.glob("step-*"))
    shutil.copytree(last, checkpoints / f".writing-{last.name}.2")
    cut(checkpoints / f".writing-{last.name}.2", checkpoint.STATE)
    (checkpoints / ".latest").write_bytes(b"step-0000")

    assert find(run)[0].path == last
    assert find(run)[1] == []
    rltrain.train(resume=run, steps=400)
    assert not list(checkpoints.glob(".*"))


REPLAY: dict[str, Any] = {
    "algo": "dqn", "env": "CartPole-v1", "workers": 0, "streams": 2, "unroll": 8, "widths": (8,), "steps": 790,
    "capacity": 512, "warmup": 32, "batch": 8, "updates_per_step": 0.1, "checkpoint_every": 200, "eval_every": 0,
    "preset": "none", "quiet": True, "keep": 9,
}  # fmt: skip


@pytest.mark.parametrize(
    "damage", [pytest.param("gone", marks=pytest.mark.sweep), pytest.param("cut", marks=pytest.mark.sweep), "flipped"]
)
def test_a_checkpoint_without_its_segments_is_not_intact(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = rltrain.train(**REPLAY, out=str(tmp_path))
    checkpoints = whole.run / "checkpoints"
    *_, second, last = sorted(checkpoints.glob("step-*"))
    listed = [{item["sha256"] for item in checkpoint.load(path).meta["segments"].values()} for path in (second, last)]
    victim = checkpoints / "segments" / f"{min(listed[1] - listed[0])}.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "gone":
        victim.unlink()

    resumed = rltrain.train(resume=whole.run)

    said = capsys.readouterr().out
    assert f"; {second.name} is used instead" in said
    assert victim.name in said
    assert resumed.fingerprint == whole.fingerprint
    assert newest_intact(checkpoints, segments=True)[1] == []


def test_a_reader_finds_a_checkpoint_while_the_writer_keeps_one_only(tmp_path: Path) -> None:
    """The writer removes a checkpoint between the reader's two files; the reader then reads the new one."""
    stop, loads = threading.Event(), 0
    state = {"rows": np.zeros(20_000, np.float32)}

    def write() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            path = checkpoint.save(tmp_path, f"step-{step:012d}", state, {"step": step})
            point(tmp_path, "latest", path.name)
            prune(tmp_path, 1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not (tmp_path / "latest").exists():
            time.sleep(0.001)
        for _ in range(300):
            found, _ = find(tmp_path)
            assert found.state["rows"].shape == (20_000,)
            loads += 1
    finally:
        stop.set()
        writer.join()
    assert loads == 300


def test_a_listing_that_misses_the_only_checkpoint_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system may do while the run writes the next one and removes this one."""
    checkpoint.save(tmp_path, "step-000000000001", {}, {"step": 1})
    point(tmp_path, "latest", "step-000000000001")
    listed, calls = retention._newest_first, list[str]()

    def misses(folder: Path, kind: str) -> list[Path]:
        calls.append(kind)
        return [] if len(calls) < 4 else listed(folder, kind)

    monkeypatch.setattr(retention, "_newest_first", misses)
    found, notes = newest_intact(tmp_path)
    assert (found is not None, notes, len(calls)) == (True, [], 4)


@pytest.mark.parametrize("file", [checkpoint.META, checkpoint.STATE])
def test_a_checkpoint_that_is_removed_while_it_is_read_is_no_damage(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, f"step-{step:012d}", {}, {"step": step})
    point(tmp_path, "latest", "step-000000000002")
    read, calls = files.read_file, list[Path]()

    def slow(path: Path, *limits: Any, **more: Any) -> bytes:
        if path.name == file and not calls:
            calls.append(path)
            checkpoint.save(tmp_path, "step-000000000003", {}, {"step": 3})
            point(tmp_path, "latest", "step-000000000003")
            prune(tmp_path, 1)
        return read(path, *limits, **more)

    monkeypatch.setattr(files, "read_file", slow)

    found, notes = find(tmp_path)

    assert calls[0].parent.name == "step-000000000002"
    assert (found.meta["step"], notes) == (3, [])


def test_a_users_own_copy_of_a_checkpoint_is_neither_used_nor_removed(run: Path) -> None:
    checkpoints = run / "checkpoints"
    first, *_, last = sorted(checkpoints.glob("step-*"))
    copies = [checkpoints / name for name in ("step-000000999999.bak", "step-old", f"{first.name} (copy)")]
    for copy in copies:
        shutil.copytree(first, copy)

    assert find(run)[0].path == last
    rltrain.train(resume=run, steps=500, quiet=True)

    assert all(copy.is_dir() for copy in copies)


def test_the_tenth_checkpoint_of_a_step_is_newer_than_the_second(tmp_path: Path) -> None:
    for _ in range(11):
        path = checkpoint.save(tmp_path, "step-000000000005", {}, {})

    assert path.name == "step-000000000005.11"
    assert find(tmp_path)[0].path == path
