"""Actors that are killed, raise or hang are replaced; what is delivered is whole; what cannot go on says why."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from oracles.faulty import HangsInEvaluation, Picture, Slow, config_of, hangs, killed, open_rollout, pids, raises

from rltrain.errors import RunFailed
from rltrain.evaluation.background import evaluation_seeds
from rltrain.rollout.supervision import WorkerFailed
from rltrain.rollout.types import Trajectory
from rltrain.rollout.workers.handle import ActorLost
from rltrain.storage.retention import find
from rltrain.training_loop import train

pytestmark = pytest.mark.usefixtures("fork_server")


def run(env: Any, folder: Path, **given: Any) -> Any:
    return train(config_of(env, **{"out": str(folder), "workers": 2, "streams": 4, "steps": 2000} | given))


def whole(unroll: Trajectory) -> None:
    """Rows of Counter that follow from each other, and from nothing half-filled."""
    t, length = unroll.obs[..., 0], unroll.obs[..., 1]
    valid = unroll.valid
    assert (t[1:][valid] == t[:-1][valid] + 1).all()
    assert (length[1:][valid] == length[:-1][valid]).all()
    assert (t[1:][~valid] == 0).all()
    assert (unroll.reward[valid] == t[1:][valid]).all()
    np.testing.assert_array_equal(unroll.terminated | unroll.truncated, valid & (t[1:] == length[1:]))


def test_a_killed_actor_is_replaced_and_its_streams_begin_anew() -> None:
    lost: list[ActorLost] = []
    rollout, _ = open_rollout(lambda: Slow(0.01), lost.append, workers=2, streams=5, unroll=32)
    rollout.start()
    for unroll in rollout.gather():
        whole(unroll)
    victim, other = pids(rollout)
    rollout.start()
    time.sleep(0.05)
    os.kill(victim, signal.SIGKILL)
    unrolls = rollout.gather()

    assert rollout.restarts == 1
    assert "SIGKILL" in lost[0].detail
    assert pids(rollout)[1] == other
    assert pids(rollout)[0] != victim
    assert [unroll.stream.tolist() for unroll in unrolls] == [[0, 1, 2], [3, 4]]
    assert rollout.generations.tolist() == [1, 1, 1, 0, 0]
    for unroll in unrolls:
        whole(unroll)
        assert unroll.row.tolist() == [32] * len(unroll.stream), "rows of a lost unroll are not counted"
    assert unrolls[0].first[0].all(), "a stream that begins anew is marked"
    assert (unrolls[0].obs[0, :, 0] == 0).all()
    rollout.start()
    for unroll in rollout.gather():
        assert unroll.row.tolist() == [64] * len(unroll.stream)
    assert rollout._actors[0].worker.failures == 0, "a delivered unroll ends the count of failures in a row"
    rollout.close()


@pytest.mark.parametrize("fault", [killed, raises])
def test_a_run_survives_one_fault(fault: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = str(tmp_path / "once")
    result = run(lambda: fault(at=500, once=once), tmp_path, quiet=False, steps=3000)
    assert os.path.exists(once)
    assert result.restarts == 1
    assert result.steps >= 3000
    assert result.stopped == "steps"
    text = "".join(capsys.readouterr())
    assert "was lost and is replaced" in text
    assert ("SIGKILL" if fault is killed else "RuntimeError: the probe raises in step 500") in text


def test_a_hanging_environment_is_replaced(tmp_path: Path) -> None:
    once = str(tmp_path / "once")
    began = time.monotonic()
    result = run(lambda: hangs(at=500, once=once), tmp_path, actor_timeout=2.0, steps=3000)
    assert result.restarts >= 1
    assert time.monotonic() - began > 2.0


def test_an_environment_that_always_raises_ends_the_run_with_its_story(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as failed:
        run(lambda: raises(at=500), tmp_path, max_restarts=0, steps=4000)
    text = str(failed.value)
    assert "RuntimeError: the probe raises in step 500" in text
    assert 'faulty.py", line' in text
    for word in ("worker", "stream", "seed", "step"):
        assert word in text
    checkpoint = find(next(tmp_path.iterdir()))[0]
    assert checkpoint.meta["exact"] is False
    assert str(checkpoint.path) in text


def test_restarts_are_counted_in_a_row() -> None:
    lost: list[ActorLost] = []
    rollout, _ = open_rollout(lambda: killed(at=3), lost.append, "probe:counter", workers=2, max_restarts=2)
    rollout.start()
    with pytest.raises(WorkerFailed, match=r"failed 3 times in a row \(--max-restarts 2\)"):
        rollout.gather()
    assert len(lost) >= 2
    rollout.close()


def test_a_deterministic_fault_is_tried_twice() -> None:
    lost: list[ActorLost] = []
    rollout, _ = open_rollout(lambda: raises(at=3), lost.append, "probe:counter", workers=1, max_restarts=9)
    rollout.start()
    with pytest.raises(WorkerFailed, match=r"worker 0 failed twice at the same step, so it would fail again: "):
        rollout.gather()
    assert len(lost) == 1
    rollout.close()


def held() -> Counter[str]:
    """What this process holds, by kind: objects, threads, open files, shared memory."""
    gc.collect()
    kinds = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())
    kinds["threads"] = threading.active_count()
    kinds["files"] = len(os.listdir("/proc/self/fd"))
    kinds["memory"] = Path("/proc/self/maps").read_text().count("memfd:rltrain")
    return kinds


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_lost_actor_leaves_nothing_behind() -> None:
    """Of whatever there is one more after each restart, a long run would hold thousands."""
    rollout, _ = open_rollout(Picture, workers=1, streams=1, unroll=40)
    assert rollout._backend.slots.memories, "its observations travel through shared memory"

    def restarts(times: int) -> None:
        for _ in range(times):
            os.kill(pids(rollout)[0], signal.SIGKILL)
            rollout.start()
            rollout.gather()

    restarts(2)
    held()  # counting leaves something of its own, once
    counts, times = [held()], 3
    for _ in range(3):
        restarts(times)
        counts.append(held())
    assert rollout.restarts == 2 + 3 * times
    more = [after - before for before, after in pairwise(counts)]
    assert [kind for kind in more[0] if all(grown[kind] >= times for grown in more)] == []


def test_state_asked_of_a_lost_actor_is_that_of_its_successor() -> None:
    rollout, _ = open_rollout("probe:counter", workers=2, streams=5)
    rollout.start()
    rollout.gather()
    os.kill(pids(rollout)[1], signal.SIGKILL)
    state = rollout.state()
    assert [unit["streams"] for unit in state["units"]] == [[0], [1], [2], [3], [4]]
    assert [unit["incarnation"] for unit in state["units"]] == [[0]] * 3 + [[1]] * 2
    assert rollout.restarts == 1
    rollout.close()


@pytest.mark.parametrize("how", ["killed", pytest.param("hangs", marks=pytest.mark.sweep)])
def test_the_evaluating_worker_is_supervised_too(how: str, tmp_path: Path) -> None:
    once = str(tmp_path / "once")
    config = {"eval_every": 1000, "eval_episodes": 2, "actor_timeout": 2.0 if how == "hangs" else 60.0}
    result = run(
        lambda: HangsInEvaluation(evaluation=",".join(map(str, evaluation_seeds(0, 2))), how=how, once=once),
        tmp_path,
        steps=1500,
        **config,
    )
    assert os.path.exists(once)
    assert result.restarts == 1
    assert result.eval_return is not None


def test_an_actor_without_a_task_yet_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    """SIGKILLed between the start of a process and its one task, a command must leave nothing behind either."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, time, loky\n"
        "from rltrain.rollout.workers.fork_server import start_fork_server\n"
        "from rltrain.rollout.workers.process import ProcessHandle\n"
        "def die(self):\n"
        "    time.sleep(1.0)\n"
        "    print(*(process.pid for process in self._processes.values()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "start_fork_server([])\n"
        "loky.ProcessPoolExecutor._start_executor_manager_thread = die\n"
        "ProcessHandle(0, dict)\n"
    )
    root, said = Path(__file__).resolve().parents[2], tmp_path / "said"
    with said.open("w") as out:  # a pipe would stay open as long as anybody is left
        command = [sys.executable, str(script)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, stdout=out, check=False)
    assert done.returncode == -signal.SIGKILL
    (pid,) = map(int, said.read_text().split())
    until = time.monotonic() + 10.0
    while psutil.pid_exists(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
