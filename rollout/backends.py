"""Where actors run: in this process, in its children, or on a `rltrain.rollout.cluster.cluster.Cluster`."""

from __future__ import annotations

import functools
from typing import Any, Protocol

from rltrain.rollout.actor.actor import Actor, Links
from rltrain.rollout.inference.supervisor import InferenceSupervisor
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.shared_memory.observations import ObservationSlots
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import ActorJob, RolloutSpec
from rltrain.rollout.types import Weights
from rltrain.rollout.workers.handle import Handle
from rltrain.rollout.workers.in_process import LocalHandle


class Backend(Protocol):
    """Starts actors and gives them weights. All methods may raise ClusterLost."""

    def open(self, job: ActorJob, inference: InferenceSupervisor | None) -> Handle:
        """Start an actor.

        Raises:
            ActorLost: it could not be started.
            NoNode:    no machine is available at the moment.
        """

    def unpack(self, worker: int, answer: Any) -> Any:
        """The unroll, or the result of `reduce`, in an actor's answer to `collect`."""

    def publish(self, weights: Weights) -> None:
        """Publish the weights of the unrolls that begin from now on."""

    def publish_opponent(self, index: int, snapshot: Weights) -> None:
        """Publish an opponent, at `index` of the pool, for the games that begin from now on."""

    def check(self) -> None:
        """Raises ClusterLost if no actor can run any more."""

    def crowded(self, handle: Handle) -> bool:
        """True if the actor should be moved to a machine with more room."""

    def metrics(self) -> dict[str, float]: ...

    def release(self) -> None:
        """Free the rollout's memory; its actors have ended."""


class LocalBackend:
    """This machine: actors share weights and big observations with the learner through memory.

    Args:
        heartbeats: of all actors.
    """

    def __init__(self, plan: RolloutSpec, weights: Weights, heartbeats: SharedMemory) -> None:
        self._in_process = plan.backend == "local" or plan.workers == 0
        self._heartbeats = heartbeats
        self.board = WeightsBoard(weights.arrays)
        self.board.publish(weights)
        self._pool = [WeightsBoard(weights.arrays) for _ in range(0 if plan.pool is None else plan.pool.size)]
        self.slots = ObservationSlots(plan)

    def open(self, job: ActorJob, inference: InferenceSupervisor | None) -> Handle:
        if self._in_process:
            local = Links(self.board.memory, self._heartbeats, opponents=[board.memory for board in self._pool])
            return LocalHandle(job.worker, functools.partial(Actor, job, local))
        from rltrain.rollout.workers.process import ProcessHandle

        links = Links(
            self.board.memory.ticket() if inference is None else None,
            self._heartbeats.ticket(),
            self.slots.ticket(job.worker, len(job.streams)),
            inference.ticket(job.worker) if inference is not None else None,
            [board.memory.ticket() for board in self._pool],
        )
        return ProcessHandle(job.worker, functools.partial(Actor, job), links)

    def unpack(self, worker: int, answer: Any) -> Any:
        return self.slots.unpack(worker, answer)

    def publish(self, weights: Weights) -> None:
        self.board.publish(weights)

    def publish_opponent(self, index: int, snapshot: Weights) -> None:
        self._pool[index].publish(snapshot)

    def check(self) -> None:
        """No-op: this machine exists as long as this process."""

    def crowded(self, handle: Handle) -> bool:
        return False

    def metrics(self) -> dict[str, float]:
        return {}

    def release(self) -> None:
        self.slots.close()
        for board in (self.board, *self._pool):
            board.memory.close()
