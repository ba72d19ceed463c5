"""Averages gradients, metrics and moments over the learners that share an update. With one learner it does nothing.

All learners hold the same weights, and each holds a part of the batch. A learner's loss is the mean over its own rows,
so the gradient of the whole batch is the mean of the learners' gradients, weighted by their numbers of rows.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Mean and variance of a set of numbers."""

    mean: Tensor  # []
    variance: Tensor  # []  the sum of squares divided by n - 1; 0 if n < 2


class GradientSync(Protocol):
    """What an algorithm gives to `step` and `normalised`, as its attribute `sync`."""

    def average(self, grad: Tensor, rows: int | Tensor, metrics: dict[str, Tensor]) -> None:
        """Replace the gradient [P] and the metrics [] by their means over all learners, weighted by their rows.

        Args:
            rows: how many rows the loss and the metrics are means of; or bool, True for each of these rows.
        """

    def moments(self, x: Tensor, valid: Tensor | None = None) -> Moments:
        """Moments of the valid entries of x [...] of all learners; None: all entries are valid."""

    def assign(self, x: Tensor, index: Tensor, rows: Tensor) -> None:
        """x[index] = rows, of all learners: x [S, ...] is equal in all of them, index [B] int64 is each one's."""


class SingleLearner:
    """The only learner: its gradient, its metrics and its moments are those of the whole batch."""

    def average(self, grad: Tensor, rows: int | Tensor, metrics: dict[str, Tensor]) -> None:
        pass

    def moments(self, x: Tensor, valid: Tensor | None = None) -> Moments:
        if valid is None:
            if x.numel() < 2:
                return Moments(x.mean(), x.new_zeros(()))
            variance, mean = torch.var_mean(x)
            return Moments(mean, variance)
        count = valid.sum()
        mean = x.masked_fill(~valid, 0.0).sum() / count.clamp(min=1)
        squares = (x - mean).masked_fill(~valid, 0.0).square()
        return Moments(mean, squares.sum() / (count - 1).clamp(min=1))

    def assign(self, x: Tensor, index: Tensor, rows: Tensor) -> None:
        x[index] = rows


SINGLE = SingleLearner()
