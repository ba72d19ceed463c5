"""Several learners do what one does with the whole batch, and a run does not care how many there are."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracles import shared
from torch import Tensor
from torch.testing import assert_close

from rltrain import cli
from rltrain.reporting.metrics import read
from rltrain.storage import checkpoint

ROOT = Path(__file__).parents[3]
PPO = "--algo ppo --env CartPole-v1 --workers 0 --streams 5 --unroll 32 --epochs 2 --minibatches 3 --widths 8,8".split()
PPO += "--normalize-obs --normalize-return --steps 640 --eval-every 0 --preset none --json --quiet".split()
DQN = "--algo dqn --env CartPole-v1 --workers 0 --streams 3 --unroll 4 --widths 8,8 --warmup 60 --batch 9".split()
DQN += "--updates-per-step 0.3 --target-every 20 --prioritized --normalize-obs --steps 600 --eval-every 0".split()
DQN += "--preset none --json --quiet".split()
SAC = "--algo sac --env Pendulum-v1 --workers 1 --streams 2 --unroll 5 --widths 8,8 --warmup 60 --batch 8".split()
SAC += "--updates-per-step 0.3 --steps 400 --eval-every 0 --preset none --json --quiet".split()
IMPALA = "--algo impala --env CartPole-v1 --workers 2 --streams 4 --unroll 16 --widths 8,8 --steps 2000".split()
IMPALA += "--eval-every 0 --preset none --json --quiet".split()
QMIX = "--algo qmix --env generations --streams 3 --unroll 4 --widths 8 --memory gru --memory-size 8".split()
QMIX += "--warmup 60 --batch 9 --updates-per-step 0.1 --target-every 20 --steps 500 --eval-every 0".split()
QMIX += "--preset none --json --quiet".split()
MAPPO = "--algo mappo --env generations --streams 4 --unroll 16 --widths 8 --epochs 2 --minibatches 2".split()
MAPPO += "--memory gru --memory-size 6 --sequence 8 --steps 600 --eval-every 0 --preset none --json --quiet".split()
TURNS = "--algo ppo --env tic-tac-toe --streams 4 --unroll 16 --widths 8 --epochs 2 --minibatches 2".split()
TURNS += "--opponents pool --pool-every 100 --steps 600 --eval-every 0 --preset none --json --quiet".split()
LONG = ["--steps", "100000000"]


# --- whole runs ---


def run(folder: Path, launch: Any, *words: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return launch(folder, *words, "--out", str(folder / "runs")).result


def parts(result: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    shared.flatten(
        checkpoint.to_tensors(checkpoint.load(Path(result["checkpoint"])).state["learner"]["parts"]), "", found
    )
    return found


@pytest.fixture(scope="module")
def ppo_with_two(tmp_path_factory: pytest.TempPathFactory, launch: Any) -> dict[str, Any]:
    """The result of a run of PPO with two learners."""
    return run(tmp_path_factory.mktemp("ppo"), launch, *PPO, "--learners", "2")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(PPO, id="ppo"),
        pytest.param(DQN, id="dqn", marks=pytest.mark.sweep),
        pytest.param(SAC, id="sac", marks=pytest.mark.sweep),
        pytest.param([*QMIX, "--workers", "0"], id="qmix", marks=pytest.mark.sweep),
        pytest.param([*MAPPO, "--workers", "0"], id="mappo"),
    ],
)
def test_a_run_with_two_learners_is_the_run_with_one(
    words: list[str], tmp_path: Path, launch: Any, ppo_with_two: dict[str, Any]
) -> None:
    one, two = (run(tmp_path, launch, *words, "--learners", k) for k in ("1", "2"))
    again = ppo_with_two if words is PPO else run(tmp_path, launch, *words, "--learners", "2")

    assert two["fingerprint"] == again["fingerprint"] != one["fingerprint"]  # sums of floats in another order
    ours = parts(two)
    for key, x in parts(one).items():
        assert_close(ours[key], x, atol=2e-3, rtol=1e-2, msg=lambda text, key=key: f"{key}: {text}")


def test_asynchronous_runs_have_several_learners_too(tmp_path: Path, launch: Any) -> None:
    result = run(tmp_path, launch, *IMPALA, "--learners", "2", "--wait", "1")  # a batch may be one stream

    assert result["steps"] >= 2000
    (folder,) = (tmp_path / "runs").iterdir()
    assert all(line["learner/grad_norm"] > 0 for line in read(folder) if "learner/grad_norm" in line)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(QMIX, id="qmix", marks=pytest.mark.sweep),
        pytest.param(MAPPO, id="mappo"),
        pytest.param(TURNS, id="ppo, in turns, against a pool", marks=pytest.mark.sweep),
    ],
)
def test_with_several_agents_neither_workers_nor_a_kill_change_a_bit(
    words: list[str], tmp_path: Path, launch: Any
) -> None:
    words = [*words, "--learners", "2", "--checkpoint-every", "150"]
    whole = run(tmp_path / "whole", launch, *words, "--workers", "0")
    assert run(tmp_path / "spread", launch, *words, "--workers", "2")["fingerprint"] == whole["fingerprint"]
    done = launch(tmp_path, *words, "--workers", "0", "--out", "runs", kill=("write", 2))
    assert done.status == -signal.SIGKILL
    (begun,) = (tmp_path / "runs").iterdir()

    resumed = launch(tmp_path, "--resume", str(begun), "--json").result

    assert resumed["fingerprint"] == whole["fingerprint"]


@pytest.mark.parametrize("learners", ["1", pytest.param("3", marks=pytest.mark.sweep)])
def test_a_checkpoint_does_not_tell_how_many_learners_there_were(
    learners: str, tmp_path: Path, launch: Any, ppo_with_two: dict[str, Any]
) -> None:
    whole = ppo_with_two
    half = ["--steps", "640", "--checkpoint-every", "320"]
    folder = tmp_path / learners
    folder.mkdir()
    done = launch(folder, *PPO, *half, "--learners", "2", "--out", "runs", kill=("step", 4))
    assert done.status == -signal.SIGKILL
    (begun,) = (folder / "runs").iterdir()

    resumed = launch(folder, "--resume", str(begun), "--learners", learners, "--json").result

    assert resumed["steps"] == whole["steps"]
    for key, x in parts(whole).items():
        assert_close(parts(resumed)[key], x, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--algo", "a3c", "--env", "CartPole-v1"], "--learners 2: the actors of a3c make its gradients"),
        (["--algo", "crossq", "--env", "Pendulum-v1"], "--learners 2: crossq does not share its updates"),
        (["--algo", "mappo", "--env", "generations", "--streams", "1"], "a batch has 1 to share (--streams)"),
        (["--algo", "ppo", "--env", "CartPole-v1", "--streams", "1"], "a batch has 1 to share (--streams)"),
        (["--algo", "dqn", "--env", "CartPole-v1", "--batch", "1"], "a batch has 1 to share (--batch)"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)

    assert cli.main([*words, "--learners", "2", "--workers", "0", "--preset", "none"]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


# --- learners that are lost ---


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rltrain.train", *words],
        env=shared.environment(),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(what: Any, seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("runs/*/checkpoints/step-*"))


def second_learner(pid: int) -> int:
    """The process of a run that has a connection over TCP and is not the first: actors have pipes."""
    (found,) = [child.pid for child in psutil.Process(pid).children(recursive=True) if child.net_connections("tcp")]
    return found


@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.sweep)], ids=["killed", "hung"]
)
def test_a_learner_that_is_lost_ends_the_run_with_a_checkpoint(signum: int, tmp_path: Path, launch: Any) -> None:
    words = [*SAC, *LONG, "--learners", "2", "--checkpoint-every", "200", "--actor-timeout", "6"]
    process = begin(tmp_path, *words)
    try:
        until(lambda: checkpoints(tmp_path))
        victim = second_learner(process.pid)
        os.kill(victim, signum)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    first, saved, last = err.splitlines()
    assert first.startswith("rltrain: learner 1 of 2 was lost: ")
    assert saved.startswith("checkpoint /")
    assert last.startswith("to continue: rltrain --resume ")
    assert not Path(f"/proc/{victim}").exists()

    (folder,) = (tmp_path / "runs").iterdir()
    steps = int(saved.split("step-")[1].split()[0])
    done = launch(tmp_path, "--resume", str(folder), "--learners", "1", "--steps", str(steps + 100), "--json")
    assert done.result["steps"] >= steps + 100


FAULTY = """
import os, signal
import rltrain
from rltrain.algorithms.on_policy.ppo import PPO
from rltrain.algorithms.on_policy.settings import PPOConfig

