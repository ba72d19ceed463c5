"""What holds between the scheduler and an actor on another machine, without any machine."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import pytest
from oracles.faulty import config_of

from rltrain.rollout.cluster.node import MessageOrder
from rltrain.rollout.cluster.node_proxy import Publications, RemoteHandle
from rltrain.rollout.cluster.versions import differences, own_versions
from rltrain.rollout.shared_memory.heartbeat import HEARTBEAT, Heartbeat, heartbeat_numbers
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.types import Weights
from rltrain.rollout.workers.handle import ActorLost
from rltrain.setup.environment import open_environment
from rltrain.setup.rollout import rollout_spec


class Wire:
    """Has the interface of a NodeProxy that a handle uses: answers come when and as a test says."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.answers: dict[int, asyncio.Future[tuple[str, Any]]] = {}
        self.needed: dict[int, int] = {}
        self.ended: list[str | None] = []
        self.name = "tcp://there"
        self.publications = Publications((0, Weights(0, 0, {})), strict=True)
        opened = self.loop.create_future()
        opened.set_result(None)
        self.handle = RemoteHandle(self, 1, 7, SharedMemory(8 * HEARTBEAT * 2), opened)  # type: ignore[arg-type]

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.create_task(work)
        self.turn()

    def turn(self) -> None:
        for _ in range(5):
            self.loop.run_until_complete(asyncio.sleep(0))

    async def ask(self, handle: RemoteHandle, number: int, required: int, method: str, args: Any) -> tuple[str, Any]:
        self.needed[number] = required
        self.answers[number] = self.loop.create_future()
        return await self.answers[number]

    async def end(self, handle: RemoteHandle, why: str | None) -> None:
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
    wire.publications.issued = 4
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


def test_what_an_actor_counts_is_added_to_what_those_before_it_did(wire: Wire) -> None:
    memory = SharedMemory(8 * HEARTBEAT * 3)
    heartbeat = Heartbeat(memory, 2)
    heartbeat.step()
    heartbeat.begin()
    heartbeat.add_seconds(1.5, 2.5)
    handle = RemoteHandle(wire, 2, 0, memory, wire.handle.opened)  # type: ignore[arg-type]
    other = SharedMemory(8 * HEARTBEAT)
    theirs = Heartbeat(other, 0)
    for _ in range(10):
        theirs.step()
    theirs.begin()
    theirs.add_seconds(0.5, 0.25)
    heartbeat.stop()
    for _ in range(2):  # telling twice does not add twice
        handle.update_heartbeat(heartbeat_numbers(other, 0).tolist())
    assert (heartbeat.steps, heartbeat.begun, heartbeat.waited, heartbeat.acted) == (11, 2, 2.0, 2.75)
    assert heartbeat.stopped, "only the learner's side sets this"
    handle.close()
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
    assert differences({"tcp://a": own, "tcp://b": dict(own)}) == []


@pytest.mark.parametrize("name", ["python", "rltrain", "torch", "gymnasium"])
def test_a_node_that_differs_is_named_with_both_versions(name: str) -> None:
    own = own_versions()
    lines = differences({"tcp://a": own, "tcp://b": {**own, name: "0.0"}, "tcp://c": {**own, name: None}})
    assert lines[0] == f"the node tcp://b has {name} 0.0 (here {own[name]}); install the same there"
    assert lines[1].startswith(f"the node tcp://c has {name} missing (here {own[name]})")


def test_the_plan_that_a_node_gets_holds_no_code_of_the_users() -> None:
    config = config_of("CartPole-v1")
    environment = open_environment(config)[0]
    plan = replace(rollout_spec(config, environment, StreamPlan(8)), make_env=lambda *_: None, make_policy=lambda: None)
    outline = pickle.loads(pickle.dumps(plan.without_user_code()))
    assert replace(outline, make_env=plan.make_env, make_policy=plan.make_policy) == plan
