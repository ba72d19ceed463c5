"""What networks are made of: weights and biases in plain pairs, orthogonal at first."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HIDDEN_GAIN = math.sqrt(2)


def init_orthogonal(weight: Tensor, gain: float, generator: torch.Generator | None = None) -> None:
    """Fill a weight [outputs, ...] with rows orthogonal to each other, each of length `gain` (if there is room)."""
    nn.init.orthogonal_(weight, gain, generator=generator)


class Layers(nn.Module):
    """Weights and biases of one layer after the other, at hand as plain pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, shape: tuple[int, ...], gain: float, generator: torch.Generator | None) -> None:
        weight, bias = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.zeros(shape[0]))
        init_orthogonal(weight, gain, generator)
        self.register_parameter(f"weight{len(self.pairs)}", weight)
        self.register_parameter(f"bias{len(self.pairs)}", bias)
        self.pairs.append((weight, bias))
