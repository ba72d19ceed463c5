"""Between delivery and update: which batches a delivery of unrolls buys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rollout.tree import tree_map
from rollout.types import Trajectory


class StreamFeed:
    """On-policy: the unrolls of a delivery, joined along B in the order of their streams, once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, unrolls: list[Trajectory]) -> Iterator[Trajectory]:
        yield self.join(unrolls)

    def join(self, unrolls: list[Trajectory]) -> Trajectory:
        """One trajectory of tensors on the device; always a copy, so that actors may reuse their arrays."""

        def along(axis: int) -> Any:
            def joined(*arrays: np.ndarray) -> torch.Tensor:
                return torch.from_numpy(np.concatenate(arrays, axis)).to(self._device)

            return joined

        beside, stacked = along(1), along(0)
        head = unrolls[0]

        def field(name: str) -> list[Any]:
            return [getattr(unroll, name) for unroll in unrolls]

        return Trajectory(
            obs=tree_map(beside, *field("obs")),
            action=beside(*field("action")),
            reward=beside(*field("reward")),
            terminated=beside(*field("terminated")),
            truncated=beside(*field("truncated")),
            first=beside(*field("first")),
            version=stacked(*field("version")),
            stream=stacked(*field("stream")),
            row=stacked(*field("row")),
            extras={name: beside(*(unroll.extras[name] for unroll in unrolls)) for name in head.extras},
            action_mask=None if head.action_mask is None else beside(*field("action_mask")),
            core=None if head.core is None else beside(*field("core")),
            episodes=tuple(episode for unroll in unrolls for episode in unroll.episodes),
        )
