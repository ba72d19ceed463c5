"""Where actors run: in this process, in processes beside it, or on the machines of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rltrain.rollout.actor.actor import Actor, Build, Links
from rltrain.rollout.frame_stacks import decompressed
from rltrain.rollout.inference.supervisor import InferenceSupervisor
from rltrain.rollout.shared_memory.memory import SharedMemory
from rltrain.rollout.shared_memory.observations import ObservationSlots
from rltrain.rollout.shared_memory.weights import WeightsBoard
from rltrain.rollout.specs import ActorJob, RolloutSpec
from rltrain.rollout.types import Trajectory, Weights
from rltrain.rollout.workers.handle import Handle
from rltrain.rollout.workers.in_process import LocalHandle

if TYPE_CHECKING:
    from rltrain.rollout.cluster.cluster import Cluster


class Backend(Protocol):
    """Opens actors, and lets them have weights."""

    def start(self) -> None:
        """Be ready for actors. Raises ClusterLost if that cannot be."""

    def open(self, job: ActorJob, central: InferenceSupervisor | None) -> Handle:
        """Start an actor. Raises ActorLost, NoNode or ClusterLost if that cannot be."""

    def unpack(self, worker: int, answer: Any) -> Any:
        """The unroll that an actor sent, its observations included."""

    def publish(self, weights: Weights) -> None:
        """Let the unrolls that begin from now on use these weights."""

    def publish_opponent(self, index: int, snapshot: Weights) -> None:
        """Let the games that begin from now on meet this opponent."""

    def check(self) -> None:
        """Raises ClusterLost if nothing can run here any more."""

    def crowded(self, handle: Handle) -> bool:
        """Whether an actor had better be moved."""

    def metrics(self) -> dict[str, float]:
        """What there is to log."""

    def close(self) -> None:
        """Give memory back; actors have ended."""


class Here:
    """This machine. Actors read weights, and leave big observations, in memory that is shared with them."""

    def __init__(self, plan: RolloutSpec, local: bool, weights: Weights, life: SharedMemory) -> None:
        self._local, self._life = local, life
        self.board = WeightsBoard(weights.arrays)
        self.board.publish(weights)
        self._pool = [WeightsBoard(weights.arrays) for _ in range(0 if plan.pool is None else plan.pool.size)]
        self._slots = ObservationSlots(plan.spec, plan.unroll)

    def start(self) -> None:
        """It is."""

    def open(self, job: ActorJob, central: InferenceSupervisor | None) -> Handle:
        if self._local:
            links = Links(self.board.memory, self._life, pool=[board.memory for board in self._pool])
            return LocalHandle(job.worker, lambda: Actor(job, links))
        from rltrain.rollout.workers.process import ProcessHandle

        weights = self.board.memory.ticket() if central is None else None
        desk = central.ticket(job.worker) if central is not None else None
        pool = [board.memory.ticket() for board in self._pool]
        tickets = (weights, self._life.ticket(), self._slots.ticket(job), desk, pool)
        return ProcessHandle(job.worker, Build(job), *tickets)

    def unpack(self, worker: int, answer: Any) -> Any:
        return self._slots.whole(worker, answer)

    def publish(self, weights: Weights) -> None:
        self.board.publish(weights)

    def publish_opponent(self, index: int, snapshot: Weights) -> None:
        self._pool[index].publish(snapshot)

    def check(self) -> None:
        """Nothing to say: what runs here is there as long as we are."""

    def crowded(self, handle: Handle) -> bool:
        return False

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._slots.close()
        for board in (self.board, *self._pool):
            board.memory.close()


class Elsewhere:
    """The machines of a cluster, which outlives the rollout."""

    def __init__(self, plan: RolloutSpec, cluster: Cluster, weights: Weights, life: SharedMemory) -> None:
        self._plan, self._cluster, self._weights, self._life = plan, cluster, weights, life

    def start(self) -> None:
        from rltrain.rollout.cluster.node import NodeConfig

        plan = self._plan
        pool = 0 if plan.pool is None else plan.pool.size
        terms = NodeConfig(plan.spec, plan.unroll, max(plan.workers, 1), self._weights, pool, plan.preload)
        strict = plan.max_in_flight == 1 or plan.deterministic
        self._cluster.begin(terms, self._life, strict, hurry=plan.deterministic, modules=plan.modules)

    def open(self, job: ActorJob, central: InferenceSupervisor | None) -> Handle:
        return self._cluster.open(job)

    def unpack(self, worker: int, answer: Any) -> Any:
        unroll = answer[0]
        return decompressed(unroll) if isinstance(unroll, Trajectory) else unroll

    def publish(self, weights: Weights) -> None:
        self._cluster.publish(weights)

    def publish_opponent(self, index: int, snapshot: Weights) -> None:
        self._cluster.keep(index, snapshot)

    def check(self) -> None:
        self._cluster.check()

    def crowded(self, handle: Handle) -> bool:
        return self._cluster.crowded(handle)

    def metrics(self) -> dict[str, float]:
        return self._cluster.metrics()

    def close(self) -> None:
        """Nothing: who opened the cluster closes it."""
