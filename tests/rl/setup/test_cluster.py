"""Runs on a Dask cluster, from the command line, with a real scheduler and worker processes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from oracles.dask_machines import Machines, wait_for

pytest.importorskip("distributed")

QUICK = "--widths 8 --eval-every 0 --checkpoint-every 0 --preset none --seed 3 --json".split()
PPO = ["--algo", "ppo", "--env", "CartPole-v1", "--streams", "4", "--unroll", "16", "--steps", "400", *QUICK]
DQN = ["--algo", "dqn", "--env", "CartPole-v1", "--streams", "3", "--warmup", "60", "--steps", "300", *QUICK]
SAC = ["--algo", "sac", "--env", "Pendulum-v1", "--streams", "3", "--warmup", "260", "--steps", "300", *QUICK]
QMIX = ["--algo", "qmix", "--env", "two-step", "--streams", "3", "--warmup", "60", "--steps", "200", *QUICK]
IMPALA = ["--algo", "impala", "--env", "CartPole-v1", "--streams", "4", "--steps", "2000", *QUICK]

PATIENCE = 100.0  # seconds, since processes import torch, at times on a machine with much else to do

SLOW_ENV = """
import os, time
import gymnasium, numpy as np
from gymnasium import spaces
from neighbour import REWARD

LATER = 700  # steps of one environment, more than the first look takes

class Slow(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    def __init__(self, seconds=0.002, raises=False, hangs="", holds=""):
        self.seconds, self.raises, self.hangs, self.holds, self.t = seconds, raises, hangs, holds, 0
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.t += 1
        time.sleep(0.2 if self.holds and os.path.exists(self.holds) else self.seconds)
        if self.raises and self.t == LATER: raise RuntimeError("the arm is stuck")
        if self.hangs and self.t == LATER:
            try: os.close(os.open(self.hangs, os.O_CREAT | os.O_EXCL))
            except FileExistsError: pass
            else: sum(range(10**12))
        return np.zeros(2, np.float32), REWARD, False, self.t % 20 == 0, {}
"""


@pytest.fixture(scope="module")
def kept() -> Iterator[list[Machines]]:
    """The machines of `two` while there are some."""
    machines: list[Machines] = []
    yield machines
    for made in machines:
        made.close()


@pytest.fixture
def two(kept: list[Machines], tmp_path_factory: pytest.TempPathFactory) -> Machines:
    """The two nodes of the test before; new ones in place of those that it ended."""
    if kept and kept[0].scheduler.poll() is not None:
        kept.pop().close()
    if not kept:
        kept.append(Machines(tmp_path_factory.mktemp("two")))
    (machines,) = kept
    for name in machines.workers.keys() - {"a", "b"}:
        machines.kill(name)
    for name in sorted({"a", "b"} - machines.workers.keys()):
        machines.add(name)
    return machines


@pytest.fixture
def left(kept: list[Machines], request: pytest.FixtureRequest) -> Machines:
    """The nodes that the test before has left, whatever their names; `two` if there are none."""
    if kept and kept[0].scheduler.poll() is None and kept[0].workers:
        return kept[0]
    return request.getfixturevalue("two")


@pytest.fixture
def some(tmp_path: Path) -> Iterator[Machines]:
    """A scheduler without nodes."""
    folder = tmp_path / "machines"
    folder.mkdir()
    machines = Machines(folder)
    yield machines
    machines.close()


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A folder with an environment in a file, and a module that it needs."""
    (tmp_path / "mine.py").write_text(SLOW_ENV)
    (tmp_path / "neighbour.py").write_text("REWARD = 1.0\n")
    return tmp_path


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from rltrain.cli import main; sys.exit(main())", *words]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    (file,) = (folder / "runs").glob("*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def steps(folder: Path) -> int:
    """How far a run is; 0 before its first line of metrics."""
    found = list((folder / "runs").glob("*/metrics.jsonl"))
    lines = found[0].read_text().splitlines() if found else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


# --- the same run ---


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(PPO, marks=pytest.mark.sweep),
        pytest.param(DQN, marks=pytest.mark.sweep),
        SAC,
        pytest.param(QMIX, marks=pytest.mark.sweep),
    ],
    ids=["ppo", "dqn", "sac", "qmix"],
)
def test_a_synchronous_run_has_the_same_bits_as_here(
    two: Machines, tmp_path: Path, launch: Any, flags: list[str]
) -> None:
    here = launch(tmp_path, *flags, "--workers", "2").result
    there = launch(tmp_path, *flags, "--workers", "2", "--cluster", str(two.file)).result
    assert there["fingerprint"] == here["fingerprint"]
    assert there["steps"] == here["steps"]


