"""Whole runs: when they stop, what they leave behind, what they say; and how they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import rltrain
from rltrain import cli
from rltrain.evaluation.background import evaluation_seeds
from rltrain.reporting.metrics import read
from rltrain.rollout.actor.play import play
from rltrain.rollout.scheduler import Rollout
from rltrain.storage import checkpoint
from rltrain.storage import retention as checkpoints
from rltrain.system.time_limit import TimeLimit

QUICK: dict[str, Any] = {
    "algo": "ppo", "env": "CartPole-v1", "workers": 0, "streams": 4, "unroll": 32, "epochs": 1, "minibatches": 2,
    "widths": (8,), "steps": 600, "eval_episodes": 2, "preset": "none", "quiet": True,
}  # fmt: skip
FLAGS = "--algo ppo --env CartPole-v1 --workers 0 --streams 4 --unroll 32 --widths 8 --steps 300 --preset none".split()


@pytest.fixture
def quick(tmp_path: Path) -> dict[str, Any]:
    return {**QUICK, "out": str(tmp_path)}


def evaluations(run: Path) -> list[tuple[int, float, float]]:
    lines = [line for line in read(run) if "eval/return_mean" in line]
    return [(line["step"], line["eval/return_mean"], line["eval/episodes"]) for line in lines]


def played(path: Path, seed: int, episodes: int) -> float:
    """The mean return of a checkpoint's weights on the run's own evaluation episodes."""
    trained = rltrain.load(path)
    seeds = evaluation_seeds(seed, episodes)
    found = play(lambda: rltrain.make_env("CartPole-v1"), trained.spec, trained.policy, seeds)
    return float(np.mean([episode.ret for episode in found]))


# --- when it stops ---


def test_it_stops_after_two_good_evaluations_in_a_row(quick: dict[str, Any]) -> None:
    result = rltrain.train(**{**quick, "steps": 5000, "eval_every": 130, "stop_return": 5.0, "eval_episodes": 3})

    assert (result.stopped, result.steps < 1000) == ("return", True)
    found = evaluations(result.run)
    assert len(found) == 2
    assert {episodes for _, _, episodes in found} == {50.0}  # never fewer with a goal
    assert found[-1][0] == result.steps
    assert found[-1][1] == result.eval_return
    best = checkpoints.find(result.run, best=True)[0].path
    for path in (best, result.checkpoint):
        assert played(path, 0, 50) == result.eval_return
    assert checkpoint.load(best).meta["step"] == result.steps


def test_one_good_evaluation_is_not_enough(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from rltrain.evaluation.background import EvaluationQueue
    from rltrain.rollout.types import Episode

    returns = iter([9.0, 1.0, 9.0, 9.0, 9.0])
    real = EvaluationQueue.collect

    def fake(self: EvaluationQueue, *args: Any) -> Any:
        done = real(self, *args)
        return [(weights, [Episode(next(returns), 1)] * 50) for weights, _ in done]

    monkeypatch.setattr(EvaluationQueue, "collect", fake)

    result = rltrain.train(**{**quick, "steps": 5000, "eval_every": 130, "stop_return": 5.0})

    assert [value for _, value, _ in evaluations(result.run)] == [9.0, 1.0, 9.0, 9.0]
    assert result.stopped == "return"
    # Equal to the first, so not better; but the weights the run ended with are what `best` holds.
    assert checkpoints.find(result.run, best=True)[0].meta["step"] == result.steps


def test_the_goal_must_be_reached(quick: dict[str, Any]) -> None:
    result = rltrain.train(**{**quick, "eval_every": 130, "stop_return": 501.0})

    assert (result.stopped, result.steps >= 600) == ("steps", True)


def test_best_is_the_first_of_the_highest_in_the_order_of_steps(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rltrain.evaluation.background import EvaluationQueue
    from rltrain.rollout.types import Episode

    real, seen = EvaluationQueue.collect, []

    def fake(self: EvaluationQueue, *args: Any) -> Any:
        done = []
        for weights, _ in real(self, *args):
            seen.append(weights.step)
            done.append((weights, [Episode([3.0, 7.0, 7.0, 5.0][len(seen) - 1], 1)]))
        return done

    monkeypatch.setattr(EvaluationQueue, "collect", fake)

    result = rltrain.train(**{**quick, "steps": 500, "eval_every": 130})

    assert len(seen) == 4
    assert seen == sorted(seen)
    meta = checkpoints.find(result.run, best=True)[0].meta
    assert (meta["step"], meta["eval_return"], meta["kind"]) == (seen[1], 7.0, "policy")
    assert result.eval_return == 5.0


@pytest.fixture
def three_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a run is over after three rounds."""
    calls = [0]

    def reached(self: TimeLimit, evaluates: bool) -> bool:
        calls[0] += 1  # the first one before the first round
        return calls[0] > 3

    monkeypatch.setattr(TimeLimit, "reached", reached)


