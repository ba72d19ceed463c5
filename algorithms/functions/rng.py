"""A random generator that can be written into a checkpoint, and that learners can share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shard(NamedTuple):
    """The part of a batch that one of several learners holds: columns of a Trajectory, or samples of a replay."""

    total: int  # columns of the whole batch
    begin: int
    end: int  # columns [begin, end) are here
    items: Tensor | None = None  # [R, total] bool, of a Trajectory: the rows, or sequences, that are learnt from


class Rng:
    """Torch's generator on the CPU, so that every device draws the same numbers, with a state_dict.

    Learners that share an update have generators in the same state. Each draws the numbers of the whole batch and keeps
    those of its own shard, so together they draw what one learner would.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shard: Shard | None = None  # of the update under way; None: the whole batch is here

    def normal(self, *shape: int, batch_dim: int = 0) -> Tensor:
        """Standard normal numbers of this shape, on the CPU. `batch_dim` is the dimension of the samples or rows."""
        return self._draw(torch.randn, shape, batch_dim)

    def uniform(self, *shape: int, batch_dim: int = 0) -> Tensor:
        """Uniform numbers in [0, 1) of this shape, as `normal`."""
        return self._draw(torch.rand, shape, batch_dim)

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel numbers [T, B, ...], on the CPU: for all rows of the columns B of a Trajectory."""
        shard, whole = self.shard, list(shape)
        if shard is not None:
            whole[1] = shard.total
        drawn = torch.empty(whole).exponential_(generator=self.generator)
        drawn.clamp_(min=torch.finfo(drawn.dtype).tiny).log_().neg_()
        return drawn if shard is None else drawn.narrow(1, min(shard.begin, shard.total - shape[1]), shape[1])

    def subset(self, count: int, size: int) -> Tensor:
        """[size] int64 on the CPU: different numbers below `count`, the same for all learners."""
        return torch.randperm(count, generator=self.generator)[:size]

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...], batch_dim: int) -> Tensor:
        if self.shard is None:
            return draw(shape, generator=self.generator)
        rows, whole = shape[batch_dim], list(shape)
        total, begin, end, items = self.shard
        if items is None:
            whole[batch_dim] = total
            numbers = draw(whole, generator=self.generator)
            return numbers.narrow(batch_dim, min(begin, total - rows), rows)
        column = torch.arange(total).expand(items.shape)[items]  # of each row of the whole batch
        whole[batch_dim] = len(column)
        numbers = draw(whole, generator=self.generator)
        here = ((column >= begin) & (column < end)).nonzero().squeeze(-1)
        return numbers.index_select(batch_dim, here if len(here) else torch.arange(rows))

    def shuffle(self, count: int, pieces: int) -> tuple[Tensor, list[int]]:
        """A random order of `count` items, in pieces whose sizes differ by one at most.

        Returns:
            order: [count] int64 on the CPU, the items of the first piece first.
            sizes: items of each piece. No piece of the whole batch is empty, but a learner may have no item of it.
        """
        shard = self.shard
        order = torch.randperm(count if shard is None else _items(shard), generator=self.generator)
        number = len(order)
        pieces = max(1, min(pieces, number))
        bounds = [number * piece // pieces for piece in range(pieces + 1)]
        if shard is not None:
            assert shard.items is not None
            column = torch.arange(shard.total).expand(shard.items.shape)[shard.items]  # [number]
            here = (column >= shard.begin) & (column < shard.end)
            before = [0, *here[order].cumsum(0).tolist()]
            bounds = [before[bound] for bound in bounds]
            order = (here.cumsum(0) - 1)[order][here[order]]
        return order, [end - begin for begin, end in pairwise(bounds)] if number else []

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["state"])


def _items(shard: Shard) -> int:
    if shard.items is None:
        raise ValueError("a sample of a replay has no minibatches")
    return int(shard.items.sum())
