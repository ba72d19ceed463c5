"""`rltrain.map` and `rltrain.submit`: resources, shared arrays, errors, lost processes, cancelled jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import rltrain
from rltrain.errors import ConfigError, JobLost
from rltrain.jobs import pool
from rltrain.jobs.arrays import Arrays
from rltrain.jobs.job import Job
from rltrain.jobs.resources import Machine, Request
from rltrain.rollout.workers.process import ProcessHandle

SMALL = {"algo": "ppo", "env": "probe:counter", "steps": 64, "streams": 2, "unroll": 8, "workers": 0, "widths": (4,)}


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    pool.close()


def test_results_come_in_the_order_of_the_items() -> None:
    assert rltrain.map(lambda item: item * 10, range(5)) == [0, 10, 20, 30, 40]
    assert rltrain.submit(lambda a, b=1: a + b, 1, b=2).result() == 3


def test_an_exception_is_raised_with_the_traceback_of_the_job() -> None:
    def breaks(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError) as caught:
        rltrain.map(breaks, [1, 0, 1])
    assert "return 1 // item" in str(caught.value.__cause__)
    with pytest.raises(JobLost, match="SystemExit"):
        rltrain.submit(sys.exit, 3).result()


def test_a_worker_that_is_killed_as_its_job_ends_gets_no_other_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is cancelled between the arrival of its result and the end of its wait."""
    real, jobs = ProcessHandle.result, []

    def result(self: ProcessHandle) -> Any:
        found = real(self)
        if jobs:
            jobs.pop().cancel()
        return found

    monkeypatch.setattr(ProcessHandle, "result", result)
    jobs.append(rltrain.submit(time.sleep, 0.3))
    time.sleep(1.0)
    assert not jobs, "it was not cancelled: this test tests nothing"
    after = [rltrain.submit(os.getpid) for _ in range(len(os.sched_getaffinity(0)) + 1)]

    assert all(job.result() > 0 for job in after)
    assert [job.attempts for job in after] == [1] * len(after)


def test_a_job_has_the_cores_and_threads_that_it_asks_for() -> None:
    def has() -> tuple[int, str, str]:
        return len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]

    cores = len(os.sched_getaffinity(0))
    assert rltrain.submit(has, cores=1).result() == (1, "1", "")
    assert rltrain.submit(has, cores=cores).result() == (cores, str(cores), "")


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"cores": 10_000}, "cores 10000: this process can use"),
        ({"gpus": 1000}, "gpus 1000: this process can use"),
        ({"memory": "900T"}, "memory 900.0 TiB: this machine has"),
        ({"cores": 0}, "cores must be a whole number of at least 1, got 0"),
        ({"memory": "much"}, "memory must be a number of bytes, or text as 2G or 512M, got 'much'"),
        ({"retries": -1}, "retries must be a whole number of at least 0, got -1"),
    ],
)
def test_what_the_machine_cannot_give_is_refused_in_one_line(asked: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rltrain.submit(os.getpid, **asked)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_gpus_are_given_out_once() -> None:
    machine = Machine(cores=(0,), gpus=("0", "1"), memory=None)
    machine.refuse(Request.of(gpus=2))
    with pytest.raises(ConfigError, match="gpus 3"):
        machine.refuse(Request.of(gpus=3))


def test_a_large_array_is_sent_once_and_again_if_it_changed() -> None:
    arrays, data = Arrays(), np.arange(300_000.0)
    first, copies = arrays.dumps((data, data))
    assert len(first) < 1000
    assert len(copies) == 1
    assert arrays.dumps(data).arrays[0] is copies[0]
    data[7] = -1.0
    assert arrays.dumps(data).arrays[0] is not copies[0]

    def use(array: np.ndarray) -> tuple[float, bool]:
        return float(array[7]), array.flags.writeable

    assert rltrain.submit(use, data).result() == (-1.0, False)


def test_a_lost_process_is_replaced_and_its_job_runs_again(tmp_path: Path) -> None:
    def dies_once() -> str:
        if not (tmp_path / "was here").exists():
            (tmp_path / "was here").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    job = rltrain.submit(dies_once)
    assert (job.result(), job.attempts) == ("done", 2)

    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    job = rltrain.submit(dies, retries=0)
    with pytest.raises(JobLost, match=r"^the process of the job is lost: .*SIGKILL"):
        job.result()
    assert job.attempts == 1


def test_a_job_that_uses_more_memory_than_it_asked_for_is_ended_and_not_started_again() -> None:
    def grows() -> None:
        kept = bytearray(400 << 20)
        time.sleep(60)
        del kept

    job = rltrain.submit(grows, memory="300M")
    with pytest.raises(JobLost, match=r"it used .* of memory, and was to use at most 300.0 MiB"):
        job.result()
    assert job.attempts == 1


def test_cancel_ends_the_process_of_a_job_and_what_it_started(tmp_path: Path) -> None:
    def long() -> None:
        child = subprocess.Popen(["sleep", "1000"])
        (tmp_path / "new").write_text(f"{os.getpid()} {child.pid}")
        (tmp_path / "new").rename(tmp_path / "pids")
        time.sleep(1000)

    job = rltrain.submit(long)
    while not (tmp_path / "pids").exists():
        time.sleep(0.01)
    assert job.running()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert job.cancel()
    assert job.cancelled()
    assert not job.running()
    until = time.monotonic() + 60
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(psutil.pid_exists, pids))
    assert rltrain.submit(lambda: 5).result() == 5


