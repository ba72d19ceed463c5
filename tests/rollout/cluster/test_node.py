"""A node by itself, in this process: order, weights, and who is ended when nobody asks any more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest
from oracles.faulty import config_of

from rltrain.learner.algorithm import make_algorithm
from rltrain.rollout.cluster import node as module
from rltrain.rollout.cluster.node import Node
from rltrain.rollout.specs import ActorJob
from rltrain.rollout.types import Weights
from rltrain.setup.environment import open_environment
from rltrain.setup.rollout import rollout_spec

pytestmark = pytest.mark.usefixtures("fork_server")

Made = tuple[Node, bytes, dict[str, np.ndarray]]


def made(env: str = "CartPole-v1") -> Made:
    """A node, the pickled job of an actor there, and the arrays of its weights."""
    config = config_of(env, workers=1, streams=2, unroll=4)
    here = open_environment(config)[0]
    algorithm = make_algorithm(config, here.spec)
    plan = rollout_spec(config, here, algorithm.plan)
    arrays = {name: tensor.numpy() for name, tensor in algorithm.policy.state_dict().items()}
    job = ActorJob(plan, 0, (0, 1), (0, 0), (0, 0))
    return Node(plan.without_user_code(), Weights(0, 0, arrays)), cloudpickle.dumps(job), arrays


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_an_unroll_waits_for_the_weights_it_needs_and_answers_keep_their_order() -> None:
    node, job, arrays = made()

    async def main() -> list[int]:
        assert node.open(1, 0, 2, job) is None
        asked = [asyncio.create_task(node.ask(0, 1, number, 5, "collect", ())) for number in (1, 0)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in asked)  # the weights are not there
        await node.publish(5, Weights(7, 0, arrays), {})
        answers = await asyncio.gather(*asked)
        await node.end()
        assert [answer[0] for answer in answers] == ["ok", "ok"]
        assert {int(answer[1].version.min()) for answer in answers} == {7}
        return [int(answer[1].row[0]) for answer in answers]

    assert run(main()) == [4, 0]


def test_who_was_replaced_is_not_asked() -> None:
    node, job, _ = made()

    async def main() -> Any:
        node.open(1, 0, 2, job)
        await node.end_actor(0, 2, "another actor")
        before = (await node.heartbeats())[0][0]
        node.open(2, 0, 2, job)
        lost = await node.ask(0, 1, 0, 0, "collect", ())
        fine = await node.ask(0, 2, 0, 0, "collect", ())
        await node.end()
        return before, lost, fine[0]

    assert run(main()) == (1, ("lost", "it was replaced"), "ok")


def test_an_actor_that_hangs_is_ended_when_the_learner_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its node is held by the question, so nobody else would."""
    monkeypatch.setattr(module, "CLIENT_SECONDS", 0.5)
    node, job, _ = made("oracles.faulty:hangs")

    async def main() -> tuple[bool, Any]:
        node.open(1, 0, 2, job)
        pid = node._actors[0].handle.pid
        asking = asyncio.create_task(node.ask(0, 1, 0, 0, "collect", (None,)))
        await node.heartbeats()
        answer, number = await asking, 0
        while answer[0] == "ok":  # it hangs later
            await node.heartbeats()
            number += 1
            answer = await node.ask(0, 1, number, 0, "collect", ())
        await node.end()
        return psutil.pid_exists(pid) and psutil.Process(pid).ppid() == os.getpid(), answer[0]

    assert run(main()) == (False, "lost")