@pytest.mark.sweep
def test_turns_are_taken_and_opponents_are_met_as_here(two: Machines, tmp_path: Path, launch: Any) -> None:
    """Asynchronous but deterministic; and with opponents that are published beside the weights."""
    turns = [*IMPALA, "--deterministic", "--steps", "600", "--workers", "2"]
    games = "--algo ppo --env tic-tac-toe --opponents pool --pool-every 60 --streams 4 --unroll 16 --steps 300".split()
    games += [*QUICK, "--workers", "2"]
    for flags in (turns, games):
        here = launch(tmp_path, *flags).result
        there = launch(tmp_path, *flags, "--cluster", two.address).result
        assert there["fingerprint"] == here["fingerprint"]


@pytest.mark.sweep
def test_big_observations_come_over_whole(two: Machines, tmp_path: Path, launch: Any) -> None:
    """Those of images go through the slots of a node, and the rest by pickle."""
    flags = "--algo ppo --env probe:image --streams 4 --unroll 64 --steps 256 --preset none".split()
    flags += "--eval-every 0 --checkpoint-every 0 --json --seed 1 --epochs 1".split()
    here = launch(tmp_path, *flags, "--workers", "2").result
    there = launch(tmp_path, *flags, "--workers", "2", "--cluster", two.address).result
    assert there["fingerprint"] == here["fingerprint"]


def test_an_asynchronous_run_says_what_went_over_the_wire(two: Machines, tmp_path: Path, launch: Any) -> None:
    done = launch(tmp_path, *IMPALA, "--workers", "2", "--cluster", two.address).result
    assert done["steps"] >= 2000
    assert done["restarts"] == 0
    last = metrics(tmp_path)[-1]
    assert last["cluster/nodes"] == 2
    assert sum(line["cluster/unrolls_bytes"] for line in metrics(tmp_path)) > done["steps"] * 16  # observations alone
    assert sum(line["cluster/weights_bytes"] for line in metrics(tmp_path)) > 0


@pytest.mark.sweep
def test_a_run_without_a_cluster_makes_one_of_its_own(tmp_path: Path) -> None:
    here = subprocess.run(command(*PPO, "--workers", "2"), cwd=tmp_path, capture_output=True, text=True, check=True)
    words = command(*PPO, "--workers", "2", "--backend", "dask")
    there = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert there.returncode == 0, there.stderr
    results = [json.loads(done.stdout.splitlines()[-1])["fingerprint"] for done in (here, there)]
    assert results[0] == results[1]


def test_a_run_goes_on_elsewhere(two: Machines, tmp_path: Path, launch: Any) -> None:
    """Begun here, resumed on the cluster: the same weights as if it had stayed."""
    flags = [*PPO, "--workers", "2", "--out", "whole"]
    whole = launch(tmp_path, *flags).result
    every = [word if word != "0" or PPO[at - 1] != "--checkpoint-every" else "100" for at, word in enumerate(PPO)]
    died = launch(tmp_path, *every, "--workers", "2", kill=("step", 5))
    assert died.status == -signal.SIGKILL
    (run,) = (tmp_path / "runs").iterdir()
    resumed = launch(tmp_path, "--resume", str(run), "--cluster", two.address, "--json").result
    assert resumed["fingerprint"] == whole["fingerprint"]


