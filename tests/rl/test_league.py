"""Runs against a pool in games of three and of moves at once, and against policies of other runs."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import games

import rltrain
from rltrain import cli
from rltrain.config.load import load
from rltrain.errors import ConfigError
from rltrain.reporting.metrics import read
from rltrain.storage import checkpoint
from rltrain.storage.recording import Recording

FILE = games.__file__
SMALL = "--streams 4 --unroll 7 --widths 8 --epochs 2 --minibatches 2 --eval-episodes 3 --preset none --json".split()
SMALL += ["--quiet"]
POOL = "--pool-size 2 --pool-every 90 --pool-share 0.7 --steps 400 --checkpoint-every 75 --eval-every 200".split()
GAMES = ["ThreeInTurns", "ThreeAtOnce"]


def same_bits(launch: Any, folder: Path, words: list[str], spreads: tuple[str, ...] = ("2",)) -> dict[str, Any]:
    """The result of a run, which other numbers of workers, and a kill in the middle of its games, do not change."""
    whole = launch(folder, *words, "--workers", "0", "--out", "whole").result
    for workers in spreads:
        spread = launch(folder, *words, "--workers", workers, "--out", f"with-{workers}").result
        assert spread["fingerprint"] == whole["fingerprint"], workers
    done = launch(folder, *words, "--workers", "0", "--out", "cut", kill=("write", 3))
    assert done.status == -signal.SIGKILL, done
    (cut,) = (folder / "cut").iterdir()
    for run in folder.glob("others/*"):
        shutil.rmtree(run)  # a resume needs no other run
    resumed = launch(folder, "--resume", str(cut), "--json").result
    assert resumed["fingerprint"] == whole["fingerprint"]
    states = [checkpoint.load(Path(result["checkpoint"])).state for result in (whole, resumed)]
    assert states[0]["self_play"]["games"] == states[1]["self_play"]["games"] != []
    return dict(whole)


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize(
    "algo", ["ppo", pytest.param("mappo", marks=pytest.mark.sweep), pytest.param("impala", marks=pytest.mark.sweep)]
)
def test_neither_workers_nor_a_kill_change_a_bit(algo: str, game: str, tmp_path: Path, launch: Any) -> None:
    own = [*SMALL, "--deterministic"] if algo == "impala" else SMALL
    if algo == "impala":
        own = [word for word in own if word not in ("--epochs", "--minibatches", "2")]
    words = ["--algo", algo, "--env", f"{FILE}:{game}", *own, *POOL, "--opponents", "pool"]
    result = same_bits(launch, tmp_path, words, () if algo == "impala" else ("1", "2"))
    lines = read(Path(result["run"]))

    assert lines[-1]["selfplay/pool"] == 2.0
    assert lines[-1]["selfplay/win"] + lines[-1]["selfplay/draw"] + lines[-1]["selfplay/loss"] == pytest.approx(1.0)
    (line,) = [line for line in lines if line["step"] == result["steps"] and "eval/win" in line]
    assert line["eval/win"] + line["eval/draw"] + line["eval/loss"] == pytest.approx(1.0)


def trained(launch: Any, folder: Path, game: str, *words: str, algo: str = "ppo") -> Path:
    """A small run to play against."""
    sizes = ["--streams", "2", "--unroll", "8", "--steps", "60", "--eval-every", "0", "--preset", "none", "--json"]
    env = game if game == "tic-tac-toe" else f"{FILE}:{game}"
    result = launch(folder, "--algo", algo, "--env", env, *sizes, "--workers", "0", "--out", "others", *words).result
    return Path(result["run"])


@pytest.mark.parametrize(
    ("pool", "game"),
    [
        ("pool,", "ThreeAtOnce"),
        pytest.param("", "ThreeAtOnce", marks=pytest.mark.sweep),
        pytest.param("pool,", "ThreeInTurns", marks=pytest.mark.sweep),
        ("", "ThreeInTurns"),
        pytest.param("pool,", "tic-tac-toe", marks=pytest.mark.sweep),
        pytest.param("", "tic-tac-toe", marks=pytest.mark.sweep),
    ],
)
def test_policies_of_other_runs_are_opponents(pool: str, game: str, tmp_path: Path, launch: Any) -> None:
    first = trained(launch, tmp_path, game, "--widths", "5")
    second = trained(launch, tmp_path, game, "--seed", "3", algo="a2c")
    third = (
        trained(launch, tmp_path, game, "--warmup", "20", "--batch", "4", algo="iql")
        if game == "ThreeAtOnce"
        else second
    )
    env = game if game == "tic-tac-toe" else f"{FILE}:{game}"
    names = f"{pool}{first},{next((second / 'checkpoints').glob('step-*'))},{third}"
    words = ["--algo", "ppo", "--env", env, *SMALL, *POOL, "--opponents", names]

    result = same_bits(launch, tmp_path, words, ("2",) if game == "ThreeAtOnce" else ())

    run = Path(result["run"])
    last = read(run)[-1]
    assert {key for key in last if "elo_other" in key} == {f"selfplay/elo_other_{n}" for n in (1, 2, 3)}
    assert last["selfplay/pool"] == (5.0 if pool else 3.0)
    assert "step-" in json.loads((run / "run.json").read_text())["config"]["opponents"].split(",")[-1]
    assert sum(rltrain.evaluate(run, episodes=2).outcomes.values()) == pytest.approx(1.0)


GRU = ["--memory", "gru", "--memory-size", "6"]


@pytest.mark.parametrize(
    ("game", "own"),
    [
        pytest.param("ThreeAtOnce", [*GRU, "--sequence", "7"], marks=pytest.mark.sweep),
        pytest.param("ThreeInTurns", [], marks=pytest.mark.sweep),  # whose learner has no memory
    ],
)
def test_neither_workers_nor_a_kill_change_the_memories_of_opponents(
    game: str, own: list[str], tmp_path: Path, launch: Any
) -> None:
    """Of snapshots and of another run. tests/rollout/actor/test_leagues.py has an oracle for what they remember."""
    other = trained(launch, tmp_path, game, "--warmup", "20", "--batch", "4", *GRU, "--last-action", algo="iql")
    words = ["--algo", "ppo", "--env", f"{FILE}:{game}", *SMALL, *own, *POOL, "--opponents", f"pool,{other}"]

    result = same_bits(launch, tmp_path, words)

    assert sum(rltrain.evaluate(Path(result["run"]), episodes=2).outcomes.values()) == pytest.approx(1.0)


def test_a_recording_tells_the_actions_of_opponents(tmp_path: Path, launch: Any) -> None:
    """Where all act at once, too; algorithms that learn from any behaviour learn from both."""
    words = ["--algo", "ppo", "--env", f"{FILE}:ThreeAtOnce", *SMALL, *POOL, "--opponents", "pool", "--workers", "0"]
    result = launch(tmp_path, *words, "--record", "data", "--out", "runs").result
    recording = Recording.open(tmp_path / "data")
    pieces = list(recording.pieces())
    acting = [piece.acting[:-1][piece.valid] for piece in pieces]
    shares = np.concatenate(acting).mean(0)

    assert recording.steps == result["steps"] >= 400
    assert ((shares > 0.3) & (shares < 0.95)).all()  # 7 of 10 games have two opponents, once there are snapshots
    words = ["--algo", "iql", "--env", f"{FILE}:ThreeAtOnce", "--replay-from", "data", "--steps", "40", "--batch", "4"]
    words += ["--eval-every", "0", "--preset", "none", "--json", "--quiet", "--out", "learned"]
    assert launch(tmp_path, *words).result["steps"] >= 40


@pytest.mark.parametrize(
    ("opponents", "said"),
    [
        ("nowhere", "nowhere: it does not exist; opponents are newest, pool, or runs and checkpoints"),
        ("pool,{folder}", "holds no checkpoint"),
        ("{one},{other}", "it was trained on"),
        ("{one}, {one}", "must name each opponent once"),
        ("{damaged}", "damaged"),
        ("newest,{one}", "must be newest, pool, or runs and checkpoints with commas between, got 'newest'"),
    ],
)
def test_what_cannot_be_an_opponent_is_refused(
    opponents: str, said: str, tmp_path: Path, launch: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Path] = {"folder": tmp_path}
    if "{one}" in opponents:
        names["one"] = trained(launch, tmp_path, "ThreeAtOnce")
    if "{other}" in opponents:
        names["other"] = trained(launch, tmp_path, "ThreeInTurns", "--unroll", "8")
    if "{damaged}" in opponents:
        run = trained(launch, tmp_path, "ThreeAtOnce")
        names["damaged"] = next((run / "checkpoints").glob("step-*"))
        (file,) = names["damaged"].glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-40] + b"\xff" * 40)

    words = ["--algo", "ppo", "--env", f"{FILE}:ThreeAtOnce", "--workers", "0", "--preset", "none", "--out", "runs"]
    assert cli.main([*words, "--opponents", opponents.format(**names)]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert said in line, line
    assert line.startswith(("rltrain: --opponents", "rltrain: opponents"))
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


TORSO = """
import torch

