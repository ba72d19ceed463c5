"""Jobs and searches on the nodes of a Dask cluster, with a real scheduler and worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from oracles.dask_machines import Machines, wait_for

import rltrain
from rltrain.errors import ConfigError, JobLost

pytest.importorskip("distributed")

from rltrain.jobs import functions
from rltrain.jobs.cluster import cluster_jobs
from rltrain.jobs.node import part_of
from rltrain.jobs.resources import Machine, Request
from rltrain.rollout.cluster.node import CLIENT_SECONDS

SEARCH = """--algo ppo --env probe:counter --streams 2 --unroll 8 --widths 4 --epochs 1 --minibatches 1 --preset none
    --steps 640 --space lr=1e-4..1e-2:log --trials 4 --sampler random --deterministic --round 2 --confirm 0
    --json""".split()

USER_CODE = """
from helper import FACTOR

COUNT = [0]

class Config:
    def __init__(self, x):
        self.x = x
    def bump(self):
        COUNT[0] += 1

def value(pair):
    return FACTOR * pair[0].x + pair[1]

def made(x):
    return Config(x)

def call(function):
    return function(3)

def double(x):
    return 2 * x

class Odd(Exception):
    pass

def scaled(item):
    if item % 2:
        raise Odd(item)
    return FACTOR * item
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two nodes with a core each."""
    machines = Machines(tmp_path_factory.mktemp("cluster"))
    machines.add("a")
    machines.add("b")
    yield machines
    functions.close()
    machines.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Machines]:
    """A scheduler that the test adds nodes to, and breaks."""
    (tmp_path / "machines").mkdir()
    machines = Machines(tmp_path / "machines")
    yield machines
    functions.close()
    machines.close()


def node_of(_: int = 0) -> set[int]:
    """Processes above this job; the Dask worker is one of them."""
    time.sleep(0.2)
    return {process.pid for process in psutil.Process().parents()}


def ended(*pids: int) -> bool:
    return wait_for(lambda: not any(map(psutil.pid_exists, pids)), 60)


def test_jobs_run_on_all_nodes_and_results_come_in_the_order_of_the_items(cluster: Machines) -> None:
    assert rltrain.map(lambda item: item * 10, range(20), cluster=cluster.address) == [10 * n for n in range(20)]
    above = set[int]().union(*rltrain.map(node_of, range(8), cluster=cluster.address))
    assert {worker.pid for worker in cluster.workers.values()} <= above


def test_code_of_the_user_and_its_exceptions_travel(
    cluster: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_code.py").write_text(USER_CODE)
    (tmp_path / "helper.py").write_text("FACTOR = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import users_code  # type: ignore[import-not-found]

    assert rltrain.map(users_code.scaled, [0, 2], cluster=cluster.address) == [0, 14]
    where: dict[str, Any] = {"cluster": cluster.address}
    assert rltrain.map(users_code.value, [(users_code.Config(1), 2)], **where) == [9]
    assert rltrain.submit(users_code.call, users_code.double, **where).result() == 6
    assert rltrain.submit(sorted, [1, -2, 3], key=users_code.double, **where).result() == [-2, 1, 3]
    (made,) = rltrain.map(users_code.made, [4], **where)
    made.bump()
    assert (type(made), made.x, users_code.COUNT) == (users_code.Config, 4, [1])  # the class is still ours
    job = rltrain.submit(users_code.scaled, 3, cluster=cluster.address)
    with pytest.raises(users_code.Odd) as caught:
        job.result()
    assert caught.value.args == (3,)
    assert "raise Odd(item)" in str(caught.value.__cause__)
    assert job.attempts == 1


def test_a_large_array_is_sent_to_each_node_once_and_again_if_it_changed(cluster: Machines) -> None:
    def use(array: np.ndarray, item: int) -> tuple[float, bool, tuple[int, ...]]:
        return float(array[0, 1]), array.flags.writeable, array.shape

    data = np.asfortranarray(np.ones((1000, 300)))
    nodes = list(cluster_jobs(cluster.address).nodes.values())
    before = [len(node._arrays) for node in nodes]
    jobs = [rltrain.submit(use, data, item, cluster=cluster.address) for item in range(6)]
    assert {job.result() for job in jobs} == {(1.0, False, (1000, 300))}
    assert all(len(node._arrays) - was <= 1 for node, was in zip(nodes, before, strict=True))
    data[0, 1] = 5.0
    assert rltrain.submit(use, data, 0, cluster=cluster.address).result()[0] == 5.0


def test_what_no_node_can_give_is_refused_in_one_line(cluster: Machines) -> None:
    for request, line in (
        ({"cores": 2}, "cores 2: the largest node of the cluster has 1"),
        ({"gpus": 3}, "gpus 3: the largest node of the cluster has 0"),
        ({"memory": "900T"}, "memory 900.0 TiB: the largest node of the cluster has "),
    ):
        with pytest.raises(ConfigError) as caught:
            rltrain.map(abs, [1], cluster=cluster.address, **request)  # type: ignore[arg-type]
        assert str(caught.value).startswith(line)
    with pytest.raises(ConfigError, match=r"must be an address, a scheduler file or a distributed\.Client, got int"):
        rltrain.map(abs, [1], cluster=5)


def test_nodes_of_one_machine_have_different_resources(cluster: Machines) -> None:
    machine = Machine(cores=(0, 1, 4, 5), gpus=("0", "1"), memory=100)
    first = part_of(machine, 3, (set(), set()), 0.75)
    assert first == Machine((0, 1, 4), ("0", "1"), 75)
    assert part_of(machine, 1, ({*first.cores}, {*first.gpus}), 0.25) == Machine((5,), (), 25)
    assert part_of(machine, 2, ({*first.cores}, set()), 0.5).cores == (0, 5)  # there are not enough
    assert machine.room(Request(cores=3)) == 1

    nodes = cluster_jobs(cluster.address).nodes.values()
    cores = [node.resources.cores for node in nodes]
    assert len(cores) == 2
    assert len({*cores}) == min(2, len(os.sched_getaffinity(0)))


@pytest.mark.sweep
def test_a_node_that_comes_again_has_the_core_that_is_free(own: Machines) -> None:
    own.add("a")
    own.add("b")
    jobs = cluster_jobs(own.address)
    for _ in range(3):
        own.kill("a")
        assert wait_for(lambda: len(jobs.nodes) == 1, 60)
        own.add("a")
        assert wait_for(lambda: len(jobs.nodes) == 2, 60)
        assert len({node.resources.cores for node in jobs.nodes.values()}) == min(2, len(os.sched_getaffinity(0)))


def test_cancel_ends_the_process_of_a_job(cluster: Machines, tmp_path: Path) -> None:
    def long(name: str) -> None:
        (tmp_path / name).write_text(str(os.getpid()))
        time.sleep(1000)

    jobs = [rltrain.submit(long, name, cluster=cluster.address) for name in "abc"]
    assert wait_for(lambda: sum(file.stat().st_size > 0 for file in tmp_path.iterdir()) == 2, 60)
    assert [job.running() for job in jobs] == [True, True, False]
    assert all(job.cancel() for job in jobs)
    assert all(job.cancelled() for job in jobs)
    assert not (tmp_path / "c").exists()
    assert ended(*(int(file.read_text()) for file in tmp_path.iterdir()))
    assert rltrain.submit(abs, -5, cluster=cluster.address).result() == 5


def begin(folder: Path, name: str, dies: bool) -> str:
    """A job that does not end where it runs first; it leaves the processes above it in a file."""
    if not (folder / name).exists():
        (folder / f"{name}-new").write_text(json.dumps([*node_of()]))
        (folder / f"{name}-new").rename(folder / name)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)
    return "done"


def test_a_job_whose_process_is_lost_runs_again(cluster: Machines, tmp_path: Path) -> None:
    job = rltrain.submit(begin, tmp_path, "one", dies=True, cluster=cluster.address)
    assert (job.result(), job.attempts) == ("done", 2)
    job = rltrain.submit(begin, tmp_path, "two", dies=True, cluster=cluster.address, retries=0)
    with pytest.raises(JobLost, match=r"the process of the job is lost: .*SIGKILL"):
        job.result()


@pytest.mark.sweep
def test_jobs_of_a_lost_node_run_again_on_another_one(own: Machines, tmp_path: Path) -> None:
    own.add("a")
    own.add("b")
    jobs = [rltrain.submit(begin, tmp_path, name, dies=False, cluster=own.address) for name in ("one", "two")]
    assert wait_for(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists(), 60)
    above = json.loads((tmp_path / "one").read_text())
    own.kill(next(name for name, worker in own.workers.items() if worker.pid in above))
    jobs[1].cancel()
    assert (jobs[0].result(), jobs[0].attempts) == ("done", 2)


class Exits:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_what_cannot_be_sent_or_read_is_the_failure_of_one_job(
    cluster: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: dict[str, Any] = {"cluster": cluster.address}
    with pytest.raises(JobLost, match="the result of the job cannot be unpickled"):
        rltrain.submit(Exits, **where).result(60)
    address = cluster.address
    with pytest.raises(ConfigError, match="a job cannot wait for jobs of a cluster"):
        rltrain.submit(lambda: rltrain.map(abs, [1], cluster=address), **where).result(60)
    for node in cluster_jobs(cluster.address).nodes.values():
        monkeypatch.setattr(node, "_send", full)
    with pytest.raises(JobLost, match="the job cannot be started: an array of 8 MB cannot be stored"):
        rltrain.submit(np.sum, np.ones(1_000_000), **where).result(60)
    assert rltrain.submit(abs, -5, **where).result(60) == 5


async def full(number: int, data: np.ndarray) -> str:
    return "an array of 8 MB cannot be stored"


@pytest.mark.sweep
def test_a_client_of_the_user_may_be_closed_first(cluster: Machines) -> None:
    from distributed import Client

    with Client(cluster.address) as client:
        assert rltrain.map(abs, [-1], cluster=client) == [1]
    with pytest.raises(ConfigError, match=r"no scheduler can be reached|was closed"):
        rltrain.map(abs, [-1], cluster=client)
    assert rltrain.submit(abs, -5, cluster=cluster.address).result(60) == 5


@pytest.mark.sweep
def test_a_job_does_not_wait_for_ever_for_a_node_that_is_large_enough(own: Machines) -> None:
    own.add("a", slots=2)
    own.add("b")
    notes: list[str] = []
    jobs = cluster_jobs(own.address, 3.0, None, notes.append)
    large = rltrain.submit(time.sleep, 1000, cores=2, cluster=jobs)
    assert wait_for(large.running, 60)
    own.kill("a")
    small = rltrain.submit(abs, -5, cluster=jobs)  # its turn is after the large one, which is started again
    with pytest.raises(JobLost, match="cannot run a job with cores 2, gpus 0, and none has come for 3 s"):
        large.result(60)
    assert small.result(60) == 5
    assert any("waiting for another node, 3 s at most" in note for note in notes)


def test_a_cluster_that_is_lost_is_one_line(own: Machines) -> None:
    own.add("a")
    gone = cluster_jobs(own.address)
    jobs = [rltrain.submit(time.sleep, 1000, cluster=own.address) for _ in range(2)]
    assert wait_for(jobs[0].running, 60)
    own.scheduler.kill()
    for job in jobs:
        with pytest.raises(JobLost, match=r"the connection to the scheduler at .* was lost; jobs are gone with it"):
            job.result(60)
    late = gone.submit(gone.dumps(abs), ((-1,), {}), Request(), 1)
    with pytest.raises(JobLost, match="was lost"):
        late.result(60)


PROGRAM = """
import os, sys, time
import rltrain