@pytest.mark.sweep
def test_an_environment_in_a_file_travels_with_its_neighbours(two: Machines, slow: Path) -> None:
    words = command(*PPO, "--env", "mine.py:Slow", "--workers", "2", "--cluster", two.address)
    done = subprocess.run(words, cwd=slow, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["train_return"] == 20.0


# --- what goes wrong ---


@pytest.mark.sweep
def test_what_an_environment_raises_is_told_whole(two: Machines, slow: Path) -> None:
    flags = [*PPO, "--env", "mine.py:Slow", "--steps", "4000", "--env-arg", "raises=true", "--max-restarts", "0"]
    words = command(*flags, "--workers", "2", "--cluster", two.address)
    done = subprocess.run(words, cwd=slow, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'raise RuntimeError("the arm is stuck")' in done.stderr
    where = r"on tcp://127.0.0.1:\d+ on \S+: the environment of stream \d \(seed \d+\) failed at step 7\d\d:"
    assert re.search(where, done.stderr)


@pytest.mark.sweep
def test_an_actor_that_hangs_is_replaced(two: Machines, slow: Path) -> None:
    flags = [*PPO, "--env", "mine.py:Slow", "--steps", "4000", "--env-arg", f"hangs={slow / 'once'}"]
    words = command(*flags, "--workers", "2", "--actor-timeout", "3", "--cluster", two.address)
    done = subprocess.run(words, cwd=slow, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["restarts"] == 1
    assert "made no step for 3 s" in done.stderr


@pytest.mark.sweep
def test_a_killed_run_leaves_no_actors_on_its_nodes(two: Machines, slow: Path) -> None:
    wait_for(lambda: not two.actors() - forks(two))
    before = two.actors()
    run = start(slow, *PPO, "--env", "mine.py:Slow", "--steps", "1000000", "--workers", "2", "--cluster", two.address)
    assert wait_for(lambda: steps(slow) > 0, PATIENCE)
    assert len(two.actors() - before) >= 2
    run.kill()
    run.communicate()
    assert wait_for(lambda: not two.actors() - before - forks(two), 60)


def forks(machines: Machines) -> set[int]:
    """Fork servers, which a worker keeps for the next run."""
    import psutil

    found = set()
    for process in machines.workers.values():
        for child in psutil.Process(process.pid).children():
            found.add(child.pid)
    return found


def test_ctrl_c_leaves_a_checkpoint(two: Machines, slow: Path, begin: Any) -> None:
    flags = [*PPO, "--env", "mine.py:Slow", "--env-arg", "seconds=0", "--steps", "100000000", "--workers", "2"]
    run = begin(slow, *flags, "--cluster", two.address)
    assert wait_for(lambda: steps(slow) > 0, PATIENCE)
    run.send_signal(signal.SIGINT)
    done = run.end(60)
    assert done.status == 130
    assert f"checkpoint {slow}/runs/" in done.err
    assert "Traceback" not in done.err


@pytest.mark.sweep
def test_a_node_that_is_asked_to_end_does_and_takes_its_actors_along(some: Machines, slow: Path) -> None:
    some.add("a", slots=2)
    run = start(slow, *PPO, "--env", "mine.py:Slow", "--steps", "2000", "--workers", "2", "--cluster", some.address)
    assert wait_for(lambda: steps(slow) > 0, PATIENCE)
    actors = some.actors("a")
    some.workers["a"].terminate()
    some.workers["a"].wait(30)
    some.workers.pop("a")
    assert len(actors) >= 2
    assert wait_for(lambda: not any(psutil.pid_exists(pid) for pid in actors), 10)
    some.add("b", slots=2)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err


@pytest.mark.sweep
def test_actors_move_to_where_there_is_room_and_the_bits_stay(some: Machines, tmp_path: Path) -> None:
    flags = [*PPO, "--steps", "12000"]
    some.add("a", slots=1)
    run = start(tmp_path, *flags, "--workers", "2", "--cluster", some.address)
    assert wait_for(lambda: steps(tmp_path) > 0, PATIENCE)
    some.add("b", slots=1)
    assert wait_for(lambda: len(some.actors("b")) >= 2, 60)  # a fork server and an actor, with its supervisor
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert "2 actors share room for 1" in err
    assert "a node joined" in err
    there = json.loads(out.splitlines()[-1])
    assert there["restarts"] == 0
    words = command(*flags, "--workers", "2")
    here = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert there["fingerprint"] == json.loads(here.stdout.splitlines()[-1])["fingerprint"]


def test_gradients_come_over_too(two: Machines, tmp_path: Path, launch: Any) -> None:
    flags = ["--algo", "a3c", "--env", "CartPole-v1", "--streams", "2", "--steps", "600", *QUICK]
    done = launch(tmp_path, *flags, "--workers", "2", "--cluster", two.address).result
    assert done["restarts"] == 0
    assert sum(line["cluster/unrolls_bytes"] for line in metrics(tmp_path)) > 0


@pytest.mark.sweep
def test_without_a_node_a_run_waits_and_then_goes_on(some: Machines, slow: Path) -> None:
    some.add("a", slots=2)
    run = start(slow, *PPO, "--env", "mine.py:Slow", "--steps", "2000", "--workers", "2", "--cluster", some.address)
    assert wait_for(lambda: steps(slow) > 0, PATIENCE)
    some.kill("a")
    time.sleep(1.0)
    assert run.poll() is None
    some.add("b", slots=2)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert "no node is left: waiting for one, 300 s at most" in err
    assert "there is a node again" in err


@pytest.mark.sweep
def test_without_a_node_for_too_long_a_run_ends_with_a_checkpoint(some: Machines, slow: Path) -> None:
    some.add("a", slots=2)
    flags = [*PPO, "--env", "mine.py:Slow", "--steps", "100000", "--workers", "2", "--cluster-timeout", "2"]
    run = start(slow, *flags, "--cluster", some.address)
    assert wait_for(lambda: steps(slow) > 0, PATIENCE)
    some.kill("a")
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert f"rltrain: there has been no node for 2 s (--cluster-timeout)\ncheckpoint {slow}/runs/" in err
    assert "Traceback" not in err


def test_a_node_that_dies_is_replaced_by_the_others_and_one_that_joins_is_used(
    two: Machines, slow: Path, begin: Any
) -> None:
    holds = slow / "holds"  # while it exists the run takes its time: it ends when all has been seen, not before
    flags = [*PPO, "--env", "mine.py:Slow", "--env-arg", "seconds=0", "--env-arg", f"holds={holds}"]
    flags += ["--streams", "3", "--unroll", "4", "--epochs", "1", "--steps", "3000", "--workers", "3"]
    run = begin(slow, *flags, "--cluster", two.address)
    assert wait_for(lambda: steps(slow) > 0, PATIENCE)
    holds.touch()
    assert wait_for(lambda: all(two.actors(name) - forks(two) for name in "ab"), PATIENCE)  # one may join later
    two.kill("a")
    assert wait_for(lambda: metrics(slow)[-1]["cluster/nodes"] == 1, PATIENCE)
    two.add("c", slots=2)
    assert wait_for(lambda: metrics(slow)[-1]["cluster/nodes"] == 2, PATIENCE)
    assert wait_for(lambda: len(two.actors("c")) >= 2, PATIENCE)  # the others were crowded
    holds.unlink()
    done = run.end(120)
    assert done.status == 0, done.err
    assert done.result["restarts"] in (1, 2), done.err  # the actors that were on it, once each
    assert "its node was lost" in done.err or "does not answer" in done.err
    assert "a node joined: tcp://127.0.0.1" in done.err


def test_a_lost_scheduler_ends_a_run_with_a_checkpoint_that_can_be_resumed(
    left: Machines, slow: Path, launch: Any, begin: Any
) -> None:
    flags = [*PPO, "--env", "mine.py:Slow", "--env-arg", "seconds=0", "--steps", "100000000", "--workers", "2"]
    run = begin(slow, *flags, "--cluster", left.address)
    assert wait_for(lambda: steps(slow) > 0, PATIENCE)
    left.scheduler.kill()
    done = run.end(60)
    assert done.status == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("rltrain:")]
    assert f"the connection to the scheduler at {left.address} was lost" in line
    assert "Traceback" not in done.err
    (folder,) = (slow / "runs").iterdir()
    further = str(steps(slow) + 1000)
    resumed = launch(slow, "--resume", str(folder), "--backend", "processes", "--steps", further, "--json")
    assert resumed.result["steps"] >= int(further)


# --- asked wrongly ---


def test_a_node_with_another_version_is_named_and_refused(some: Machines, tmp_path: Path, launch: Any) -> None:
    info = tmp_path / "other" / "rltrain-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rltrain\nVersion: 9.9\n")
    some.add("old", env={"PYTHONPATH": f"{tmp_path / 'other'}:{':'.join(sys.path)}"})
    done = launch(tmp_path, *PPO, "--workers", "2", "--cluster", some.address)
    assert done.status == 2
    assert "the node tcp://127.0.0.1" in done.line
    assert "rltrain 9.9 (here " in done.line
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--cluster", "nowhere"], "--cluster nowhere: neither an address (tcp://HOST:PORT) nor a scheduler file"),
        (["--cluster", "tcp://127.0.0.1:1", "--workers", "0"], "cluster says where actors run"),
        (["--cluster", "tcp://127.0.0.1:1", "--inference", "central"], "ask for inference local"),
        pytest.param(
            ["--cluster", "tcp://127.0.0.1:1", "--tls-ca", "none.pem"],
            "--tls-ca none.pem: there is no such file",
            marks=pytest.mark.sweep,
        ),
        (["--cluster", "tls://127.0.0.1:1"], "needs --tls-ca, --tls-cert and --tls-key"),
        pytest.param(
            ["--cluster", "tls://127.0.0.1:1", "--tls-ca", __file__], "are needed together", marks=pytest.mark.sweep
        ),
        pytest.param(["--cluster", __file__], "is no scheduler file", marks=pytest.mark.sweep),
    ],
)
def test_a_cluster_asked_for_wrongly_is_one_line(tmp_path: Path, launch: Any, flags: list[str], said: str) -> None:
    words = ["--workers", "2", *flags] if "--workers" not in flags else flags
    done = launch(tmp_path, *PPO, *words)
    assert done.status == 2
    assert said in done.line