def test_a_job_has_its_payload_until_it_cannot_be_taken_from_a_queue_any_more() -> None:
    """Without it, the thread that takes the job would end, and all other jobs would wait for ever."""
    seen: list[Any] = []
    jobs: Any = SimpleNamespace(cancelled=lambda job: seen.append(job.payload))
    payload = Arrays().dumps(abs), Arrays().dumps(((-1,), {}))
    job = Job(jobs, payload, Request(), 1)
    assert job.cancel()
    assert seen == [payload]
    assert job.payload is None


def test_a_used_worker_computes_what_a_new_one_does(tmp_path: Path) -> None:
    """The first job of a process, a later one after jobs that change settings of the process, and this process."""

    def fingerprint(out: Path) -> tuple[int, str]:
        return os.getpid(), rltrain.train(**SMALL, out=str(out), seed=3, quiet=True).fingerprint

    def disturb() -> int:
        import torch

        torch.set_default_dtype(torch.float64)
        torch.manual_seed(5)
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True)
        os.chdir("/")
        os.environ["OMP_NUM_THREADS"] = "7"
        np.random.seed(1)
        return os.getpid()

    pool.close()
    first = rltrain.submit(fingerprint, tmp_path / "a").result()
    process = rltrain.submit(disturb).result()
    again = rltrain.submit(fingerprint, tmp_path / "b").result()
    assert first == again
    assert process == first[0] != os.getpid()
    assert fingerprint(tmp_path / "c")[1] == first[1]


PROGRAM = """
import os, sys, time
import rltrain

def long(item):
    open(f"pid-{os.getpid()}", "w").close()
    time.sleep(1000)

if __name__ == "__main__":
    rltrain.map(long, range(4))
"""


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.sweep), signal.SIGKILL])
def test_nothing_is_left_when_the_program_ends(tmp_path: Path, number: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    program = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (pids := [int(path.name[4:]) for path in tmp_path.glob("pid-*")]):
        assert program.poll() is None, program.stderr and program.stderr.read()
        time.sleep(0.01)
    program.send_signal(number)
    _, errors = program.communicate(timeout=120)
    if number == signal.SIGINT:
        assert errors.splitlines()[-1] == "KeyboardInterrupt"
        assert "leaked" not in errors
    until = time.monotonic() + 60
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(psutil.pid_exists, pids))
