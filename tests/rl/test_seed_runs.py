"""`--seeds`: what is started, side by side; the table; Ctrl-C, failures and resumes. A short script stands in for most
of the commands."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain import cli, seed_runs
from rltrain.errors import CheckpointError, ConfigError, Interrupted, RunFailed
from rltrain.reporting.intervals import interval_of_runs
from rltrain.seed_runs import Group
from rltrain.storage import files
from rltrain.system.time_limit import TimeLimit

ARGV = "--algo ppo --env CartPole-v1 --steps 400 --preset none --workers 0".split()
COMMAND = """
import json, os, signal, sys, time
folder, status, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
seed = int(folder.rpartition("-")[2])
def stop(number, _):
    open(f"{folder}.signals", "a").write(f"{number} ")
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
os.makedirs(folder, exist_ok=True)
open(f"{folder}/run.json", "a").close()
time.sleep(seconds)
if status:
    print("rltrain: ppo on X; starting\\nrltrain: it does not work\\nsecond line", file=sys.stderr)
    sys.exit(status)
print(json.dumps({"steps": 400, "seconds": 1.5, "train_return": 1.0, "eval_return": 10.0 + seed, "stopped": "steps"}))
"""


@pytest.fixture
def stands_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """stands_in(3, status={1: 2}, seconds={0: 0.1}): at most 3 runs at a time; for seed 1 exit status 2; and so on."""

    def install(parallel: int, status: dict[int, int] | None = None, seconds: dict[int, float] | None = None) -> None:
        def command(self: Group, run: seed_runs.SeedRun, *_: Any) -> list[str]:
            values = (status or {}).get(run.seed, 0), (seconds or {}).get(run.seed, 0)
            return [sys.executable, "-S", "-c", COMMAND, str(run.folder), *map(str, values)]

        monkeypatch.setattr(seed_runs, "cores", lambda: parallel)
        monkeypatch.setattr(seed_runs, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(Group, "command", command)
        monkeypatch.chdir(tmp_path)

    return install


def executed(seeds: list[int], *argv: str) -> dict[str, Any]:
    config, _ = cli.parse([*ARGV, *argv])
    return seed_runs.execute(seed_runs.new_group(config, seeds, ARGV), config, TimeLimit(config.max_seconds))


def test_all_runs_are_made_and_summed_up(stands_in: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stands_in(2)

    found = executed([3, 5, 8])

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("folder runs/ppo-CartPole-v1-3-seeds-")
    assert printed[1] == "3 runs with the seeds 3, 5, 8; 2 at a time"
    table = printed.index("seed  steps  training return  evaluation return  seconds  ended")
    assert printed[table + 1].split() == ["3", "400", "1.00", "13.00", "1.5", "steps"]
    low, high, _ = interval_of_runs([13.0, 15.0, 18.0]) or (0, 0, "")
    assert printed[table + 4] == (
        f"mean evaluation return of 3 runs: 15.33, 95% interval {low:.2f} to {high:.2f} (t interval)"
    )
    assert (found["seeds"], found["return"], found["return_ci95"]) == ([3, 5, 8], "eval_return", (low, high))
    assert [run["eval_return"] for run in found["runs"]] == [13.0, 15.0, 18.0]


def test_the_interval_is_that_of_t_below_ten_runs() -> None:
    assert interval_of_runs([1.0, 2.0]) is None
    low, high, kind = interval_of_runs([1.0, 2.0, 6.0]) or (0, 0, "")
    half = 4.302653 * statistics.stdev([1.0, 2.0, 6.0]) / 3**0.5  # the 97.5% quantile of t, 2 degrees of freedom
    assert (low, high, kind) == (pytest.approx(3.0 - half, 1e-3), pytest.approx(3.0 + half, 1e-3), "t")
    assert (interval_of_runs([float(x) for x in range(9)]) or ("",))[-1] == "t"
    assert (interval_of_runs([float(x) for x in range(10)]) or ("",))[-1] == "bootstrap"
    assert interval_of_runs([1.0, 2.0, float("nan")]) is None


def test_a_run_that_fails_is_reported_and_the_others_are_finished(
    stands_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stands_in(1, status={0: 1})

    with pytest.raises(RunFailed, match=r"^seed 0: it does not work\nsecond line\nto continue: rltrain --resume runs/"):
        executed([0, 1])

    out = capsys.readouterr().out
    assert "seed 0: failed with status 1: see runs/" in out
    assert "seed 1: 400 steps in 1.5 s" in out
    assert "failed (1)" in out


def test_what_is_wrong_with_the_first_run_ends_the_group(stands_in: Any, tmp_path: Path) -> None:
    stands_in(1, status={0: 2})

    with pytest.raises(RunFailed, match="seed 0: it does not work"):
        executed([0, 1])

    assert not list(tmp_path.glob("runs/*/seed-1*"))


def test_a_group_of_which_no_run_could_begin_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands_in: Any
) -> None:
    stands_in(1)
    text = "import sys; print('much output ' * 10_000); sys.exit('rltrain: no such environment')"
    words = [sys.executable, "-S", "-c", f"try: {text}\nexcept SystemExit as e: print(e, file=sys.stderr); sys.exit(2)"]
    monkeypatch.setattr(Group, "command", lambda *_: words)

    with pytest.raises(ConfigError, match=r"^no such environment$"):
        executed([0, 1])

    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_each_run_once(stands_in: Any, tmp_path: Path, number: int) -> None:
    stands_in(2, seconds=dict.fromkeys(range(3), 60))

    def interrupt() -> None:
        while len(list(tmp_path.glob("runs/*/seed-*/run.json"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted, match=r"^interrupted; 2 of 3 runs have begun\nto continue: rltrain") as interrupted:
        executed([0, 1, 2])
    thread.join()

    assert interrupted.value.status == 128 + number
    assert sorted(path.read_text() for path in tmp_path.glob("runs/*/*.signals")) == [f"{number} "] * 2


def test_the_command_lines_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = cli.parse([*ARGV, "--name", "five"])
    new = seed_runs.new_group(config, [0, 4], ARGV)
    assert new.folder == tmp_path / "runs" / "five"
    (new.folder / "seed-4").mkdir()
    (new.folder / "seed-4" / "run.json").touch()

    again = seed_runs.saved_group(Path("runs/five"), ["--steps", "900"], trust=False)
    with pytest.raises(CheckpointError, match=r"holds the runs of several seeds: .* for example .*seed-4"):
        rltrain.load("runs/five")
    first, second = again.runs
    python = [sys.executable, "-P", "-m", "rltrain"]

    mine = ["--seed", "0", "--out", str(new.folder), "--name", "seed-0", "--steps", "900", "--workers", "3"]
    assert again.command(first, 3, 12.5) == [*python, *ARGV, *mine, "--max-seconds", "12.5", "--json"]
    assert again.command(second, 3, float("inf")) == [
        *python, "--resume", str(new.folder / "seed-4"), "--steps", "900", "--json"
    ]  # fmt: skip
    assert (again.where, again.shared) == (str(tmp_path), False)


def test_cores_are_shared_among_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_runs, "cores", lambda: 8)
    monkeypatch.setattr(rltrain.config.run_config, "cores", lambda: 8)

    def of(*argv: str) -> tuple[int, int | None]:
        config, _ = cli.parse(["--algo", "ppo", "--env", "CartPole-v1", "--preset", "none", *argv])
        return seed_runs.at_once(config, 5, "workers" not in config.model_fields_set)

    assert of() == (5, 1)
    assert of("--workers", "4") == (2, None)
    assert of("--workers", "0") == (5, None)
    assert of("--learners", "4") == (2, 4)


def test_a_group_of_somebody_else_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its command line may name code; a link in it may lead out of the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "group").mkdir()
    content = {"format": 1, "seeds": [0], "argv": ["--algo", "ppo", "--env", "evil.py:Env", "--trust"], "where": "/"}
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
    files.replace_file(tmp_path / "group" / "seeds.json", files.hashed_json(content) + b"\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))

    assert cli.main(["--resume", "group"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "you did not make these runs here" in line
    assert line.endswith("Nothing was started. If you trust all of this, add --trust")
    assert seed_runs.saved_group(Path("group"), [], trust=True).where == str(tmp_path)
    log = tmp_path / "group" / "seed-0.log"
    log.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link, which is not followed"):
        seed_runs.saved_group(Path("group"), [], trust=True)
    log.unlink()
    (tmp_path / "precious").touch()
    for make in (os.mkfifo, partial(os.link, tmp_path / "precious")):
        make(log)
        with pytest.raises(CheckpointError, match=r"seed-0\.log is not a file of this run alone"):
            seed_runs.saved_group(Path("group"), [], trust=True)
        log.unlink()
    (tmp_path / "group" / "seed-0").mkdir()
    os.mkfifo(tmp_path / "group" / "seed-0" / "metrics.jsonl")  # of which the progress of the group is read
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is not a file"):
        seed_runs.saved_group(Path("group"), [], trust=True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--seeds", "0"], "--seeds: must be from 1 to 1000 runs, got 0"),
        (["--seeds", "x"], "--seeds: must be a number of runs or a list of seeds such as 0,1,2, got 'x'"),
        (["--seeds", "1,1"], "--seeds: each seed must be at least 0 and given once, got '1,1'"),
        (["--seeds", "2,-1"], "--seeds: each seed must be at least 0 and given once, got '2,-1'"),
        (["--seeds", "3", "--seed", "1"], "--seed and --seeds: give one of them"),
        (["--seeds", "3", "--record", "x"], "--seeds: all runs would write their unrolls into the folder of --record"),
        (["--seeds", "3", "--lrr", "1"], "unknown flag --lrr; did you mean --lr?"),
    ],
)
def test_wrong_calls_are_one_line(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert cli.main([*ARGV, *argv]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rltrain: {words}")
    assert not list(tmp_path.iterdir())


def test_killed_groups_end_as_unbroken_runs(tmp_path: Path, launch: Any, begin: Any) -> None:
    """SIGKILL of the command: its runs get SIGTERM. Then SIGKILL of one run, while the group is continued."""
    small = {"streams": 4, "unroll": 32, "widths": (8,), "eval_every": 0, "checkpoint_every": 128, "preset": "none"}
    settings: dict[str, Any] = {"algo": "ppo", "env": "CartPole-v1", "workers": 0, "steps": 1500, **small}
    unbroken = {seed: rltrain.train(**settings, seed=seed, quiet=True, out=str(tmp_path)) for seed in (0, 7)}
    flags = "--streams 4 --unroll 32 --widths 8 --eval-every 0 --checkpoint-every 128 --steps 1500".split()
    group = tmp_path / "runs" / "two"

    first = begin(tmp_path, *ARGV, *flags, "--seeds", "0,7", "--name", "two", "--quiet")
    while not (group / "seed-0" / "checkpoints" / "latest").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.end(60).status == -signal.SIGKILL
    result = launch(tmp_path, "--resume", "runs/two", "--json", "--quiet").result

    assert [run["fingerprint"] for run in result["runs"]] == [unbroken[seed].fingerprint for seed in (0, 7)]
    assert result["return"] == "train_return"
