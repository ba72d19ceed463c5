"""Learners that share each update: what an algorithm asks of the others. Alone, it has nothing to ask.

Every learner holds the same weights and gets a part of each batch: some of its columns, or rows of a sample. Losses
are means over a learner's own rows; `over` makes the mean gradient of all of them, so that K learners do what one
would do with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rltrain.rollout.types import Trajectory

Merge = Callable[[Tensor], None]


class Moments(NamedTuple):
    """Of numbers that lie with several learners."""

    rows: int
    mean: Tensor  # []
    variance: Tensor  # []  with rows - 1


class GradientSync(Protocol):
    """The learners of a run, seen from one of them."""

    size: int

    def whole(self, valid: Tensor) -> Tensor:
        """[T, B'] of the batch that all have together, where [T, B] is this one's `Trajectory.valid`."""

    def places(self, unrolls: Trajectory) -> Tensor | None:
        """[N'] of all valid rows of the whole batch, or of all sequences where there is memory, in their order: where
        each lies among those of this learner, -1 where another has it. None: all are here, as they lie."""

    def part(self, draw: Callable[[int], Tensor], rows: int, dim: int = 0) -> Tensor:
        """Of what `draw(B')` gives for the samples of the whole batch, those along `dim` that this learner has.

        Args:
            rows: B, how many it has.
        """

    def over(self, rows: int | Tensor, told: dict[str, Tensor]) -> Merge | None:
        """What makes of this learner's gradient, in place, that of all: their mean, weighted with `rows`.

        Args:
            rows: that were averaged here, or bool, which of them.
            told: more means over the same rows, [] each, replaced by those of all learners. None: there is only one.
        """

    def moments(self, x: Tensor) -> Moments:
        """Of the numbers x [n] here and those of the others."""


class SingleLearner:
    """One learner that has everything: all of this costs it nothing."""

    size = 1

    def whole(self, valid: Tensor) -> Tensor:
        return valid

    def places(self, unrolls: Trajectory) -> None:
        return None

    def part(self, draw: Callable[[int], Tensor], rows: int, dim: int = 0) -> Tensor:
        return draw(rows)

    def over(self, rows: int | Tensor, told: dict[str, Tensor]) -> None:
        return None

    def moments(self, x: Tensor) -> Moments:
        variance, mean = torch.var_mean(x)
        return Moments(x.numel(), mean, variance)


SINGLE = SingleLearner()
