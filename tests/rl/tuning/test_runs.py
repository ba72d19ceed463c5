"""A search with real runs in real processes, by its command: killed, resumed, with one process and with two."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain.cli import main_tune
from rltrain.config.load import load
from rltrain.jobs import pool
from rltrain.tuning.journal import read_events
from rltrain.tuning.trial import run_part

COMMAND = (
    "--algo ppo --env probe:choice-given-obs --steps 160 --streams 2 --unroll 8 --widths 4 --epochs 1 --minibatches 1 "
    "--preset none --eval-episodes 2 --space lr=1e-4..1e-1:log,1-gamma=0.01..0.5:log --trials 4 --round 4 --grace 0.5 "
    "--eta 2 --sampler random --deterministic --confirm 0 --json"
).split()


def results(folder: Path) -> list[Any]:
    """Everything in the journal apart from times, which are also in the names of folders."""
    events = read_events(folder)
    return [
        {**event, "results": [{**one, "seconds": 0, "run": ""} for one in event.get("results", ())]} for event in events
    ]


@pytest.mark.sweep
@pytest.mark.slow
def test_a_killed_search_continues_to_the_same_winner_with_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main_tune([*COMMAND, "--name", "whole", "--parallel", "1"]) == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])
    pool.close()
    code = "import sys; from rltrain.cli import main_tune; sys.exit(main_tune())"
    killed = subprocess.Popen([sys.executable, "-c", code, *COMMAND, "--name", "killed", "--parallel", "2"])
    journal = tmp_path / "killed" / "journal.jsonl"
    while not (journal.exists() and b"results" in journal.read_bytes()):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert main_tune(["--resume", "killed", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (again["settings"], again["value"], again["trials"]) == (whole["settings"], whole["value"], 4)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert main_tune(["best", "killed"]) == 0
    assert "[ppo]" in capsys.readouterr().out
    pool.close()


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--algo", "ppo"], "rltune: --env is needed"),
        (["--algo", "ppo", "--env", "CartPole-v1", "--space", "lrr=1..2"], "rltune: --space: unknown setting lrr"),
        (["--algo", "ppo", "--env", "CartPole-v1", "--out", "x"], "rltune: --out: cannot be given to a search"),
        (["--algo", "ppo", "--env", "CartPole-v1", "--trials", "x"], "rltune: --trials must be a whole number"),
        (["--algo", "ppo", "--env", "CartPole-v1", "--tirals", "3"], "rltune: unknown flag --tirals"),
        (["--resume", "nothing"], "rltune: nothing is not a search's folder"),
        (["--resume", "nothing", "--lr", "1"], "rltune: --lr: cannot be changed by --resume"),
        (["report", "nothing"], "rltune: nothing is not a search's folder"),
        (["best", "nothing"], "rltune: nothing is not a search's folder"),
    ],
)
def test_mistakes_get_one_line(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main_tune(argv) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert only.startswith(line)
    assert not list(tmp_path.iterdir())


ENVIRONMENT = """
import gymnasium, numpy as np

class Maze(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}
    def step(self, action):
        return np.ones(1, np.float32), float(action), True, False, {}
"""


NETWORK = """
import torch

class Torso(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.features = 4
        self.bias = torch.nn.Parameter(torch.zeros(4))
    def forward(self, obs):
        while isinstance(obs, dict):
            obs = max(obs.values(), key=lambda leaf: leaf.ndim)
        return obs.float().flatten(1).mean(1, keepdim=True) + self.bias
"""


def test_a_part_continues_where_another_key_has_signed_the_run_but_reaches_no_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, each node may have a home folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maze_of_search.py").write_text(ENVIRONMENT)
    run = {"algo": "ppo", "streams": 2, "unroll": 8, "widths": (4,), "steps": 96, "eval_every": 16, "workers": 0}
    config = load({**run, "env": "maze_of_search.py:Maze", "checkpoint_every": 16, "eval_episodes": 1, "quiet": True})
    config = config.model_copy(update={"out": str(tmp_path / "out")})
    assert run_part(config, 32).error == ""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another home"))
    monkeypatch.chdir("/")

    other = config.model_copy(update={"env": "probe:counter"})
    assert "is not a run of this search: its env is another one" in run_part(other, None).error
    done = run_part(config, None)
    assert (done.error, done.steps) == ("", 96)


def test_a_part_does_not_run_code_of_somebody_elses_opponents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run in the folder of a part has the settings of the part, and opponents whose network is code."""
    (tmp_path / "network_of_others.py").write_text(NETWORK)
    game = {"algo": "ppo", "env": "tic-tac-toe", "streams": 2, "unroll": 8, "workers": 0, "preset": "none"}
    game |= {"eval_every": 0, "checkpoint_every": 16, "quiet": True, "widths": (4,)}
    torso = f"{tmp_path}/network_of_others.py:Torso"
    other = rltrain.train(**game, steps=32, torso=torso, out=str(tmp_path / "others")).run
    rltrain.train(**game, steps=96, opponents=str(other), out=str(tmp_path / "out"), pause_at=32)
    (tmp_path / "network_of_others.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w').close()\n" + NETWORK)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another home"))
    sys.modules.pop("network_of_others", None)

    config = load({**game, "steps": 96}).model_copy(update={"out": str(tmp_path / "out")})
    error = run_part(config, None).error
    assert error.startswith("an opponent, ")
    assert "you did not make this run here" in error
    assert not (tmp_path / "was run").exists()
