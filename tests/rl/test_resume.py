"""A run that was killed and resumed ends as one that never was: the same fingerprint, to the bit."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain.config.load import change, load
from rltrain.reporting.metrics import read
from rltrain.storage import checkpoint
from rltrain.storage import retention as checkpoints

SMALL = "--streams 4 --unroll 32 --epochs 2 --minibatches 2 --widths 8,8 --eval-episodes 2 --json --quiet".split()
SHORT = ["--algo", "ppo", *SMALL, "--steps", "1000", "--checkpoint-every", "200", "--eval-every", "300"]
A2C = "--algo a2c --streams 4 --unroll 16 --widths 8,8 --eval-episodes 2 --steps 1000 --checkpoint-every 60".split()
GRU = "--memory gru --memory-size 8 --sequence 8 --normalize-obs --normalize-return".split()
DQN = "--algo dqn --streams 3 --unroll 4 --widths 8,8 --eval-episodes 2 --steps 900 --checkpoint-every 100".split()
DQN += "--eval-every 300 --warmup 60 --batch 8 --updates-per-step 0.3 --target-every 20 --preset none".split()
DQN += ["--json", "--quiet"]
REPLAYS = "--n-step 3 --double --prioritized --normalize-obs".split()
EARLY = "--normalize-obs --no-random-start --epsilon 0 --epsilon-end 0 --warmup 700".split()
BOX = "--env Pendulum-v1 --workers 0 --streams 2 --unroll 5 --widths 8,8 --steps 400 --checkpoint-every 80".split()
BOX += "--warmup 60 --batch 8 --updates-per-step 0.3 --eval-every 0 --preset none --json --quiet".split()
GSDE = "--sde --squash --sde-every 7".split()
TEAM = "--workers 0 --streams 3 --unroll 4 --widths 8 --memory-size 8 --eval-episodes 2 --steps 900".split()
TEAM += "--checkpoint-every 100 --eval-every 300 --warmup 60 --batch 8 --updates-per-step 0.3 --capacity 400".split()
TEAM += "--target-every 20 --preset none --json --quiet".split()
ACTORS = "--workers 0 --streams 3 --unroll 4 --widths 8 --eval-episodes 2 --steps 900 --checkpoint-every 100".split()
ACTORS += "--eval-every 300 --warmup 60 --batch 8 --updates-per-step 0.3 --capacity 400 --preset none".split()
ACTORS += ["--json", "--quiet"]
CARTPOLE = ["--env", "CartPole-v1"]
BOX2D = pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="needs the extra box2d")
MUJOCO = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs the extra mujoco")

CASES = [
    pytest.param([*SHORT, *CARTPOLE, *GRU, "--workers", "0"], id="gru and normalisers"),
    pytest.param(
        [*SHORT, *CARTPOLE, "--workers", "0", "--streams", "128", "--unroll", "8", "--steps", "9000"]
        + ["--checkpoint-every", "1000", "--vector", "native"],
        id="native",
        marks=pytest.mark.sweep,
    ),
    pytest.param([*DQN, *CARTPOLE, "--workers", "0"], id="dqn", marks=pytest.mark.sweep),
    pytest.param(
        [*DQN, *REPLAYS, *CARTPOLE, "--workers", "0", "--capacity", "300"],
        id="dqn, n-step, prioritised",
        marks=pytest.mark.sweep,
    ),
    pytest.param(
        [*DQN, "--n-step", "3", "--env", "probe:dict", "--workers", "0", "--replay-on-disk"],
        id="on disk",
        marks=pytest.mark.sweep,
    ),
    pytest.param(
        ["--algo", "sac", *BOX, "--n-step", "2", "--prioritized"],
        id="sac, n-step, prioritised",
        marks=pytest.mark.sweep,
    ),
    pytest.param(
        [*SHORT, "--env", "Pendulum-v1", "--sde", "--squash", "--sde-every", "7", "--workers", "0"],
        id="ppo, gsde",
        marks=pytest.mark.sweep,
    ),
    pytest.param(["--algo", "tqc", *BOX, "--widths-q", "16,16", "--n-step", "2"], id="tqc", marks=pytest.mark.sweep),
    pytest.param(
        ["--algo", "qmix", "--env", "generations", *TEAM, "--memory", "gru"],
        id="qmix, agents that die",
        marks=pytest.mark.sweep,
    ),
    pytest.param(
        [*SHORT, "--env", "tic-tac-toe", "--workers", "0", "--normalize-return"]
        + ["--opponents", "pool", "--pool-size", "3", "--pool-every", "90"],
        id="ppo, in turns, against a pool",
        marks=pytest.mark.sweep,
    ),
    pytest.param(
        ["--algo", "qmix", "--env", "two-step", *TEAM, "--replay-on-disk"],
        id="qmix, state, on disk",
        marks=pytest.mark.sweep,
    ),
    pytest.param(
        ["--algo", "maddpg", "--env", "generations", *ACTORS], id="maddpg, agents that die", marks=pytest.mark.sweep
    ),
    pytest.param(
        [*SHORT, "--env", "LunarLander-v3", "--workers", "0"], id="LunarLander", marks=[BOX2D, pytest.mark.sweep]
    ),
]
MORE = [
    pytest.param([*SHORT, *CARTPOLE, "--workers", "0"], id="ppo", marks=pytest.mark.sweep),
    pytest.param([*A2C, *CARTPOLE, "--workers", "0", "--json", "--quiet"], id="a2c", marks=pytest.mark.sweep),
    pytest.param([*SHORT, "--env", "probe:dict", "--workers", "0"], id="dict observations", marks=pytest.mark.sweep),
    pytest.param(
        [*DQN, *EARLY, *CARTPOLE, "--workers", "0"], id="dqn, statistics before updates", marks=pytest.mark.sweep
    ),
    pytest.param(["--algo", "td3", *BOX, "--normalize-obs"], id="td3, normalised", marks=pytest.mark.sweep),
    pytest.param(
        ["--algo", "droq", *BOX, "--critics", "3", "--target-critics", "2", "--dropout", "0.2"],
        id="droq",
        marks=pytest.mark.sweep,
    ),
    pytest.param(["--algo", "sac", *BOX, "--sde", "--sde-every", "7"], id="sac, gsde", marks=pytest.mark.sweep),
    pytest.param(["--algo", "crossq", *BOX, "--widths-q", "16,16"], id="crossq", marks=pytest.mark.sweep),
    pytest.param(["--algo", "ddpg", *BOX, "--noise-kind", "ou"], id="ddpg, ou", marks=pytest.mark.sweep),
    pytest.param(
        ["--algo", "iql", "--env", "generations", *TEAM, "--last-action", "--share", "agent_0=old,agent_*=young"],
        id="iql, last actions, named policies",
        marks=pytest.mark.sweep,
    ),
    pytest.param(
        ["--algo", "vdn", "--env", "tic-tac-toe", *TEAM, "--length", "3"], id="vdn, in turns", marks=pytest.mark.sweep
    ),
    pytest.param(
        ["--algo", "maddpg", "--env", "spread", *ACTORS, "--noise-end", "0"], id="maddpg, box", marks=pytest.mark.sweep
    ),
    pytest.param(
        [*SHORT, "--env", "HalfCheetah-v5", "--workers", "0", "--eval-every", "0"],
        id="HalfCheetah",
        marks=[MUJOCO, pytest.mark.sweep],
    ),
]
# Moments spread over a run, one in the middle of each file of a checkpoint.
KILLS = [("step", 1), ("step", 3), ("write", 1), ("rename", 5), ("step", 4), ("write", 2), ("step", 3)]
# The same for deliveries that are small: a checkpoint comes every ninth.
OFTEN = [("step", 12), ("step", 13), ("write", 1), ("rename", 6), ("write", 8), ("step", 25), ("write", 3)]


def folder_of(out: Path) -> Path:
    (run,) = out.iterdir()
    return run


def killed_and_resumed(
    launch: Any, tmp: Path, argv: Sequence[str], kills: Sequence[tuple[str, int]], *more: str
) -> tuple[dict[str, Any], Path]:
    """The result of a run that died at each of `kills`, counted from where it was resumed."""
    kills = list(kills)
    done = launch(tmp, *argv, "--out", "cut", kill=kills.pop(0))
    assert done.status == -9, done
    run, steps = folder_of(tmp / "cut"), set()
    for kill in kills:
        if (run / "checkpoints" / "latest").exists():
            steps.add((run / "checkpoints" / "latest").read_text())
        done = launch(tmp, "--resume", str(run), *more, kill=kill)
        assert done.status in (-9, 0), done.err
        if done.status == 0:
            break
    assert len(steps) >= 2  # it did go on from different checkpoints
    return launch(tmp, "--resume", str(run), "--json", "--quiet", *more).result, run


@pytest.mark.parametrize("argv", CASES + MORE)
def test_killed_and_resumed_is_as_if_nothing_had_been(launch: Any, tmp_path: Path, argv: list[str]) -> None:
    whole = launch(tmp_path, *argv, "--out", "whole").result

    result, run = killed_and_resumed(launch, tmp_path, argv, OFTEN if "--warmup" in argv else KILLS)

    same = ("fingerprint", "steps", "episodes", "train_return", "eval_return", "stopped", "restarts")
    assert {key: result[key] for key in same} == {key: whole[key] for key in same}
    assert checkpoint.load(Path(tmp_path, result["checkpoint"])).meta["exact"] is True
    assert evaluations(run) == evaluations(Path(tmp_path, whole["run"]))


def evaluations(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["eval/return_mean"]) for line in read(run) if "eval/return_mean" in line]


def test_every_file_written_may_be_the_last(launch: Any, tmp_path: Path) -> None:
    """One run, killed in the middle of each write that comes, until it gets through."""
    argv = [*SHORT, *CARTPOLE, "--workers", "0", "--steps", "600"]
    whole = launch(tmp_path, *argv, "--out", "whole").result
    run = None
    for n in range(1, 40):
        words = argv + ["--out", "cut"] if run is None else ["--resume", str(run), "--json", "--quiet"]
        done = launch(tmp_path, *words, kill=("write", n))
        run = folder_of(tmp_path / "cut")
        if done.status == 0:
            break
        assert done.status == -9
        # The half-written one is not what is resumed.
        if (run / "checkpoints" / "latest").exists():
            checkpoints.find(run)

    assert n > 5
    assert run is not None
    assert done.result["fingerprint"] == whole["fingerprint"]
    assert not list((run / "checkpoints").glob(".writing*"))


def test_workers_may_change_at_each_resume(launch: Any, tmp_path: Path) -> None:
    argv = [*SHORT, *CARTPOLE, *GRU, "--steps", "800"]
    whole = launch(tmp_path, *argv, "--out", "whole", "--workers", "0").result

    assert launch(tmp_path, *argv, "--out", "cut", "--workers", "2", kill=("step", 4)).status == -9
    run = folder_of(tmp_path / "cut")
    result = launch(tmp_path, "--resume", str(run), "--workers", "3", "--json").result

    assert result["fingerprint"] == whole["fingerprint"]


@pytest.mark.sweep
def test_actors_without_networks_are_brought_back_too(launch: Any, tmp_path: Path) -> None:
    argv = [*SHORT, *CARTPOLE, *GRU, "--steps", "800"]
    whole = launch(tmp_path, *argv, "--out", "whole", "--workers", "0").result

    central = ["--workers", "2", "--inference", "central"]
    assert launch(tmp_path, *argv, "--out", "cut", *central, kill=("step", 4)).status == -9
    result = launch(tmp_path, "--resume", str(folder_of(tmp_path / "cut")), "--json").result

    assert result["fingerprint"] == whole["fingerprint"]
    assert result["restarts"] == 0


def test_before_the_first_checkpoint_it_begins_again(launch: Any, tmp_path: Path) -> None:
    argv = [*SHORT, *CARTPOLE, "--workers", "0", "--steps", "600", "--checkpoint-every", "500"]
    whole = launch(tmp_path, *argv, "--out", "whole").result
    assert launch(tmp_path, *argv, "--out", "cut", kill=("step", 2)).status == -9
    run = folder_of(tmp_path / "cut")
    assert not (run / "checkpoints" / "latest").exists()

    done = launch(tmp_path, "--resume", str(run), "--json")

    assert done.result["fingerprint"] == whole["fingerprint"]
    assert f"{run} holds no checkpoint yet: it begins at step 0" in done.err


def test_metrics_are_cut_back_to_the_checkpoint(launch: Any, tmp_path: Path) -> None:
    argv = [*SHORT, *CARTPOLE, "--workers", "0"]
    launch(tmp_path, *argv, "--out", "cut", kill=("step", 4))
    run = folder_of(tmp_path / "cut")
    step = checkpoints.find(run)[0].meta["step"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step + 1, "lost": 1.0}) + "\n" + '{"step": 9')
    (run / "checkpoints" / "step-000000099999").mkdir()  # of a future that will not be

    result = launch(tmp_path, "--resume", str(run), "--json", "--quiet").result

    lines = read(run)
    assert not any("lost" in line for line in lines)
    assert lines[-1]["step"] == result["steps"]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert not (run / "checkpoints" / "step-000000099999").exists()


def test_an_evaluation_under_way_is_run_again(launch: Any, tmp_path: Path) -> None:
    """Killed right after a checkpoint that was written while an evaluation waited: its weights are in there."""
    run = Path(rltrain.train(**KEYWORDS, out=str(tmp_path), steps=300).run)
    found = checkpoints.find(run)[0]
    arrays = found.state["learner"]["parts"]["policy"]
    state = found.state | {"evaluation": found.state["evaluation"] | {"best": -1.0, "evaluated": 128}}
    state["evaluation"]["pending"] = [{"version": 1, "step": 128, "arrays": arrays}]
    meta = {key: value for key, value in found.meta.items() if key not in ("format", "files", "structure")}
    path = checkpoint.save(run / "checkpoints", found.path.name, state, meta)
    checkpoints.point(run / "checkpoints", "latest", path.name)

    result = launch(tmp_path, "--resume", str(run), "--json", "--quiet").result

    assert [step for step, _ in evaluations(run)][-2:] == [128, result["steps"]]
    # The same weights, the same seeds.
    assert evaluations(run)[-1][1] == evaluations(run)[-2][1] == result["eval_return"]
    assert checkpoints.find(run, best=True)[0].meta["step"] == 128


KEYWORDS: dict[str, Any] = {
    "algo": "ppo", "env": "CartPole-v1", "workers": 0, "streams": 4, "unroll": 32, "epochs": 1, "widths": (8,),
    "eval_episodes": 2, "quiet": True,
}  # fmt: skip


def test_a_finished_run_stays_as_it_is_or_goes_on(tmp_path: Path) -> None:
    first = rltrain.train(**KEYWORDS, steps=300, out=str(tmp_path))

    again = rltrain.train(resume=first.run)

    same = ("steps", "episodes", "train_return", "eval_return", "run", "fingerprint", "stopped")
    assert [getattr(again, key) for key in same] == [getattr(first, key) for key in same]
    assert again.steps_per_second == 0.0
    assert evaluations(first.run) == evaluations(again.run)

    longer = rltrain.train(resume=first.run, steps=900)

    assert longer.steps >= 900
    assert longer.episodes > first.episodes
    assert longer.fingerprint != first.fingerprint
    assert rltrain.load(first.run).config.steps == 900
    assert checkpoint.load(longer.checkpoint).meta["version"] > 5


def test_a_run_that_stopped_at_its_goal_has_stopped(tmp_path: Path) -> None:
    asked = {**KEYWORDS, "eval_every": 130, "stop_return": 5.0}
    first = rltrain.train(**asked, steps=5000, out=str(tmp_path))
    assert first.stopped == "return"

    again = rltrain.train(resume=first.run)

    assert (again.fingerprint, again.stopped, again.steps) == (first.fingerprint, "return", first.steps)
    assert rltrain.train(resume=first.run, steps=6000).steps > first.steps


@BOX2D
def test_what_cannot_be_brought_back_says_so(launch: Any, tmp_path: Path) -> None:
    argv = [*SHORT, "--env", "BipedalWalker-v3", "--workers", "0", "--eval-every", "0", "--steps", "500"]
    argv.remove("--quiet")
    done = launch(tmp_path, *argv, "--out", "cut", kill=("step", 3))
    assert "BipedalWalker-v3 cannot be restored in mid-episode: a resumed run is not exact" in done.err
    run = folder_of(tmp_path / "cut")
    assert checkpoints.find(run)[0].meta["exact"] is False

    done = launch(tmp_path, "--resume", str(run), "--json")

    assert done.result["steps"] >= 500
    assert "exact: false" in done.err


def test_a_finished_run_says_so_and_writes_nothing_new(launch: Any, tmp_path: Path) -> None:
    argv = [*SHORT, *CARTPOLE, "--workers", "0", "--steps", "400", "--out", "runs"]
    first = launch(tmp_path, *argv).result
    run = folder_of(tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    done = launch(tmp_path, "--resume", str(run), "--json")

    assert "this run is finished; a larger --steps continues it, for example: rltrain --resume runs/" in done.err
    same = ("fingerprint", "steps", "episodes", "train_return", "eval_return", "stopped", "checkpoint")
    assert {key: done.result[key] for key in same} == {key: first[key] for key in same}
    changed = {path for path in run.rglob("*") if path.is_file() and path.stat().st_mtime_ns != before.get(path)}
    assert changed <= {run / "run.json", run / "metrics.jsonl"}

    done = launch(tmp_path, "--resume", str(run), "--steps", str(first["steps"] - 1), "--quiet")

    fewer = f"--steps {first['steps'] - 1}: the run has made {first['steps']} steps already; ask for more of them"
    assert (done.status, done.line) == (2, f"rltrain: {fewer}")


def test_an_evaluation_that_a_signal_interrupted_still_ends_the_run_at_its_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the second evaluation in a row that reaches the goal."""
    from rltrain.evaluation.background import BackgroundEvaluation

    asked = {**KEYWORDS, "eval_every": 130, "stop_return": 5.0, "steps": 5000}
    whole = rltrain.train(**asked, out=str(tmp_path / "whole"))
    assert whole.stopped == "return"
    collect, calls = BackgroundEvaluation.collect, 0

    def interrupted(self: BackgroundEvaluation, *args: Any, **more: Any) -> None:
        nonlocal calls
        calls += self.pending
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
            return
        collect(self, *args, **more)

    monkeypatch.setattr(BackgroundEvaluation, "collect", interrupted)
    with pytest.raises(rltrain.Interrupted):
        rltrain.train(**asked, out=str(tmp_path / "cut"))
    monkeypatch.undo()
    run = folder_of(tmp_path / "cut")
    assert len(checkpoints.find(run)[0].state["evaluation"]["pending"]) == 1

    again = rltrain.train(resume=run, quiet=True)

    assert (again.stopped, again.steps, again.fingerprint) == ("return", whole.steps, whole.fingerprint)
    assert evaluations(run) == evaluations(whole.run)
    assert checkpoints.find(run, best=True)[0].meta["step"] == whole.steps