@pytest.mark.sweep
def test_a_scheduler_that_is_not_there_is_one_line(
    tmp_path: Path, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command(*PPO, "--workers", "2", "--cluster", "tcp://127.0.0.1:1")
    code = words[2].replace("import sys;", "import sys, rltrain.rollout.cluster.connect as c; c.CONNECT_SECONDS = 1.0;")
    done = subprocess.run([*words[:2], code, *words[3:]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("rltrain: --cluster: no scheduler can be reached at tcp://127.0.0.1:1: ")
    assert "dask scheduler" in line


def certificates(folder: Path) -> dict[str, str]:
    """A certificate that signs itself, and so is its own authority."""
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*words.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    return {"ca": cert, "cert": cert, "key": key}


@pytest.mark.sweep
@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_cluster_with_tls_asks_for_certificates(tmp_path: Path, launch: Any) -> None:
    files = certificates(tmp_path)
    folder = tmp_path / "machines"
    folder.mkdir()
    theirs = ["--tls-ca-file", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"], "--protocol", "tls"]
    machines = Machines(folder, theirs)
    try:
        machines.add("a", slots=2)
        ours = [word for name, file in files.items() for word in (f"--tls-{name}", file)]
        assert machines.address.startswith("tls://")
        done = launch(tmp_path, *PPO, "--workers", "2", "--cluster", machines.address, *ours)
        assert done.result["steps"] >= 400
        assert "not encrypted" not in done.err
    finally:
        machines.close()


@pytest.mark.parametrize(
    ("address", "open_"),
    [
        ("tcp://10.0.0.1:8786", True),
        ("tcp://node7:8786", True),
        ("tcp://[2001:db8::1]:8786", True),
        ("tcp://127.0.0.1:8786", False),
        ("tcp://[::1]:8786", False),
        ("tcp://localhost:8786", False),
        ("tls://10.0.0.1:8786", False),
        ("inproc://10.0.0.1/1/1", False),
    ],
)
def test_an_address_that_others_can_reach_is_told(address: str, open_: bool) -> None:
    from rltrain.rollout.cluster.connect import open_to_others

    assert open_to_others(address) is open_