@pytest.mark.usefixtures("three_rounds")
def test_it_stops_after_max_seconds(quick: dict[str, Any]) -> None:
    result = rltrain.train(**{**quick, "steps": 10**9, "max_seconds": 3600, "eval_every": 0})

    assert (result.stopped, result.eval_return) == ("seconds", None)
    meta = checkpoint.load(result.checkpoint).meta
    assert (meta["version"], meta["step"]) == (3, result.steps)


@pytest.mark.usefixtures("three_rounds")
def test_an_evaluation_that_is_cut_off_is_made_by_the_resume(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TimeLimit, "evaluations_end", 0.0)
    monkeypatch.setattr(TimeLimit, "allows_evaluation", True)
    cut = rltrain.train(**{**quick, "quiet": False, "steps": 1000, "eval_every": 10**6})
    monkeypatch.undo()

    assert "an evaluation was cut off at the end of --max-seconds" in capsys.readouterr().out
    assert (cut.stopped, cut.eval_return, evaluations(cut.run)) == ("seconds", None, [])
    assert len(checkpoint.load(cut.checkpoint).state["evaluation"]["pending"]) == 1

    expected = played(cut.checkpoint, 0, 2)

    again = rltrain.train(resume=cut.run, quiet=True)

    assert [step for step, _, _ in evaluations(cut.run)] == [cut.steps, again.steps]
    assert evaluations(cut.run)[0][1] == expected


