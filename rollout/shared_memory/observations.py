"""The memory that observations of big unrolls travel through: slots of each actor, looked up by the learner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.buffers import obs_arrays, padded
from rltrain.rollout.shared_memory.memory import SharedMemory, tree_at, tree_bytes
from rltrain.rollout.specs import ActorJob
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory


class ObservationSlots:
    """Those of all actors.

    Args:
        spec:   what is observed.
        unroll: T, the most rows that an unroll has.
    """

    def __init__(self, spec: EnvSpec, unroll: int) -> None:
        self._spec, self._unroll = spec, unroll
        self.memories: dict[int, SharedMemory] = {}  # by worker, of those whose unrolls are big

    def ticket(self, job: ActorJob) -> Any:
        """New ones for an actor, or None: the learner may still be looking at those of an actor that was lost."""
        size = needs_slots(job)
        if not size:
            return None
        if job.worker in self.memories:
            self.memories[job.worker].close()
        self.memories[job.worker] = SharedMemory(job.slots * size)
        return self.memories[job.worker].ticket()

    def whole(self, worker: int, answer: tuple[Any, int | None]) -> Any:
        """What an actor sent; observations that it left in a slot are looked up there."""
        unroll: Trajectory = answer[0]
        slot = answer[1]
        if slot is None:
            return unroll
        rows, columns = unroll.rows + 1, len(unroll.stream)
        like = obs_arrays(self._spec, self._unroll + 1, padded(columns))
        obs = tree_map(lambda a: a[:rows, :columns], tree_at(self.memories[worker], slot, like))
        return replace(unroll, obs=obs)

    def close(self) -> None:
        """Give the memory back. What was looked up stays valid."""
        for memory in self.memories.values():
            memory.close()


SLOT_BYTES = 256 * 1024  # observations of an unroll that are bigger travel through shared memory, not by pickle


def needs_slots(job: ActorJob) -> int:
    """Bytes of one slot for this actor's observations, or 0 where pickle is quicker or unrolls stay here."""
    if job.reduce is not None:
        return 0
    size = tree_bytes(obs_arrays(job.spec, job.unroll + 1, padded(len(job.streams))))
    return size if size >= SLOT_BYTES else 0
