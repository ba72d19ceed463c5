"""The memory between actors and a server that decides for them: each actor has a desk, where both put what they say.

An actor writes what it sees and counts `asked` up; the server writes what to do and sets `answered` to that number. So
it can be told at any time who waits, whichever of the two was replaced meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.buffers import obs_arrays, padded
from rltrain.rollout.shared_memory.memory import SharedMemory, layout
from rltrain.rollout.specs import Inference, Kind
from rltrain.rollout.tree import leaves, tree_map, unflatten

TEXT = 8192  # bytes of a traceback, at most; the end of it is kept


class RequestBuffers:
    """All desks, of arrays that are `padded(B)` rows wide, and what is counted beside them.

    Args:
        streams: B of each actor.
        memory:  an attached memory in actors and the server; the learner's side makes it.
    """

    def __init__(
        self, spec: EnvSpec, inference: Inference, streams: Sequence[int], memory: SharedMemory | None = None
    ) -> None:
        counts = np.zeros((4, len(streams)), np.int64), np.zeros(2, np.int64)
        like = (*counts, *(_desk(spec, inference, padded(count)) for count in streams))
        kinds = [(leaf.shape, leaf.dtype) for leaf in leaves(like)]
        offsets, size = layout(kinds)
        self.streams = tuple(streams)
        self.memory = memory or SharedMemory(size)
        arrays = [self.memory.array(offset, *kind) for offset, kind in zip(offsets, kinds, strict=True)]
        numbers, self.totals, *self.desks = unflatten(like, arrays)  # totals: calls of the policy, and rows in them
        self.asked, self.answered, self.version, self._failed = numbers  # [actors] each

    def waiting(self) -> list[int]:
        """The actors that wait for an answer."""
        return np.flatnonzero(self.asked != self.answered).tolist()

    def answer(self, worker: int, asked: int, version: int, failed: str = "") -> None:
        """Say that its desk holds the answer to its question number `asked`, by these weights; or why there is none."""
        text = failed.encode()[-TEXT:]
        self.desks[worker]["text"][: len(text)] = np.frombuffer(text, np.uint8)
        self._failed[worker], self.version[worker] = len(text), version
        self.answered[worker] = asked

    def failed(self, worker: int) -> str:
        """Why its newest question got no answer; empty where it got one."""
        size = int(self._failed[worker])
        return self.desks[worker]["text"][:size].tobytes().decode(errors="replace") if size else ""


def _desk(spec: EnvSpec, inference: Inference, width: int) -> dict[str, Any]:
    """Arrays like those of a desk."""

    def rows(kind: Kind) -> np.ndarray:
        return np.zeros((width, *kind[0]), kind[1])

    desk: dict[str, Any] = {
        "obs": tree_map(lambda array: array[0], obs_arrays(spec, 1, width)),
        "noise": rows(((inference.noise.columns,), "float32")),
        "action": rows(inference.action),
        "extras": {name: rows(kind) for name, kind in inference.extras.items()},
        "text": np.zeros(TEXT, np.uint8),
    }
    if spec.action_mask:
        desk["mask"] = rows(((spec.action.mask_size,), "bool"))
    if inference.core_size:
        desk["core"] = desk["core_after"] = rows(((inference.core_size,), "float32"))
    return desk
