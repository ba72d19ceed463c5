"""What holds between the scheduler and an actor on another machine, without any machine."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import pytest
from oracles.faulty import config_of

from rltrain.rollout.cluster.node import MessageOrder, outline_of
from rltrain.rollout.cluster.remote_handle import RemoteHandle
from rltrain.rollout.cluster.versions import differs, own_versions
from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT, Heartbeat
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.specs import ActorJob
from rltrain.rollout.workers.handle import ActorLost
from rltrain.setup.environment import open_environment


class Wire:
    """Stands for the event loop and the node: answers come when and as a test says."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.answers: dict[int, asyncio.Future[tuple[str, Any]]] = {}
        self.needed: dict[int, int] = {}
        self.ended: list[str | None] = []
        self.published = 0
        self.handle = RemoteHandle(
            1, 7, np.zeros(HEARTBEAT, np.int64), "tcp://there", self.run, self.ask, lambda: self.published, self.end
        )

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.create_task(work)
        self.turn()

    def turn(self) -> None:
        for _ in range(5):
            self.loop.run_until_complete(asyncio.sleep(0))

    async def ask(self, number: int, needs: int, method: str, args: Any) -> tuple[str, Any]:
        self.needed[number] = needs
        self.answers[number] = self.loop.create_future()
        return await self.answers[number]

    async def end(self, why: str | None) -> None:
        self.ended.append(why)

    def say(self, number: int, kind: str, answer: Any) -> None:
        self.answers[number].set_result((kind, answer))
        self.turn()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.handle.close()
    for task in asyncio.all_tasks(made.loop):
        task.cancel()
    made.turn()
    made.loop.close()


def there(wire: Wire) -> bool:
    return bool(wait([wire.handle.waitable], 0))


def test_answers_come_in_the_order_of_the_questions(wire: Wire) -> None:
    for _ in range(3):
        wire.handle.call("collect")
    wire.say(2, "ok", "c")
    wire.say(1, "ok", "b")
    assert not there(wire)
    wire.say(0, "ok", "a")
    assert [wire.handle.result() for _ in range(3)] == ["a", "b", "c"]
    assert not there(wire)


def test_a_question_needs_the_weights_that_were_published_before_it(wire: Wire) -> None:
    wire.handle.call("collect")
    wire.published = 4
    wire.handle.call("collect")
    assert wire.needed == {0: 0, 1: 4}


def test_what_came_before_an_actor_was_lost_counts(wire: Wire) -> None:
    wire.handle.call("collect")
    wire.handle.call("collect")
    wire.say(0, "ok", "a")
    wire.say(1, "lost", "its process was ended by SIGKILL")
    assert wire.handle.result() == "a"
    with pytest.raises(ActorLost, match=r"worker 1: on tcp://there: its process was ended by SIGKILL"):
        wire.handle.result()
    assert wire.handle.exit_reason is not None


def test_an_actor_that_is_killed_answers_no_more_and_is_ended_once(wire: Wire) -> None:
    wire.handle.call("collect")
    wire.handle.kill("it made no step for 3 s")
    wire.handle.kill("again")
    assert there(wire)
    with pytest.raises(ActorLost, match="it made no step for 3 s"):
        wire.handle.result()
    wire.say(0, "ok", "too late")
    wire.handle.close()
    wire.turn()
    assert wire.ended == ["it made no step for 3 s"]


def test_a_closed_handle_can_be_rung_and_asked(wire: Wire) -> None:
    wire.handle.call("collect")
    wire.handle.close()
    wire.say(0, "ok", "too late")
    assert wire.ended == [None]
    with pytest.raises(ActorLost, match="it was closed"):
        wire.handle.result()


def test_what_an_actor_counts_is_added_to_what_those_before_it_did() -> None:
    memory = SharedMemory(8 * HEARTBEAT * 3)
    life = Heartbeat(memory, 2)
    life.step()
    life.begin()
    life.count(1.5, 2.5)
    base = memory.array(8 * HEARTBEAT * 2, (HEARTBEAT,), np.int64).copy()
    handle = RemoteHandle(2, 0, base, "", lambda work: work.close(), None, None, None)  # type: ignore[arg-type]
    other = SharedMemory(8 * HEARTBEAT)
    theirs = Heartbeat(other, 0)
    for _ in range(10):
        theirs.step()
    theirs.begin()
    theirs.count(0.5, 0.25)
    life.end()
    for _ in range(2):  # telling twice does not add twice
        handle.tell(memory, other.array(0, (HEARTBEAT,), np.int64).tolist())
    assert (life.steps, life.begun, life.waited, life.acted) == (11, 2, 2.0, 2.75)
    assert life.stopped  # is ours to say
    for used in (memory, other):
        used.close()


def test_coroutines_pass_in_the_order_of_their_numbers() -> None:
    async def main() -> list[int]:
        turns, passed = MessageOrder(), list[int]()

        async def one(number: int) -> None:
            await turns.wait(number)
            passed.append(number)
            turns.passed()

        await asyncio.wait_for(asyncio.gather(*(one(number) for number in (3, 1, 0, 2))), 5)
        return passed

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_a_node_that_has_what_we_have_is_not_named() -> None:
    own = own_versions()
    assert differs({"tcp://a": own, "tcp://b": dict(own)}) == []


@pytest.mark.parametrize("name", ["python", "rltrain", "torch", "gymnasium"])
def test_a_node_that_differs_is_named_with_both_versions(name: str) -> None:
    own = own_versions()
    lines = differs({"tcp://a": own, "tcp://b": {**own, name: "0.0"}, "tcp://c": {**own, name: None}})
    assert lines[0] == f"the node tcp://b has {name} 0.0 (here {own[name]}); install the same there"
    assert lines[1].startswith(f"the node tcp://c has {name} missing (here {own[name]})")


def test_the_outline_of_a_job_holds_nothing_of_the_users() -> None:
    spec = open_environment(config_of("CartPole-v1"))[0].spec
    job = ActorJob(0, spec, 16, 0, (0, 1), (0, 0), (0, 0), lambda *_: None, lambda: None)
    outline = pickle.loads(pickle.dumps(outline_of(job)))
    assert replace(outline, make_env=job.make_env, make_policy=job.make_policy) == job
