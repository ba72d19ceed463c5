"""Shared-memory buffers for requests and responses between the actors and the inference server.

An actor writes its request and increments `asked`; the server writes its response and sets `answered` to that number.
So the pending requests are known at any time, even after either process was replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.buffers import obs_arrays, padded
from rltrain.rollout.shared_memory.memory import SharedMemory, tree_at, tree_bytes
from rltrain.rollout.specs import ArraySpec, Inference
from rltrain.rollout.tree import tree_map

ERROR_BYTES = 8192  # of a traceback; of a longer one the end is kept


class RequestBuffers:
    """One buffer per actor, with arrays that are `padded(B)` rows wide, and the counters of all actors.

    Args:
        streams: B of each actor.
        memory:  the memory of the buffers, in actors and in the server; None creates it.
    """

    def __init__(
        self, spec: EnvSpec, inference: Inference, streams: Sequence[int], memory: SharedMemory | None = None
    ) -> None:
        counters = np.zeros((4, len(streams)), np.int64), np.zeros(2, np.int64)
        like = (*counters, *(_buffer(spec, inference, padded(count)) for count in streams))
        self.streams = tuple(streams)
        self.memory = memory or SharedMemory(tree_bytes(like))
        per_actor, self.totals, *self.buffers = tree_at(self.memory, 0, like)  # totals: calls of the policy, their rows
        self.asked, self.answered, self.version, self._error_size = per_actor  # [actors] each

    def pending(self) -> list[int]:
        """The actors that wait for a response."""
        return np.flatnonzero(self.asked != self.answered).tolist()

    def respond(self, worker: int, request: int, version: int, error: str = "") -> None:
        """Mark request number `request` as answered by weights of `version`, or as failed with the text `error`."""
        text = error.encode()[-ERROR_BYTES:]
        self.buffers[worker]["error"][: len(text)] = np.frombuffer(text, np.uint8)
        self._error_size[worker], self.version[worker] = len(text), version
        self.answered[worker] = request

    def error(self, worker: int) -> str:
        """Why the newest request failed; empty if it did not."""
        size = int(self._error_size[worker])
        return self.buffers[worker]["error"][:size].tobytes().decode(errors="replace") if size else ""


def _buffer(spec: EnvSpec, inference: Inference, width: int) -> dict[str, Any]:
    """Arrays with the shapes and dtypes of one actor's buffer."""

    def rows(row: ArraySpec) -> np.ndarray:
        return np.zeros((width, *row[0]), row[1])

    buffer: dict[str, Any] = {
        "obs": tree_map(lambda array: array[0], obs_arrays(spec, 1, width)),
        "noise": rows(((inference.noise.columns,), "float32")),
        "action": rows(inference.action),
        "extras": {name: rows(row) for name, row in inference.extras.items()},
        "error": np.zeros(ERROR_BYTES, np.uint8),
    }
    if spec.action_mask:
        buffer["mask"] = rows(((spec.action.mask_size,), "bool"))
    if inference.core_size:
        buffer["core"] = buffer["core_after"] = rows(((inference.core_size,), "float32"))
    return buffer
