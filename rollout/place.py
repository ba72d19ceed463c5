"""A node of a cluster as it is seen from the learner, and what goes there and comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rollout.remote import RemoteHandle
from rollout.tree import leaves
from rollout.types import Trajectory


@dataclass
class Place:
    """One node."""

    address: str
    slots: int
    node: Any = None  # the Dask actor
    facts: dict[str, Any] = field(default_factory=dict)
    handles: dict[int, RemoteHandle] = field(default_factory=dict)  # by worker
    sent: int = 0  # the newest publication that went there
    sending: bool = False
    beating: bool = False
    seen: float = 0.0  # when it last answered


@dataclass
class Traffic:
    """Bytes and seconds since they were last told."""

    bytes: int = 0
    seconds: float = 0.0
    times: int = 0

    def add(self, size: int, seconds: float) -> None:
        self.bytes, self.seconds, self.times = self.bytes + size, self.seconds + seconds, self.times + 1


def size_of(unroll: Trajectory) -> int:
    """Bytes of an unroll."""
    arrays = [unroll.action, unroll.reward, *leaves(unroll.obs), *unroll.extras.values(), *unroll.beside().values()]
    return int(sum(array.nbytes for array in arrays))
