"""A server that is killed, hangs or cannot start; actors that are lost while it goes on; and an end while all wait."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from oracles.faulty import Slow, config_of, killed, open_rollout, opened, pids, weights_of

from rltrain.learner.algorithm import make_algorithm
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.supervision import WorkerFailed
from rltrain.rollout.workers.handle import SERVER, ActorLost
from rltrain.rollout.workers.process import ProcessHandle
from rltrain.setup.environment import open_environment
from rltrain.setup.rollout import rollout_spec
from rltrain.training_loop import train

pytestmark = pytest.mark.usefixtures("fork_server")
PATIENCE = 120.0  # seconds after which a test gives up on something that should come at once
CENTRAL: dict[str, Any] = {"workers": 2, "inference": "central"}


def server(rollout: Rollout) -> ProcessHandle:
    assert rollout._inference is not None
    assert isinstance(rollout._inference.worker.handle, ProcessHandle)
    return rollout._inference.worker.handle


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def acting(rollout: Rollout) -> None:
    """Wait until both actors have made steps of the unroll under way."""
    before = [actor.heartbeat.steps for actor in rollout._actors]
    until(lambda: all(actor.heartbeat.steps > b + 2 for actor, b in zip(rollout._actors, before, strict=True)))


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.sweep)])
def test_a_server_that_is_lost_is_replaced_and_actors_notice_nothing(how: signal.Signals) -> None:
    """It remembers nothing: the unrolls are those of a run in which nothing went wrong."""
    lost: list[ActorLost] = []
    asked = {"streams": 5, "unroll": 16, "seed": 2, "actor_timeout": 5.0}
    calm, _ = open_rollout(Slow, workers=0, **asked)
    rollout, _ = open_rollout(Slow, lost.append, **CENTRAL, **asked)
    for round_ in range(3):
        calm.start()
        rollout.start()
        if round_ == 1:
            acting(rollout)
            before, victim = pids(rollout), server(rollout).pid
            os.kill(victim, how)
        (expected,) = calm.gather()
        unrolls = rollout.gather()
        for unroll in unrolls:
            columns = unroll.stream
            assert (unroll.obs == expected.obs[:, columns]).all()
            assert (unroll.action == expected.action[:, columns]).all()
            assert (unroll.extras["log_prob"] == expected.extras["log_prob"][:, columns]).all()
            assert (unroll.row == 16 * round_).all()
    assert rollout.restarts == len(lost) == 1
    assert lost[0].worker == SERVER
    text = "SIGKILL" if how == signal.SIGKILL else "it made no step for 5 s, so it was ended"
    assert text in str(lost[0])
    assert "the inference server" in str(lost[0])
    assert pids(rollout) == before
    assert server(rollout).pid != victim
    assert rollout.generations.tolist() == [0] * 5
    assert rollout._inference is not None
    assert rollout._inference.worker.failures == 0, "a delivered unroll ends the count of failures in a row"


def test_a_server_that_cannot_start_ends_the_run_with_its_story() -> None:
    config = config_of("probe:counter", streams=4, **CENTRAL)
    here = open_environment(config)[0]
    algorithm = make_algorithm(config, here.spec)
    plan = replace(rollout_spec(config, here, algorithm.plan), make_policy=_raises)
    lost: list[ActorLost] = []
    rollout = Rollout(plan, weights_of(algorithm.policy), lost.append)
    opened.append(rollout)
    rollout.start()
    with pytest.raises(WorkerFailed, match="the inference server failed twice at the same step") as failed:
        rollout.gather()
    assert "ValueError: no such policy" in str(failed.value)
    assert len(lost) == 1


def _raises() -> Any:
    raise ValueError("no such policy")


def test_an_actor_that_is_killed_harms_neither_the_server_nor_the_others() -> None:
    lost: list[ActorLost] = []
    rollout, _ = open_rollout(lambda: Slow(0.01), lost.append, streams=5, unroll=32, **CENTRAL)
    rollout.start()
    rollout.gather()
    (victim, other), its = pids(rollout), server(rollout).pid
    rollout.start()
    acting(rollout)
    os.kill(victim, signal.SIGKILL)
    unrolls = rollout.gather()
    assert [one.worker for one in lost] == [0]
    assert pids(rollout)[1] == other
    assert server(rollout).pid == its
    assert rollout.generations.tolist() == [1, 1, 1, 0, 0]
    assert [unroll.row.tolist() for unroll in unrolls] == [[32] * 3, [32] * 2]
    assert unrolls[0].first[0].all()


def test_what_a_lost_actor_asked_is_not_held_against_the_server() -> None:
    """It died after it had counted its question and before it woke the server."""
    rollout, _ = open_rollout("probe:counter", streams=4, unroll=8, **CENTRAL)
    rollout.start()
    rollout.gather()
    central = rollout._inference
    assert central is not None
    central.requests.asked[0] += 1
    assert central.is_pending(0), "nobody has woken it"
    rollout._actors[0].open()
    until(lambda: not central.is_pending(0))


def test_an_end_while_all_wait_for_a_server_that_hangs() -> None:
    """Actors end as they do when they are asked; only the server has to be killed."""
    rollout, _ = open_rollout("probe:counter", streams=4, unroll=8, **CENTRAL)
    rollout.start()
    rollout.gather()
    handle = server(rollout)
    os.kill(handle.pid, signal.SIGSTOP)
    rollout.start()
    central = rollout._inference
    assert central is not None
    until(lambda: all(central.is_pending(actor.number) for actor in rollout._actors))
    handles: list[Any] = [actor.handle for actor in rollout._actors]
    rollout.close()
    assert [one._why for one in handles] == [None, None]
    assert all(one._future.exception() is None for one in handles)
    assert handle._why == "it did not stop when asked"


@pytest.mark.sweep
def test_a_run_survives_an_environment_that_kills_its_actor(tmp_path: Path) -> None:
    once = str(tmp_path / "once")
    config = config_of(lambda: killed(at=500, once=once), out=str(tmp_path), streams=4, steps=3000, **CENTRAL)
    result = train(config)
    assert os.path.exists(once)
    assert result.restarts == 1
    assert result.steps >= 3000
