"""What a replay takes is said before the run, and what does not fit is refused with the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import rltrain
from rltrain import cli
from rltrain.errors import RunFailed
from rltrain.system import free_space as room

DQN = "--algo dqn --env CartPole-v1 --workers 0 --streams 2 --unroll 8 --widths 8 --eval-every 0 --preset none".split()
SMALL = "--steps 100 --warmup 20 --batch 8 --capacity 1000".split()


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 * 2**30, "8.0 GiB"), (3e15, "2.7 PiB")]
)
def test_amounts_are_for_a_person(size: float, said: str) -> None:
    assert room.amount(size) == said


def test_free_memory_is_what_the_system_tells() -> None:
    free = room.free_memory()
    assert free is not None
    assert 2**20 < free < 2**50


def test_a_group_with_a_limit_counts(tmp_path: Path) -> None:
    assert room._group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert room._group(tmp_path) == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert room._group(tmp_path) is None


def test_the_run_says_what_its_replay_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*DQN, *SMALL, "--out", str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "the replay takes" in line]
    assert "KiB of" in line
    assert "in memory when it is full" in line


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_does_not_fit_is_refused_in_one_line(
    on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: 2**20)
    monkeypatch.setattr(room, "free_disk", lambda folder: 2**21)
    flags = ["--capacity", "1e6", "--steps", "100", "--warmup", "20", *(["--replay-on-disk"] if on_disk else [])]

    assert cli.main([*DQN, *flags, "--out", str(tmp_path)]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert ("on disk" in line, "2.0 MiB is free" in line, "1.0 MiB is free" in line) == (on_disk, on_disk, not on_disk)
    assert "MiB" in line.partition("when it is full")[0]
    assert "--capacity" in line
    assert ("--replay-on-disk" in line) is not on_disk
    assert not list(tmp_path.iterdir()), "it left a folder behind"


def test_memory_that_nobody_tells_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: None)
    assert "takes 1.0 PiB in memory" in room.make_sure(2**50, None)


MISTAKES: list[tuple[list[str], tuple[str, ...]]] = [
    (["--capacity", "4", "--batch", "8", "--warmup", "2"], ("--capacity 4", "--batch 8")),
    (["--capacity", "50", "--batch", "8", "--warmup", "60"], ("--capacity 50", "--warmup 60")),
    (["--warmup", "5000"], ("--warmup 5000", "--steps 100")),
    (["--capacity", "8", "--n-step", "5", "--batch", "4", "--warmup", "4"], ("2 streams", "needs 6")),
]


@pytest.mark.parametrize(("flags", "words"), MISTAKES)
def test_settings_that_do_not_fit_each_other(
    flags: list[str], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*DQN, "--steps", "100", *flags, "--out", str(tmp_path)]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", [["--replay-on-disk"], ["--replay-from", "."]])
def test_an_algorithm_without_a_replay(flag: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--algo", "ppo", "--env", "CartPole-v1", "--workers", "0", "--out", str(tmp_path), *flag]
    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rltrain: {flag[0]}: ppo learns from each unroll once")


# --- learning from a recording ---

OFFLINE: dict[str, Any] = {
    "algo": "dqn", "env": "CartPole-v1", "workers": 0, "preset": "none", "widths": (8,), "steps": 200, "batch": 8,
    "eval_every": 0, "checkpoint_every": 0, "quiet": True,
}  # fmt: skip


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Of 16 streams."""
    given = {"streams": 16, "unroll": 8, "warmup": 100, "capacity": 320}
    rltrain.train(**{**OFFLINE, **given}, out=str(tmp_path / "recorded"), record=str(tmp_path / "rec"))
    return tmp_path / "rec"


def test_room_is_looked_for_as_the_recording_needs_it(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its streams are what the replay's rows are shared out among, not --streams."""
    needed: list[int] = []
    monkeypatch.setattr("rltrain.setup.replay.make_sure", lambda size, on_disk: needed.append(size) or "")
    held: list[int] = []
    from rltrain.rollout.replay.replay import Replay

    real = Replay.__init__

    def init(self: Replay, *args: Any) -> None:
        real(self, *args)
        held.append(sum(flat.nbytes for flat in self._ring.flat.values()))

    monkeypatch.setattr(Replay, "__init__", init)
    rltrain.train(**OFFLINE, streams=1, capacity=333, out=str(tmp_path), replay_from=str(recording))

    assert needed == held


def test_a_run_that_is_refused_late_leaves_no_folder_behind(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = recording.glob("unrolls-*")
    file.write_bytes(file.read_bytes()[:-1])
    argv = [*DQN, "--steps", "100", "--batch", "8", "--out", str(tmp_path / "out"), "--replay-from", str(recording)]

    assert cli.main(argv) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged" in line
    assert not list(tmp_path.glob("out/*"))


# --- stacks of frames that are none ---


class Films(gymnasium.Env[np.ndarray, np.int64]):
    """Frames of noise; from its `same_from`-th step on one array, written over: a stack holds it four times."""

    observation_space = gymnasium.spaces.Box(0, 255, (36, 36), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, same_from: int) -> None:
        self._left, self._frame, self._time = same_from, np.zeros((36, 36), np.uint8), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._time = 0
        return self._look(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._left, self._time = self._left - 1, self._time + 1
        return self._look(), 1.0, self._time == 30, False, {}

    def _look(self) -> np.ndarray:
        self._frame[:] = self.np_random.integers(0, 256, (36, 36), np.uint8)
        return self._frame.copy() if self._left > 0 else self._frame


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.sweep)])
def test_frames_that_do_not_roll_end_the_run_after_a_checkpoint(workers: int, tmp_path: Path) -> None:
    """In one line that says what to do, for any number of workers; the run goes on when that was done."""
    given = {
        "algo": "dqn", "preset": "none", "streams": 3, "unroll": 4, "steps": 300, "warmup": 30, "batch": 4,
        "updates_per_step": 0.1, "widths": (8,), "capacity": 500, "eval_every": 0, "checkpoint_every": 0, "quiet": True,
        "workers": workers, "backend": "local", "out": str(tmp_path),
    }  # fmt: skip

    def film(same_from: int) -> Any:
        return lambda: gymnasium.wrappers.FrameStackObservation(Films(same_from), 4)

    with pytest.raises(RunFailed) as failed:
        rltrain.train(**given, env=film(50))
    line, path, _ = str(failed.value).splitlines()
    assert "are not the newest frames of its episodes" in line
    assert "Let it return a copy" in line
    assert path.startswith("checkpoint ")
    (run,) = tmp_path.iterdir()
    assert json.loads((Path(path.removeprefix("checkpoint ")) / "meta.json").read_text())["step"] >= 100

    assert rltrain.train(resume=run, env=film(10**6)).steps >= 300
