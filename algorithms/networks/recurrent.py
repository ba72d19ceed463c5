"""Recurrent cores: a GRU or an LSTM over sequences with episode starts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rltrain.algorithms.networks.mlp import init_orthogonal
from rltrain.algorithms.networks.products import aligned, needs_alignment


class RecurrentCore(nn.Module):
    """A GRU (Cho et al. 2014) or an LSTM (Hochreiter and Schmidhuber 1997), reset at the start of each episode.

    The core is its state: the output [N, H] of a GRU, output and cell [N, 2H] of an LSTM. A row has the same bits in
    every batch whose size is a multiple of 16 (tested).
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        generator: torch.Generator | None = None,
        kind: Literal["gru", "lstm"] = "gru",
    ) -> None:
        super().__init__()
        self.features = hidden
        self.kind = kind
        self.core_size = core_size(kind, hidden)
        gates = {"gru": 3, "lstm": 4}[kind]
        self.weight_x = nn.Parameter(torch.empty(gates * hidden, inputs))
        self.weight_h = nn.Parameter(torch.empty(gates * hidden, hidden))
        self.bias_x = nn.Parameter(torch.zeros(gates * hidden))
        self.bias_h = nn.Parameter(torch.zeros(gates * hidden))
        for gate in (*torch.split(self.weight_x.data, hidden), *torch.split(self.weight_h.data, hidden)):
            init_orthogonal(gate, 1.0, generator)

    def step(self, x: Tensor, core: Tensor) -> Tensor:
        """x [N, F] and core [N, C] to the next core [N, C]; see `output`."""
        weights = self.weight_x, self.weight_h, self.bias_x, self.bias_h
        x = aligned(x, self.weight_x)
        if self.kind == "gru":
            return torch.gru_cell(x, aligned(core, self.weight_h), *weights)
        hidden, cell = core.chunk(2, -1)
        if needs_alignment(self.weight_h):
            hidden = aligned(hidden.contiguous(), self.weight_h)
        return torch.cat(torch.lstm_cell(x, (hidden, cell), *weights), -1)

    def output(self, core: Tensor) -> Tensor:
        """The output [..., H], which the next layer gets, of a core [..., C]."""
        return core[..., : self.features]

    def unroll(self, x: Tensor, core: Tensor, first: Tensor, sequence: int | None = None) -> Tensor:
        """L steps, with gradients through time.

        Args:
            x:        [L, N, F]
            core:     [N, C]  before the first row.
            first:    [L, N]  bool, rows that begin an episode: the core before them is 0.
            sequence: number of rows after which the gradient is cut; None: never.

        Returns:
            [L, N, H] the output after each row.
        """
        return self.output(self.cores(x, core, first, sequence))

    def cores(self, x: Tensor, core: Tensor, first: Tensor, sequence: int | None = None) -> Tensor:
        """[L, N, C] the core after each row; arguments as in `unroll`."""
        keep = (~first).to(x.dtype).unsqueeze(-1)  # [L, N, 1]
        cores = []
        for t, (row, kept) in enumerate(zip(x.unbind(0), keep.unbind(0), strict=True)):
            if sequence and t and t % sequence == 0:
                core = core.detach()
            core = self.step(row, core * kept)
            cores.append(core)
        return torch.stack(cores)


def core_size(kind: str, hidden: int) -> int:
    """Elements of the core of a memory with `hidden` units."""
    return {"none": 0, "gru": 1, "lstm": 2}[kind] * hidden
