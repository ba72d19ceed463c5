"""Slots in shared memory for the observations of big unrolls; the rest of an unroll is pickled.

An actor has two slots for each unroll that may be in flight, since the learner may still read as many older unrolls.
"""

from __future__ import annotations

from dataclasses import replace

from rltrain.rollout.buffers import obs_arrays, padded
from rltrain.rollout.shared_memory.memory import SharedMemory, Ticket, tree_at, tree_bytes
from rltrain.rollout.specs import RolloutSpec
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Gradients, Trajectory

SLOT_BYTES = 256 * 1024  # smaller observations are faster to pickle


class ObservationSlots:
    """The slots of all actors, on the learner's side."""

    def __init__(self, plan: RolloutSpec) -> None:
        self._plan = plan
        self.memories: dict[int, SharedMemory] = {}  # by worker

    def ticket(self, worker: int, streams: int) -> Ticket | None:
        """New slots for a new actor, since the learner may still read those of its predecessor; None if pickled."""
        size = tree_bytes(_slot(self._plan, streams))
        if self._plan.reduce is not None or size < SLOT_BYTES:
            return None
        if worker in self.memories:
            self.memories[worker].close()
        self.memories[worker] = SharedMemory(2 * self._plan.max_in_flight * size)
        return self.memories[worker].ticket()

    def unpack(self, worker: int, answer: tuple[Trajectory | Gradients, int | None]) -> Trajectory | Gradients:
        """The unroll of an actor's answer (unroll, slot), with the observations from its slot."""
        unroll, slot = answer
        if slot is None or not isinstance(unroll, Trajectory):
            return unroll
        rows, columns = unroll.rows + 1, len(unroll.stream)
        views = tree_at(self.memories[worker], slot, _slot(self._plan, columns))
        return replace(unroll, obs=tree_map(lambda array: array[:rows, :columns], views))

    def close(self) -> None:
        """Free the memory. Observations that were unpacked stay valid."""
        for memory in self.memories.values():
            memory.close()


def actor_buffers(plan: RolloutSpec, streams: int, ticket: Ticket | None) -> list[Tree]:
    """The observation arrays that an actor fills in turn: its slots, or one buffer of its own."""
    like = _slot(plan, streams)
    if ticket is None:
        return [like]
    memory = SharedMemory.attach(ticket)
    return [tree_at(memory, slot, like) for slot in range(2 * plan.max_in_flight)]


def _slot(plan: RolloutSpec, streams: int) -> Tree:
    return obs_arrays(plan.spec, plan.unroll + 1, padded(streams))
