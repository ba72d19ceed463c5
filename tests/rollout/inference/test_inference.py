"""Decisions asked of a server are those that a policy of one's own would make, to the bit, whoever asks beside."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.faulty import NothingLegal, config_of, open_rollout, weights_of

from rltrain.envs.problems.probes import Masked
from rltrain.learner.algorithm import make_algorithm
from rltrain.rollout.actor.actor import Actor, Links
from rltrain.rollout.buffers import padded
from rltrain.rollout.inference.client import InferenceClient, inference_of
from rltrain.rollout.inference.requests import ERROR_BYTES, RequestBuffers
from rltrain.rollout.inference.server import Server, ServerJob
from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT, Heartbeat
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import ActorJob, RolloutSpec
from rltrain.rollout.supervision import WorkerFailed
from rltrain.rollout.tree import leaves, tree_map
from rltrain.rollout.workers.handle import ActorLost
from rltrain.setup.environment import open_environment
from rltrain.setup.rollout import rollout_spec
from rltrain.training_loop import train

PATIENCE = 120.0  # seconds after which a test gives up on something that should come at once


@dataclass
class Hall:
    """A server in a thread of this process, once `serving`, and who asks it."""

    plan: RolloutSpec
    policy: Any  # the learner's
    board: WeightsBoard
    requests: RequestBuffers
    clients: list[InferenceClient]
    server: Server
    end: Connection  # closed when nobody is to be answered any more

    def publish(self, version: int) -> None:
        self.board.publish(weights_of(self.policy, version))

    def ask(self, worker: int, obs: Any, mask: Any = None, core: Any = None) -> Any:
        """A decision on rows [B, ...], without noise."""
        width, count = padded(self.requests.streams[worker]), self.requests.streams[worker]

        def wide(rows: torch.Tensor) -> torch.Tensor:
            return torch.cat([rows, torch.zeros(width - count, *rows.shape[1:], dtype=rows.dtype)])

        noise = torch.zeros(width, self.plan.inference.noise.columns)  # type: ignore[union-attr]
        wide_core = None if core is None else wide(core)
        return self.clients[worker].act(
            tree_map(wide, obs), wide_core, None if mask is None else wide(mask), noise, True
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self.server.serve, daemon=True)
        thread.start()
        yield
        self.end.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def hall(env: Any, streams: tuple[int, ...], **given: Any) -> Hall:
    config = config_of(env, workers=len(streams), streams=sum(streams), inference="central", **given)
    here = open_environment(config)[0]
    algorithm = make_algorithm(config, here.spec)
    plan = rollout_spec(config, here, algorithm.plan)
    assert plan.inference is not None
    board = WeightsBoard(weights_of(algorithm.policy).arrays)
    requests, pairs, (end, control) = (
        RequestBuffers(here.spec, plan.inference, streams),
        [Pipe() for _ in streams],
        Pipe(),
    )
    clients = [
        InferenceClient(plan.inference, requests, worker, mine, lambda: False) for worker, (mine, _) in enumerate(pairs)
    ]
    job = ServerJob(here.spec, plan.inference, streams, plan.make_policy)
    server = Server(job, board.memory.ticket(), requests.memory.ticket(), [theirs for _, theirs in pairs], control)
    made = Hall(plan, algorithm.policy, board, requests, clients, server, end)
    made.publish(0)
    return made


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def beside(*calls: Callable[[], Any]) -> tuple[list[Any], Callable[[], None]]:
    """Calls in threads: what came of each (an exception where it raised), and a function that waits for all."""
    found: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            found[number] = calls[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    return found, lambda: [thread.join(PATIENCE) for thread in threads] and None


def test_one_call_serves_all_who_wait() -> None:
    here = hall("CartPole-v1", (3, 2))
    rows = torch.arange(20, dtype=torch.float32).reshape(5, 4) / 10
    found, joined = beside(lambda: here.ask(0, rows[:3]), lambda: here.ask(1, rows[3:]))
    until(lambda: here.requests.pending() == [0, 1])
    with here.serving():
        joined()
    assert here.requests.totals.tolist() == [1, 5]
    assert here.requests.pending() == []
    with torch.inference_mode():
        alone = here.policy.act(torch.cat([rows, torch.zeros(11, 4)]), None, None, torch.zeros(16, 2), True)
        told = here.policy.summarize_unroll(alone.extras, alone.action, None)
    for answer, place in zip(found, (slice(0, 3), slice(3, 5)), strict=True):
        count = place.stop - place.start
        assert torch.equal(answer.action[:count], alone.action[place])
        assert torch.equal(answer.extras["log_prob"][:count], told["log_prob"][place])
        assert set(answer.extras) == {"log_prob"}, "no network is needed to make it"


def test_batches_are_padded_and_what_fills_them_up_is_not_looked_at() -> None:
    here, told = hall("CartPole-v1", (3, 2)), []
    policy = here.server.policy
    act, narrow = policy.act, policy.set_active_rows
    policy.act = lambda obs, *rest: (told.append(len(obs)), act(obs, *rest))[1]
    policy.set_active_rows = lambda rows: (told.append(rows), narrow(rows))[1]
    with here.serving():
        here.ask(0, torch.zeros(3, 4))
        here.ask(1, torch.zeros(2, 4))
    assert told == [3, 16, 2, 16]


def test_an_unroll_has_the_version_of_the_oldest_weights_that_decided() -> None:
    here, rows = hall("CartPole-v1", (2,)), torch.zeros(2, 4)
    (client,) = here.clients
    with here.serving():
        for version, oldest in ((5, 5), (6, 5), (9, 5)):
            here.publish(version)
            here.ask(0, rows)
            assert client.version == oldest
        client.begin()
        here.ask(0, rows)
        assert client.version == 9


def test_newer_weights_decide_from_the_next_call_on() -> None:
    here, rows = hall("CartPole-v1", (2,)), torch.ones(2, 4)
    with here.serving():
        before = here.ask(0, rows).extras["log_prob"]
        with torch.no_grad():
            for parameter in here.policy.parameters():
                parameter.mul_(3.0)
        assert torch.equal(here.ask(0, rows).extras["log_prob"], before)
        here.publish(1)
        after = here.ask(0, rows).extras["log_prob"]
        assert not torch.equal(after, before)
    with torch.inference_mode():
        act = here.policy.act(torch.ones(16, 4), None, None, torch.zeros(16, 2), True)
        assert torch.equal(after[:2], here.policy.summarize_unroll(act.extras, act.action, None)["log_prob"][:2])


def test_memory_travels() -> None:
    here = hall("CartPole-v1", (2,), memory="lstm", memory_size=8, sequence=4)
    rows, core = torch.ones(2, 4), torch.linspace(-1, 1, 2 * here.policy.core_size).reshape(2, -1)
    with here.serving():
        answer = here.ask(0, rows, core=core)
        again = here.ask(0, rows, core=answer.core[:2])
    with torch.inference_mode():
        wide = torch.cat([core, torch.zeros(14, core.shape[1])])
        act = here.policy.act(torch.cat([rows, torch.zeros(14, 4)]), wide, None, torch.zeros(16, 2), True)
    assert torch.equal(answer.core[:2], act.core[:2])
    assert not torch.equal(again.core[:2], answer.core[:2])


def test_who_asks_what_cannot_be_answered_harms_nobody() -> None:
    here = hall("probe:masked", (2, 2))
    rows, mask = torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool)
    nothing = mask.clone()
    nothing[1] = False
    found, joined = beside(lambda: here.ask(0, rows, mask), lambda: here.ask(1, rows, nothing))
    until(lambda: here.requests.pending() == [0, 1])
    with here.serving():
        joined()
        assert found[0].action.shape == (16,)
        assert isinstance(found[1], RuntimeError)
        assert "a row of the action mask is all False" in str(found[1])
        assert "Traceback" in str(found[1])
        assert here.ask(1, rows, mask).action.shape == (16,), "its next question gets an answer"


def test_of_a_long_traceback_the_end_is_told() -> None:
    here = hall("CartPole-v1", (1,))
    here.requests.respond(0, 0, 0, "x" * ERROR_BYTES + "the end")
    assert here.requests.error(0).endswith("xthe end")
    assert len(here.requests.error(0)) == ERROR_BYTES
    here.requests.respond(0, 0, 0)
    assert here.requests.error(0) == ""


def test_a_successor_answers_who_was_waiting_and_wakes_who_was_answered() -> None:
    """The one before died after it had taken the wake-up call, and after an answer that it told nobody of."""
    here = hall("CartPole-v1", (1, 1))
    rows = torch.zeros(1, 4)
    found, joined = beside(lambda: here.ask(0, rows), lambda: here.ask(1, rows))
    until(lambda: here.requests.pending() == [0, 1])
    for pipe in here.server._pipes:
        until(lambda pipe=pipe: pipe.poll())  # type: ignore[misc]
        os.read(pipe.fileno(), 64)
    here.requests.respond(1, 1, 7)
    with here.serving():
        joined()
    assert [type(answer).__name__ for answer in found] == ["Act", "Act"]
    assert here.clients[1].version == 7


def test_an_actor_makes_no_network_and_ends_when_nobody_answers() -> None:
    here = hall("probe:counter", (2,))
    heartbeats, pair = SharedMemory(8 * HEARTBEAT), Pipe()
    job = ActorJob(replace(here.plan, make_policy=_refuses), 0, (0, 1), (0, 0), (0, 0))
    ticket = pair[0], here.requests.memory.ticket(), here.requests.streams
    actor = Actor(job, Links(None, heartbeats, None, ticket))
    found, joined = beside(actor.collect)
    until(lambda: here.requests.pending() == [0])
    Heartbeat(heartbeats, 0).stop()
    pair[1].send_bytes(b"")  # and it is woken
    joined()
    assert found == [(None, None)]


def _refuses() -> Any:
    raise AssertionError("an actor made a network")


def test_what_actors_know_of_a_policy() -> None:
    here = hall("probe:box3", (2,), memory="gru", memory_size=8, sequence=4)
    inference = inference_of(here.policy, here.plan.spec, "cpu")
    assert inference == here.plan.inference
    assert inference.extras == {"log_prob": ((), "float32")}
    assert inference.core_size == 8
    (buffer,) = here.requests.buffers
    assert all(len(leaf) == 16 for name, tree in buffer.items() if name != "error" for leaf in leaves(tree))


# --- whole runs ---

TINY: dict[str, Any] = {
    "preset": "none", "seed": 3, "streams": 7, "unroll": 8, "widths": (16,), "normalize_obs": True, "eval_every": 0,
    "checkpoint_every": 0, "quiet": True,
}  # fmt: skip
PPO: dict[str, Any] = {"algo": "ppo", "epochs": 1, "minibatches": 2, "normalize_return": True, "steps": 150}
REPLAY: dict[str, Any] = {
    "unroll": 4, "warmup": 40, "batch": 16, "updates_per_step": 0.5, "steps": 150, "n_step": 3, "prioritized": True,
}  # fmt: skip
RUNS = [
    pytest.param("CartPole-v1", PPO, id="discrete", marks=pytest.mark.sweep),
    pytest.param("probe:box", PPO | {"deterministic": True}, id="box, deterministic", marks=pytest.mark.sweep),
    pytest.param(
        "probe:box3", PPO | {"memory": "gru", "memory_size": 8, "sequence": 4}, id="box, gru", marks=pytest.mark.sweep
    ),
    pytest.param("probe:multi-discrete", PPO | {"memory": "lstm", "memory_size": 8, "sequence": 4}, id="heads, lstm"),
    pytest.param("probe:multi-binary", PPO, id="bits", marks=pytest.mark.sweep),
    pytest.param("probe:masked", PPO, id="masked"),
    pytest.param("probe:dict", PPO, id="dict", marks=pytest.mark.sweep),
    pytest.param("probe:image", PPO, id="images", marks=pytest.mark.sweep),
    pytest.param(
        "CartPole-v1", REPLAY | {"algo": "dqn", "epsilon_per_stream": True}, id="dqn", marks=pytest.mark.sweep
    ),
    pytest.param(
        "probe:masked",
        REPLAY | {"algo": "dqn", "noisy": True, "atoms": 5, "dueling": True},
        id="dqn, noisy",
        marks=pytest.mark.sweep,
    ),
    pytest.param("Pendulum-v1", REPLAY | {"algo": "sac"}, id="sac", marks=pytest.mark.sweep),
    pytest.param("probe:masked", REPLAY | {"algo": "sac"}, id="sac, discrete", marks=pytest.mark.sweep),
    pytest.param("Pendulum-v1", REPLAY | {"algo": "td3"}, id="td3"),
    pytest.param("Pendulum-v1", REPLAY | {"algo": "ddpg", "noise_kind": "ou"}, id="ddpg, ou", marks=pytest.mark.sweep),
]


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(("env", "given"), RUNS)
def test_the_same_bits_as_with_networks_of_their_own(env: str, given: dict[str, Any], tmp_path: Path) -> None:
    """Three actors of 3, 2 and 2 streams, in whatever company they ask."""
    asked = TINY | given | {"env": env, "out": str(tmp_path)}
    expected = train(**asked, workers=0)
    found = train(**asked, workers=3, inference="central")
    assert found.restarts == 0
    assert found.fingerprint == expected.fingerprint


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("workers", [1, pytest.param(8, marks=pytest.mark.sweep)])
def test_seventeen_streams_and_one_actor_or_eight(workers: int, tmp_path: Path) -> None:
    """Rows of all do not fit one width of padding."""
    asked = TINY | PPO | {"env": "CartPole-v1", "out": str(tmp_path), "streams": 17, "steps": 300}
    expected = train(**asked, workers=0).fingerprint
    assert train(**asked, workers=workers, inference="central").fingerprint == expected


@pytest.mark.usefixtures("fork_server")
def test_a_mask_that_allows_nothing_is_still_the_environments_fault() -> None:
    lost: list[ActorLost] = []
    rollout, _ = open_rollout(
        lambda: NothingLegal(at=20), lost.append, Masked, workers=2, streams=4, max_restarts=0, inference="central"
    )

    def unrolls() -> None:
        for _ in range(10):
            rollout.start()
            rollout.gather()

    with pytest.raises(WorkerFailed, match="the action mask allows no action at all") as failed:
        unrolls()
    assert "worker " in str(failed.value)
    assert rollout.restarts == 0, "the server is well"


@pytest.mark.usefixtures("fork_server")
def test_rows_per_call_and_versions_are_told() -> None:
    rollout, policy = open_rollout("probe:counter", workers=2, streams=5, unroll=8, inference="central")
    rollout.start()
    rollout.gather()
    assert 2 <= rollout.metrics()["rollout/inference_rows"] <= 5
    assert "rollout/inference_rows" not in rollout.metrics(), "there was no call since"
    rollout.publish(weights_of(policy, 1))
    rollout.start()
    assert {int(unroll.version.min()) for unroll in rollout.gather()} == {1}