def test_a_configuration_beside_resume_must_be_that_of_the_run(tmp_path: Path) -> None:
    """What it leaves to its defaults is the run's, as are the defaults for Box actions; run.json stays as it was."""
    given = {"algo": "ppo", "env": "Pendulum-v1", "workers": 0, "streams": 2, "unroll": 16, "widths": (8,)}
    given |= {"steps": 64, "eval_every": 0, "quiet": True, "preset": "none", "out": str(tmp_path / "runs")}
    config = load(given)
    run = rltrain.train(config).run
    shutil.copytree(run, tmp_path / "copy")
    before = (run / "run.json").read_bytes()

    for other in ({"lr": 0.5}, {"seed": 7}, {"streams": 3}, {"gamma": 0.5}, {"checkpoint_every": 7}):
        (key,) = other
        with pytest.raises(
            rltrain.ConfigError, match=rf"has (settings\.)?{key} .* which a resume cannot change; leave"
        ):
            rltrain.train(change(config, other), resume=run, steps=128)
    with pytest.raises(rltrain.ConfigError, match=r"the configuration has algo 'a2c', and the run in .* has 'ppo'"):
        rltrain.train(load(given | {"algo": "a2c"}), resume=run, steps=128)
    assert (run / "run.json").read_bytes() == before

    again = rltrain.train(config, resume=run, steps=128)
    assert again.fingerprint == rltrain.train(resume=tmp_path / "copy", steps=128, quiet=True).fingerprint
