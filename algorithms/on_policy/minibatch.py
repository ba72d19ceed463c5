"""From unrolls to shuffled minibatches: of single steps, or of sequences for policies with memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rltrain.algorithms.functions.rng import Rng
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Trajectory


@dataclass(frozen=True, slots=True)
class Batch:
    """Steps [N] in any order, without reset rows; or sequences [L, N], whose reset rows `valid` marks.

    N below stands for either; `first` and `core` belong to sequences only.
    """

    obs: Tree  # [N, *O]
    action: Tensor  # [N, *A]
    log_prob: Tensor  # [N]  under the policy that acted
    value: Tensor  # [N]  V(o) when the target was computed
    advantage: Tensor  # [N]
    target: Tensor  # [N]
    action_mask: Tensor | None = None  # [N, n]
    valid: Tensor | None = None  # [N]  bool, rows that count in a mean; None: all
    first: Tensor | None = None  # [L, N]  bool, the core is reset before this row
    core: Tensor | None = None  # [N, H]  before the first row

    @classmethod
    def of(cls, unrolls: Trajectory, value: Tensor, advantage: Tensor, target: Tensor) -> Batch:
        """Sequences if the unrolls have a core, else steps; value, advantage and target are [T, B]."""
        return (cls.steps if unrolls.core is None else cls.sequences)(unrolls, value, advantage, target)

    @classmethod
    def steps(cls, unrolls: Trajectory, value: Tensor, advantage: Tensor, target: Tensor) -> Batch:
        """The valid rows of the unrolls."""
        keep = unrolls.valid.reshape(-1).nonzero().squeeze(-1)  # [N]

        def flat(x: Tensor) -> Tensor:  # [T, B, ...] to [N, ...]
            x = x.reshape(-1, *x.shape[2:])
            return x if len(keep) == len(x) else x.index_select(0, keep)

        return _batch(unrolls, flat, value=value, advantage=advantage, target=target)

    @classmethod
    def sequences(cls, unrolls: Trajectory, value: Tensor, advantage: Tensor, target: Tensor) -> Batch:
        """All rows of the unrolls, cut where a core was recorded.

        Raises:
            ValueError: if there is no core, or T is not a multiple of the number of cores.
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

        batch = _batch(unrolls, cut, value=value, advantage=advantage, target=target)
        return replace(batch, first=cut(unrolls.first[:-1]), valid=cut(unrolls.valid), core=unrolls.core.flatten(0, 1))

    def __len__(self) -> int:
        return self.advantage.shape[-1]

    @property
    def counted(self) -> int | Tensor:
        """How many rows a mean is taken over, or bool, which of them."""
        return len(self) if self.valid is None else self.valid

    def shuffled(self, minibatches: int, rng: Rng) -> Iterator[Batch]:
        """All steps, or sequences, once, in a new order, in `minibatches` pieces whose sizes differ by one at most.

        Where several learners share the batch, a piece may have nothing here: then it is a row that does not count.
        """
        order, sizes = rng.shuffle(len(self), minibatches)
        order = order.to(self.advantage.device)
        mixed = self._select(order) if self.core is None else None  # one gather per array; the pieces are views
        begin = 0
        for size in sizes:
            if not size:
                blank = self._select(order.new_zeros(1))
                yield replace(blank, valid=torch.zeros_like(blank.advantage, dtype=torch.bool))
            elif mixed is not None:
                yield mixed._slice(begin, size)
            else:
                yield self._select(order[begin : begin + size])
            begin += size

    def _select(self, index: Tensor) -> Batch:
        return self._map(lambda x, dim: _gather(x, dim, index))

    def _slice(self, begin: int, size: int) -> Batch:
        return self._map(lambda x, dim: x.narrow(dim, begin, size))

    def _map(self, function: Callable[[Tensor, int], Tensor]) -> Batch:
        """Apply `function(array, the dimension N)` to every array."""
        arrays = {name: value for name in FIELDS if (value := getattr(self, name)) is not None}
        dims = dict.fromkeys(arrays, 0 if self.core is None else 1) | {"core": 0}

        def mapped(name: str, tree: Tree) -> Tree:
            return tree_map(lambda x: function(x, dims[name]), tree)

        return Batch(**{name: mapped(name, tree) for name, tree in arrays.items()})


FIELDS = tuple(field.name for field in fields(Batch))


class Mean:
    """Means of metrics over minibatches. Nothing is read from a device before `result`."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the metrics of one minibatch, [] each, without their graphs."""
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(value.detach())

    def result(self) -> dict[str, Tensor | float]:
        """The mean [] of each metric."""
        return {name: torch.stack(values).mean() for name, values in self._values.items()}


def _batch(unrolls: Trajectory, rows: Callable[[Tensor], Tensor], **values: Tensor) -> Batch:
    """The fields that steps and sequences have in common; `rows` takes [T, B, ...]."""
    mask = unrolls.action_mask
    return Batch(
        obs=tree_map(lambda x: rows(x[:-1]), unrolls.obs),
        action=rows(unrolls.action),
        log_prob=rows(unrolls.extras["log_prob"]),
        action_mask=None if mask is None else rows(mask[:-1]),
        **{name: rows(x) for name, x in values.items()},
    )


def _gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """`x.index_select(dim, index)`; images [N, C, H, W] whose channels lie innermost in memory keep that layout."""
    if dim == 0 and x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(dim, index)