class Mine(PPO):
    def update(self, unrolls, progress):
        if self.sync.rank == RANK and progress >= SINCE:
            FAULT
        return super().update(unrolls, progress)

rltrain.register_algorithm("ppo", Mine, PPOConfig)  # under a name of ours
if __name__ == "__main__":
    common = dict(algo="ppo", env="CartPole-v1", workers=0, streams=4, unroll=8, preset="none", eval_every=0)
    for _ in range(2):  # what is left behind does not stand in the way of the next one
        try:
            rltrain.train(learners=LEARNERS, quiet=True, **common)
        except Exception as error:
            print(type(error).__name__, str(error).splitlines()[0])
"""


RAISES, IS_KILLED = 'raise ValueError("it is mine")', "os.kill(os.getpid(), signal.SIGKILL)"
KILLED = "its process was ended by SIGKILL, most likely because memory ran out"


@pytest.mark.parametrize(
    ("learners", "rank", "since", "fault", "said"),
    [
        pytest.param(2, 0, 0.0, RAISES, "ValueError it is mine", marks=pytest.mark.sweep),
        (2, 1, 0.0, RAISES, "RunFailed learner 1 of 2 was lost: ValueError: it is mine"),
        pytest.param(  # after three updates
            3, 2, 0.001, IS_KILLED, f"RunFailed learner 2 of 3 was lost: {KILLED}", marks=pytest.mark.sweep
        ),
    ],
)
def test_the_learner_that_fails_or_is_killed_is_named_at_once(
    learners: int, rank: int, since: float, fault: str, said: str, tmp_path: Path
) -> None:
    values = {"LEARNERS": str(learners), "RANK": str(rank), "SINCE": str(since), "FAULT": fault}
    (tmp_path / "mine.py").write_text(re.sub("|".join(values), lambda found: values[found[0]], FAULTY))

    done = subprocess.run(
        [sys.executable, "mine.py"], env=shared.environment(), cwd=tmp_path, capture_output=True, text=True, timeout=200
    )

    assert done.stdout.splitlines() == [said] * 2, done.stderr


# --- torchrun ---


def torchrun(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "-m", "rltrain.train", *words]
    return subprocess.Popen(
        command, env=shared.environment(), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        pytest.param(
            False,
            r"rltrain: learner 1 of 2 was lost: its process is gone\ncheckpoint \S+/step-(\d+)\n",
            marks=pytest.mark.sweep,
        ),
        (True, r"rltrain: interrupted; checkpoint \S+/step-(\d+)\n"),
    ],
    ids=["the first sees that the second is gone", "torchrun sees it before, and asks the first to end"],
)
def test_torchrun_starts_the_learners_and_starts_them_again(asked: bool, said: str, tmp_path: Path) -> None:
    """The same command goes on with the run that it had begun, from its newest checkpoint."""
    process = torchrun(tmp_path, *SAC, "--steps", "1600", "--checkpoint-every", "200")
    agent = psutil.Process(process.pid)
    try:
        until(lambda: checkpoints(tmp_path))
        first, second = sorted(agent.children(), key=lambda child: child.environ()["RANK"])
        agent.suspend()  # it looks ten times a second; so it is known who is first
        (first.terminate if asked else second.kill)()
        until(lambda: first.status() == psutil.STATUS_ZOMBIE)
        second.kill()
        agent.resume()
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(json.loads((folder / "run.json").read_text())["commands"]) == 2
    (saved,) = re.findall(said, err)
    assert json.loads(out.splitlines()[-1])["steps"] > int(saved) > 0
    steps = [line["step"] for line in read(folder)]
    assert steps == sorted(steps)


def test_torchrun_and_the_flag_must_not_differ(tmp_path: Path) -> None:
    process = torchrun(tmp_path, *SAC, "--learners", "3")
    _, err = process.communicate(timeout=120)

    assert process.returncode != 0
    assert "rltrain: --learners 3: torchrun starts 2; leave the flag out" in err
    assert "forcefully exiting" not in err  # a learner that waited for rank 0 ignored SIGTERM for 30 s


@pytest.mark.sweep
def test_on_two_machines_all_are_started_again(tmp_path: Path) -> None:
    """Each machine has an agent, which counts its own restarts only."""
    port = str(free_port())
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *words, "--max-restarts", "2", "-m", "rltrain.train"]
    command += [*SAC, *LONG, "--max-seconds", "15", "--checkpoint-every", "200"]
    pipes: Any = {
        "env": shared.environment(),
        "cwd": tmp_path,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    agents = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        until(lambda: checkpoints(tmp_path))
        children = {agent: psutil.Process(agent.pid).children()[0] for agent in agents}
        (second,) = [child for child in children.values() if not child.children()]  # the first one has its actors
        second.kill()
        told = [agent.communicate(timeout=150) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.communicate()
    assert [agent.returncode for agent in agents] == [0, 0], told
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(json.loads((folder / "run.json").read_text())["commands"]) == 2


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


@pytest.mark.sweep
def test_help_ends_under_torchrun_too(tmp_path: Path) -> None:
    process = torchrun(tmp_path, "--version")
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert out.startswith("rltrain ")