class Torso(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.features = 3
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, obs):
        rows = next(iter(obs.values()))
        return rows.reshape(len(rows), -1)[:, :1].float() * self.weight
"""


def test_the_code_of_an_opponent_needs_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a new run and for the resume of a run that somebody else made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(TORSO)
    words = ["--algo", "ppo", "--env", f"{FILE}:ThreeAtOnce", "--workers", "0", *SMALL, "--out", "runs"]
    words += ["--streams", "2", "--steps", "60", "--eval-every", "0"]

    def user(name: str) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / name))

    def refused(*argv: str) -> str:
        assert cli.main([*argv]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    user("one")
    assert cli.main([*words, "--name", "first", "--torso", "net.py:Torso"]) == 0
    user("other")
    against = [*words, "--name", "second", "--opponents", "runs/first"]
    assert "it would import 'net.py'" in refused(*against)
    assert cli.main([*against, "--trust"]) == 0
    user("third")
    again = ["--resume", "runs/second", "--steps", "120"]
    assert "an opponent, " in (line := refused(*again, "--import", FILE))
    assert "it would import 'net.py'" in line
    assert cli.main([*again, "--trust"]) == 0


def test_opponents_are_given_as_a_text_or_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"algo": "ppo", "env": "tic-tac-toe", "workers": 0, "preset": "none"}
    texts = ("newest", "pool", "pool, runs/a", "runs/a,./pool")
    configs = [load({**base, "opponents": text}) for text in texts]

    assert [config.has_opponents for config in configs] == [False, True, True, True]
    assert [config.keeps_pool for config in configs] == [False, True, True, False]
    assert [config.other_runs for config in configs] == [
        [],
        [],
        [str(tmp_path / "runs/a")],
        [str(tmp_path / "runs/a"), str(tmp_path / "pool")],
    ]
    assert load({**base, "opponents": ["pool", Path("runs/a")]}).opponents == configs[2].opponents
    with pytest.raises(ConfigError, match="cannot name a path that contains a comma"):
        load({**base, "opponents": [Path("runs/a,b")]})
    assert load({**base, "opponents": Path("runs/a")}).other_runs == configs[2].other_runs