def test_unrolls_that_do_not_arrive_in_time_are_given_up(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gather, calls = Rollout.gather, [0]

    def late(self: Rollout, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise InterruptedError
        return gather(self, *args)

    monkeypatch.setattr(Rollout, "gather", late)
    result = rltrain.train(**{**quick, "quiet": False, "eval_every": 0})

    meta = checkpoint.load(result.checkpoint).meta
    assert (result.stopped, meta["version"], meta["exact"]) == ("seconds", 2, False)
    assert "were given up at the end of --max-seconds (exact: false)" in capsys.readouterr().out
    assert rltrain.train(resume=result.run, quiet=True).steps >= 600


@pytest.mark.usefixtures("three_rounds")
def test_the_last_checkpoint_does_not_wait_for_actors_that_do_not_answer_in_time(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: Rollout) -> Any:
        raise InterruptedError

    monkeypatch.setattr(Rollout, "state", late)
    result = rltrain.train(**{**quick, "eval_every": 0, "checkpoint_every": 0})

    meta = checkpoint.load(result.checkpoint).meta
    assert (result.stopped, meta["version"], meta["exact"]) == ("seconds", 3, False)


def test_a_run_that_does_not_start_in_time_says_so(quick: dict[str, Any]) -> None:
    with pytest.raises(rltrain.RunFailed, match=r"^it did not start within --max-seconds 0.01; no checkpoint was"):
        rltrain.train(**{**quick, "max_seconds": 0.01})

    assert not list(Path(quick["out"]).glob("*"))


# --- what it leaves behind ---


def test_the_result_and_the_folder(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rltrain", "--some", "flags"])
    result = rltrain.train(**{**quick, "seed": 7, "keep": 2, "checkpoint_every": 130})

    assert result.run.parent == Path(quick["out"])
    assert result.run.name.startswith("ppo-CartPole-v1-s7-")
    assert result.checkpoint.parent == result.run / "checkpoints"
    assert (result.stopped, result.restarts) == ("steps", 0)
    assert result.steps >= 600
    assert result.episodes > 5
    assert result.train_return is not None
    assert result.train_return > 1
    assert result.seconds > 0
    assert result.steps_per_second > 0

    told = json.loads((result.run / "run.json").read_text())
    assert told["commands"] == [["rltrain", "--some", "flags"]]
    assert told["config"]["seed"] == 7
    assert told["config"]["settings"]["widths"] == [8]
    assert {"python", "torch", "numpy", "gymnasium"} <= set(told["versions"])
    assert told["spec"]["id"] == "CartPole-v1"
    found = checkpoint.load(result.checkpoint)
    assert found.meta["config"] == told["config"]
    assert checkpoint.fingerprint(found.state["learner"]["parts"]) == result.fingerprint
    assert len(list((result.run / "checkpoints").glob("step-*"))) == 2
    assert not list(result.run.rglob(".*"))


def test_one_run_one_folder(quick: dict[str, Any]) -> None:
    one, other = (rltrain.train(**{**quick, "steps": 10, "eval_every": 0}) for _ in range(2))

    assert one.run != other.run
    assert one.fingerprint == other.fingerprint
    assert rltrain.train(**{**quick, "steps": 10, "eval_every": 0, "seed": 1}).fingerprint != one.fingerprint


def test_metrics_and_events_say_the_same(quick: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = rltrain.train(**{**quick, "eval_every": 200})

    lines = read(result.run)
    events = EventAccumulator(str(result.run / "tensorboard"))
    events.Reload()
    for name in ("eval/return_mean", "learner/loss_policy", "rollout/return_mean"):
        told = [(line["step"], line[name]) for line in lines if name in line]
        assert told
        assert [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(name)] == told
    shares = [line for line in lines if "time/acting" in line][-1]
    assert 0.99 < sum(shares[f"time/{part}"] for part in ("acting", "learning", "other")) < 1.01


# --- what it says ---


def test_the_json_line_is_the_last_and_alone(launch: Any, tmp_path: Path) -> None:
    done = launch(tmp_path, *FLAGS, "--json")

    (line,) = done.out.splitlines()
    words = (
        "steps seconds train_seconds steps_per_second episodes train_return eval_return stopped run checkpoint restarts"
    )
    assert list(json.loads(line)) == [*words.split(), "fingerprint"]
    assert "ppo on CartPole-v1: 300 steps, 4 streams, in this process, seed 0, device cpu" in done.err


def test_quiet_leaves_the_result_only(launch: Any, tmp_path: Path) -> None:
    done = launch(tmp_path, *FLAGS, "--quiet", "--eval-every", "0")

    line, end = done.out.splitlines()
    assert "steps in" in line
    assert end.startswith("ended: all 300 steps are done; to continue: rltrain --resume ")
    assert done.err == ""


def test_a_preset_is_named_and_a_flag_wins(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rltrain.config import presets

    (tmp_path / "configs" / "ppo").mkdir(parents=True)
    file = tmp_path / "configs" / "ppo" / "CartPole-v1.toml"
    file.write_text("steps = 200\nstreams = 2\neval_every = 0\n[ppo]\nunroll = 16\nwidths = [4]\n")
    monkeypatch.setattr(presets, "folders", lambda: [tmp_path / "configs"])

    argv = ["--algo", "ppo", "--env", "CartPole-v1", "--workers", "0", "--streams", "3", "--out", str(tmp_path / "o")]
    assert cli.main(argv) == 0

    printed = capsys.readouterr().out
    assert "settings from configs/ppo/CartPole-v1.toml; --preset none ignores it" in printed
    assert "200 steps, 3 streams" in printed
    (run,) = (tmp_path / "o").iterdir()
    told = json.loads((run / "run.json").read_text())["config"]
    assert (told["settings"]["unroll"], told["settings"]["widths"], told["streams"]) == (16, [4], 3)


# --- how it refuses ---


ENVS = """
import gymnasium, numpy as np
from gymnasium import spaces

class Fine(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    def __init__(self, size=1): self.size = size
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 1.0, False, True, {}

class RaisesAtOnce(Fine):
    def __init__(self): raise RuntimeError("no licence for this simulator")

class RaisesInStep(Fine):
    def step(self, action): raise RuntimeError("the simulator fell over")

class RaisesLater(Fine):
    steps = 0
    def step(self, action):
        self.steps += 1
        if self.steps > 30: raise RuntimeError("the simulator fell over")
        return super().step(action)

class Unbounded(Fine):
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

class Text(Fine):
    observation_space = spaces.Text(5)

class NaN(Fine):
    def step(self, action): return np.full(2, np.nan, np.float32), 1.0, False, True, {}

class Old(Fine):
    def step(self, action): return np.zeros(2, np.float32), 1.0, True, {}

def not_an_env(): return 3
"""


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--algo", "pp0", "--env", "CartPole-v1"], ["--algo", "'pp0'", "did you mean 'ppo'?"]),
        (["--algo", "ppo", "--env", "CartPol-v1"], ["unknown environment 'CartPol-v1'", "'CartPole-v1'"]),
        (["--algo", "ppo", "--env", "nowhere.tasks:Maze"], ["nowhere"]),
        (["--algo", "ppo", "--env", "mine.py"], ["mine.py:ClassOrFactory"]),
        (["--algo", "ppo", "--env", "gone.py:Maze"], ["gone.py:Maze", "no file"]),
        (["--algo", "ppo", "--env", "mine.py:Fin"], ["Fin", "Fine"]),
        (["--algo", "ppo", "--env", "mine.py:Fine", "--env-arg", "sise=3"], ["sise", "size"]),
        (["--algo", "ppo", "--env", "mine.py:not_an_env"], ["not a gymnasium.Env"]),
        (["--algo", "sac", "--env", "mine.py:Unbounded"], ["mine.py:Unbounded have none", "--action-bound 1.0"]),
        (["--algo", "ppo", "--env", "mine.py:Text"], ["Text", "Supported: Box"]),
        (["--algo", "ppo", "--env", "mine.py:NaN"], ["not finite"]),
        (["--algo", "ppo", "--env", "mine.py:Old"], ["4 values as the old gym did"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--lr", "fast"], ["--lr must be a number, got 'fast'"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--steps", "0"], ["--steps must be at least 1, got 0"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--gamma", "1.1"], ["--gamma must be at most 1, got 1.1"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--streams", "2", "--workers", "3"], ["3 workers for 2 streams"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--device", "cuda:99"], ["--device cuda:99 is not available"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--device", "gpu"], ["--device gpu is not known", "cuda:1"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--device", "meta"], ["--device meta is not known"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--torso", "no.such:Net"], ["no.such:Net"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--policy", "actor"], ["unknown policy 'actor'"]),
        (["--algo", "ppo", "--env", "CartPole-v1", "--memory", "gru", "--sequence", "7"], ["sequence must divide"]),
    ],
    ids=lambda value: " ".join(value[3:]) if "--algo" in value else "",
)
def test_what_cannot_start_is_answered_in_one_line(
    argv: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "mine.py").write_text(ENVS)
    monkeypatch.chdir(tmp_path)
    if "--workers" not in argv:
        argv = [*argv, "--workers", "0"]

    status = cli.main(argv)

    printed = capsys.readouterr()
    assert (status, printed.out) == (2, ""), printed
    (line,) = printed.err.splitlines()
    assert line.startswith("rltrain: ")
    assert [word for word in words if word not in line] == [], line
    assert not (tmp_path / "runs").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("name", "last", "begun"),
    [
        ("RaisesAtOnce", "RuntimeError: no licence for this simulator", False),
        ("RaisesInStep", "RuntimeError: the simulator fell over", False),
        ("RaisesLater", "RuntimeError: the simulator fell over", True),
    ],
)
def test_an_environment_that_raises_shows_its_own_traceback(
    name: str, last: str, begun: bool, tmp_path: Path, launch: Any
) -> None:
    (tmp_path / "mine.py").write_text(ENVS)
    argv = [*FLAGS, "--env", f"mine.py:{name}", "--max-restarts", "0"]

    done = launch(tmp_path, *argv)

    assert done.status == 1
    assert last in done.err
    assert f'{tmp_path / "mine.py"}", line' in done.err
    if begun:
        assert "stream" in done.err
        assert "seed" in done.err
        (run,) = (tmp_path / "runs").iterdir()
        assert f"checkpoint {run}/checkpoints/step-" in done.err
    else:
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not a run's folder: it has no run.json"),
        ("", "run.json"),
        ("{", "run.json"),
        ("[]", "run.json"),
        ('{"config": 3}', "run.json"),
        ('{"config": {}}', "run.json"),
        ('{"config": {"algo": "ppo", "settings": {}}}', "env"),
        ('{"config": {"algo": "ppo"}}', "run.json"),
        ('{"config": {"algo": ["ppo"], "settings": {}, "env": "CartPole-v1"}}', "algo"),
        ('{"config": {"algo": "mine", "settings": {}, "env": "CartPole-v1"}}', "mine"),
        ('{"config": {"algo": "ppo", "settings": {"lr": "x"}, "env": "CartPole-v1"}}', "lr"),
        ('{"config": {"algo": "ppo", "settings": 3, "env": "CartPole-v1"}}', "run.json"),
        ("\0\udcff", "run.json"),
    ],
)
def test_a_folder_that_cannot_be_resumed_is_refused(text: str | None, words: str, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if text is not None:
        (folder / "run.json").write_bytes(text.encode(errors="surrogateescape"))

    assert cli.main(["--resume", str(folder)]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rltrain: ")
    assert words in line


class Outside(gymnasium.Env[Any, Any]):
    """Each observation has one number outside of the bounds of its Box."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.array([0.5, 7.0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.array([0.5, 7.0], np.float32), 1.0, False, False, {}


def test_numbers_outside_of_a_box_of_floats_are_counted_and_reported_once(quick: dict[str, Any], capsys: Any) -> None:
    result = rltrain.train(**{**quick, "env": Outside, "steps": 200, "eval_every": 0, "quiet": False})

    assert capsys.readouterr().out.count("counted as rollout/outside_bounds") == 1
    assert read(result.run)[-1]["rollout/outside_bounds"] >= result.steps


def test_a_damaged_checkpoint_is_not_resumed(quick: dict[str, Any], capsys: Any) -> None:
    result = rltrain.train(**{**quick, "steps": 200, "eval_every": 0, "checkpoint_every": 0})
    file = result.checkpoint / checkpoint.STATE
    file.write_bytes(file.read_bytes()[:-1])
    lines = (result.run / "metrics.jsonl").read_text()

    assert cli.main(["--resume", str(result.run), "--steps", "400"]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rltrain: {file} is damaged: ")
    assert (result.run / "metrics.jsonl").read_text() == lines
