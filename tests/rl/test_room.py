"""What a replay takes is said before the run, and what does not fit is refused with the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl import cli, room

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
