"""From a Trajectory to shuffled minibatches: rows that forget their order, or sequences that keep it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rltrain.rollout.trajectories import map_arrays
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Trajectory


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """Steps without an order, reset rows left out."""

    obs: Tree  # [N, *O]
    action: Tensor  # [N, *A]
    log_prob: Tensor  # [N]  under the policy that acted
    value: Tensor  # [N]  V(o) when the target was made
    advantage: Tensor  # [N]
    target: Tensor  # [N]
    action_mask: Tensor | None  # [N, n]
    valid: Tensor | None = None  # [N]  bool, rows that count in a mean; None: all

    @classmethod
    def of(cls, unrolls: Trajectory, value: Tensor, advantage: Tensor, target: Tensor) -> FlatBatch:
        """The valid rows of `unrolls`; value, advantage and target are [T, B]."""
        keep = unrolls.valid.reshape(-1).nonzero().squeeze(-1)  # [N]

        def flat(x: Tensor) -> Tensor:  # [T, B, ...] to [N, ...]
            x = x.reshape(-1, *x.shape[2:])
            return x if len(keep) == len(x) else x.index_select(0, keep)

        mask = unrolls.action_mask
        return cls(
            obs=tree_map(lambda x: flat(x[:-1]), unrolls.obs),
            action=flat(unrolls.action),
            log_prob=flat(unrolls.extras["log_prob"]),
            value=flat(value),
            advantage=flat(advantage),
            target=flat(target),
            action_mask=None if mask is None else flat(mask[:-1]),
        )

    def __len__(self) -> int:
        return len(self.advantage)

    @property
    def count(self) -> int | Tensor:
        """Rows that a mean is taken over, or which of them."""
        return len(self) if self.valid is None else self.valid

    def shuffled(
        self, minibatches: int, generator: torch.Generator, places: Tensor | None = None
    ) -> Iterator[FlatBatch]:
        """All rows once, in a new order, in `minibatches` pieces whose sizes differ by one at most.

        Args:
            generator: on the CPU, so that every device shuffles alike.
            places:    where the rows lie with several learners, see `Group.places`: of each piece of all rows there
                       come those that are here; where there is none, one that does not count.
        """
        order, pieces = _shuffle(len(self), minibatches, generator, places)
        order = order.to(self.advantage.device)
        mixed = map_arrays(lambda x: _gathered(x, order), self)  # one gather per array; the pieces are views
        for begin, end in pieces:
            here = slice(begin, end)
            yield map_arrays(lambda x, here=here: x[here], mixed) if begin < end else self._blank()  # type: ignore[misc]

    def _blank(self) -> FlatBatch:
        """A row that does not count, with which every action is legal."""
        blank = map_arrays(lambda x: x.new_zeros(1, *x.shape[1:]), self)
        mask = blank.action_mask
        return replace(
            blank,
            action_mask=None if mask is None else torch.ones_like(mask),
            valid=torch.zeros_like(blank.advantage, dtype=torch.bool),
        )


@dataclass(frozen=True, slots=True)
class Sequences:
    """Unrolls cut into sequences of L rows, for policies with memory. Reset rows stay in, marked by `valid`."""

    obs: Tree  # [L, N, *O]
    action: Tensor  # [L, N, *A]
    log_prob: Tensor  # [L, N]
    value: Tensor  # [L, N]
    advantage: Tensor  # [L, N]
    target: Tensor  # [L, N]
    action_mask: Tensor | None  # [L, N, n]
    first: Tensor  # [L, N]  bool, forget the core before this row
    valid: Tensor  # [L, N]  bool, rows that count in a mean
    core: Tensor  # [N, H]  before the first row

    @classmethod
    def of(cls, unrolls: Trajectory, value: Tensor, advantage: Tensor, target: Tensor) -> Sequences:
        """All of `unrolls`, whose core says where to cut; value, advantage and target are [T, B].

        Raises:
            ValueError: if there is no core, or T is not a multiple of the number of its rows.
        """
        if unrolls.core is None:
            raise ValueError("sequences need a policy with memory: the unrolls have no core")
        rows, pieces = len(advantage), len(unrolls.core)
        if rows % pieces:
            raise ValueError(f"{rows} rows cannot be cut into {pieces} sequences of equal length")
        length = rows // pieces

        def cut(x: Tensor) -> Tensor:  # [T, B, ...] to [L, T/L * B, ...]
            x = x.reshape(pieces, length, *x.shape[1:]).transpose(0, 1)  # [L, T/L, B, ...]
            return x.reshape(length, -1, *x.shape[3:])

        mask = unrolls.action_mask
        return cls(
            obs=tree_map(lambda x: cut(x[:-1]), unrolls.obs),
            action=cut(unrolls.action),
            log_prob=cut(unrolls.extras["log_prob"]),
            value=cut(value),
            advantage=cut(advantage),
            target=cut(target),
            action_mask=None if mask is None else cut(mask[:-1]),
            first=cut(unrolls.first[:-1]),
            valid=cut(unrolls.valid),
            core=unrolls.core.flatten(0, 1),
        )

    def __len__(self) -> int:
        return len(self.core)

    @property
    def count(self) -> int | Tensor:
        """Rows that a mean is taken over, or which of them."""
        return self.valid

    def shuffled(
        self, minibatches: int, generator: torch.Generator, places: Tensor | None = None
    ) -> Iterator[Sequences]:
        """All sequences once, in a new order, in `minibatches` pieces whose sizes differ by one at most.

        Arguments are those of `FlatBatch.shuffled`.
        """
        order, pieces = _shuffle(len(self), minibatches, generator, places)
        order = order.to(self.core.device)
        for begin, end in pieces:
            piece = order[begin:end] if begin < end else torch.zeros(1, dtype=order.dtype, device=order.device)
            arrays = {
                field.name: _pick(getattr(self, field.name), 0 if field.name == "core" else 1, piece)
                for field in fields(self)
            }
            here = Sequences(**arrays)
            yield here if begin < end else replace(here, valid=torch.zeros_like(here.valid))


class Mean:
    """Means of metrics over minibatches. Nothing is read from a device before `result`."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Take in one minibatch's metrics, [] each; their graphs are let go."""
        for name, value in metrics.items():
            self.seen.setdefault(name, []).append(value.detach())

    def result(self) -> dict[str, Tensor]:
        """[] each, the mean of what was added under its name."""
        return {name: torch.stack(values).mean() for name, values in self.seen.items()}


def _shuffle(
    here: int, minibatches: int, generator: torch.Generator, places: Tensor | None
) -> tuple[Tensor, list[tuple[int, int]]]:
    """A new order of the rows that are here, and [begin, end) of each minibatch in it."""
    order = torch.randperm(here if places is None else len(places), generator=generator)
    pieces = _pieces(len(order), minibatches)
    if places is None:
        return order, pieces
    order = places[order]
    is_here = order >= 0
    before = [0, *is_here.cumsum(0).tolist()]  # rows that are here, among the first ones
    return order[is_here], [(before[begin], before[end]) for begin, end in pieces]


def _pieces(n: int, pieces: int) -> list[tuple[int, int]]:
    """[begin, end) of n rows cut into pieces, without the empty ones."""
    pieces = max(1, min(pieces, n))
    bounds = [n * i // pieces for i in range(pieces + 1)]
    return [(begin, end) for begin, end in pairwise(bounds) if end > begin]


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Some rows of x [N, ...]; images [N, C, H, W] whose channels lie innermost stay so."""
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)


def _pick(tree: Tree | None, dim: int, index: Tensor) -> Any:
    return None if tree is None else tree_map(lambda x: x.index_select(dim, index), tree)