def long(folder):
    open(f"{folder}/pid-{os.getpid()}", "w").close()
    time.sleep(1000)

if __name__ == "__main__":
    rltrain.map(long, [os.getcwd()] * 4, cluster=sys.argv[1])
"""


@pytest.mark.sweep
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_jobs_end_when_their_program_ends(cluster: Machines, tmp_path: Path, number: int) -> None:
    """Sooner than the minute after which a program counts as silent."""
    (tmp_path / "program.py").write_text(PROGRAM)
    program = subprocess.Popen([sys.executable, "program.py", cluster.address], cwd=tmp_path, stderr=subprocess.PIPE)
    assert wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2, 120)
    program.send_signal(number)
    program.communicate(timeout=120)
    pids = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert wait_for(lambda: not any(map(psutil.pid_exists, pids)), CLIENT_SECONDS / 2)
    assert rltrain.submit(abs, -5, cluster=cluster.address).result() == 5


# --- searches ---


def rltune(*words: str, folder: Path | None = None) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", "from rltrain.cli import main_tune; main_tune()", *words]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


FILES = {
    "maze.py": """
import gymnasium, numpy as np

class Maze(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(3, np.float32), {}
    def step(self, action):
        return np.ones(3, np.float32), float(action), True, False, {}
""",
    "parts.py": """
import torch

class Torso(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.features = 3
    def forward(self, obs):
        return torch.sin(obs)
""",
}


@pytest.mark.sweep
def test_files_that_a_search_names_are_found_on_the_nodes(cluster: Machines, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    words = "--algo ppo --env maze.py:Maze --torso parts:Torso --streams 2 --unroll 8 --widths 4 --preset none".split()
    words += "--steps 64 --space lr=1e-4..1e-2:log --trials 2 --sampler random --confirm 0 --json --name s".split()
    out, errors = rltune(*words, "--cluster", cluster.address, folder=tmp_path).communicate(timeout=200)
    answer = json.loads(out)
    assert (answer["trials"], answer["failed"]) == (2, 0), errors


def trials(folder: Path) -> dict[tuple[int, int], Any]:
    """The values and fingerprints of all parts of trials."""
    found = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        for one in json.loads(line).get("results", ()):
            assert (one["number"], one["rung"]) not in found
            found[one["number"], one["rung"]] = one["value"], one["steps"], one["fingerprint"], one["error"]
    return found


def test_a_trial_on_a_cluster_is_the_run_that_it_is_on_one_machine(cluster: Machines, tmp_path: Path) -> None:
    run = {"algo": "ppo", "env": "probe:counter", "steps": 64, "streams": 2, "unroll": 8, "widths": (4,)}
    options = {"sampler": "random", "confirm": 0}
    tuned = rltrain.tune("lr=1e-4..1e-2:log", trials=2, name=str(tmp_path / "s"), options=options,
                         cluster=cluster.address, **run)  # fmt: skip
    here = rltrain.train(**run, **tuned.settings, out=str(tmp_path), workers=0, quiet=True)
    assert here.fingerprint in {fingerprint for _, _, fingerprint, _ in trials(tmp_path / "s").values()}


@pytest.mark.sweep
def test_a_search_on_a_cluster_ends_as_on_one_machine_though_a_node_and_the_search_are_killed(
    own: Machines, tmp_path: Path
) -> None:
    own.add("a")
    own.add("b")
    here = rltune(*SEARCH, "--name", str(tmp_path / "here"))
    there = rltune(*SEARCH, "--name", str(tmp_path / "there"), "--cluster", own.address)
    journal = tmp_path / "there" / "journal.jsonl"
    assert wait_for(lambda: journal.exists() and "results" in journal.read_text(), 120), there.communicate(timeout=1)
    own.kill("a")
    there.send_signal(signal.SIGKILL)
    there.communicate()
    again = rltune("--resume", str(tmp_path / "there"), "--cluster", own.address, "--json")
    answers = [json.loads(search.communicate(timeout=200)[0]) for search in (here, again)]

    assert trials(tmp_path / "here") == trials(tmp_path / "there")
    assert len(trials(tmp_path / "here")) >= 5
    for name in ("settings", "value", "trials", "failed"):
        assert answers[0][name] == answers[1][name]


def test_the_folder_of_a_search_must_be_seen_by_the_nodes(cluster: Machines) -> None:
    jobs = cluster_jobs(cluster.address)
    there = jobs.requiring(Path("/proc/self/cwd/pyproject.toml"))  # the folder of another process has none
    with (
        pytest.raises(ConfigError, match=r"does not see /proc/self/cwd, which must be in a file system that all"),
        there,
    ):
        pass
    assert rltrain.submit(abs, -5, cluster=cluster.address).result(60) == 5  # other jobs do not need it
