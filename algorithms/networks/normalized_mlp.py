"""Several MLPs of one shape with dropout and normalised hidden layers, for the critics of DroQ and CrossQ.

Autograd computes the gradients; networks without dropout and normalisation use `batched_mlp.BatchedMLP`, which is
faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks.products import aligned
from rltrain.algorithms.settings import Activation

LAYER_EPS = 1e-5
MOMENTUM, BATCH_EPS = 0.99, 1e-3  # CrossQ's decay of running statistics, and the number added to a variance
RENORM_AFTER = 100_000  # batches after which CrossQ renormalises; before, this is plain batch normalisation
R_MAX, D_MAX = 3.0, 5.0  # bounds of the corrections, Ioffe 2017

Norm = Literal["none", "layer", "batch"]


class NormalizedMLP(nn.Module):
    """n independent MLPs with dropout and normalisation in each hidden layer, and a linear output layer.

        layer: linear, dropout, layer normalisation, activation (DroQ, Hiraoka et al. 2022, figure 2)
        batch: linear, dropout, activation, batch renormalisation; also of the input (CrossQ, Bhatt et al. 2024)

    The first weights are those of `BatchedMLP`; a normalisation begins with gain 1 and shift 0.

    Args:
        inputs, widths, outputs, nets, activation, generator: as for `BatchedMLP`.
        norm:    of the hidden layers.
        dropout: probability that a hidden unit is 0; the others are divided by 1 - dropout.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        outputs: int,
        nets: int = 1,
        activation: Activation = "relu",
        generator: torch.Generator | None = None,
        norm: Norm = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.nets, self.norm, self.dropout = nets, norm, dropout
        self.activate = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        self.weights, self.biases, self.norms = nn.ParameterList(), nn.ParameterList(), nn.ModuleList()
        if norm == "batch":
            self.norms.append(BatchRenorm(nets, inputs))
        for width in (*widths, outputs):
            bound = 1 / math.sqrt(inputs)
            weight, bias = torch.empty(nets, width, inputs), torch.empty(nets, 1, width)
            for net in range(nets):
                nn.init.uniform_(weight[net], -bound, bound, generator=generator)
                nn.init.uniform_(bias[net], -bound, bound, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
            inputs = width
        for width in widths if norm != "none" else ():
            self.norms.append(BatchRenorm(nets, width) if norm == "batch" else LayerNorm(nets, width))

    def forward(
        self,
        *inputs: Tensor,
        frozen: bool = False,
        first: bool = False,
        nets: Tensor | None = None,
        rng: Rng | None = None,
        batch_statistics: bool = False,
    ) -> Tensor:
        """[B, F] each, concatenated, to [n, B, outputs].

        Args:
            frozen:           gradients go to the inputs only, none to the parameters.
            first:            only the first net, [1, B, outputs].
            nets:             [m] indices of the nets to compute; None: all.
            rng:              draws the units that dropout sets to 0; None: dropout is off.
            batch_statistics: normalise with the moments of this batch, and update the running ones; else use those.
        """
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)
        index = slice(0, 1) if first else nets

        def chosen(parameter: Tensor) -> Tensor:
            parameter = parameter.detach() if frozen else parameter
            return parameter if index is None else parameter[index]

        x = x.expand(len(chosen(self.biases[0])), *x.shape)

        norms = list(self.norms)
        if self.norm == "batch":
            x = norms.pop(0)(x, chosen, batch_statistics)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(chosen(bias), x, chosen(weight).mT)
            if i == last:
                break
            if self.dropout and rng is not None:
                keep = rng.uniform(*x.shape, batch_dim=1).to(x.device) >= self.dropout
                x = x * keep * (1 / (1 - self.dropout))
            if self.norm == "layer":
                x = norms[i](x, chosen)
            x = self.activate(x)
            if self.norm == "batch":
                x = norms[i](x, chosen, batch_statistics)
        return x

    def rows(self, x: Tensor) -> Tensor:
        """[..., F] to [..., outputs] of a single net, for actors: the bits of a row do not depend on other rows."""
        assert self.norm == "batch", "actors use networks without normalisation, or with running statistics"
        norms: list[Any] = list(self.norms)
        x = norms[0].row(x)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(aligned(x, weight[0]), weight[0], bias[0, 0])
            if i + 1 < len(self.weights):
                x = norms[i + 1].row(self.activate(x))
        return x


class LayerNorm(nn.Module):
    """Layer normalisation, Ba et al. 2016, of n nets, each with a gain and a shift per unit."""

    def __init__(self, nets: int, width: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(nets, 1, width)), nn.Parameter(torch.zeros(nets, 1, width))

    def forward(self, x: Tensor, chosen: Callable[[Tensor], Tensor]) -> Tensor:
        """[n, B, width] to the same."""
        return torch.addcmul(chosen(self.shift), F.layer_norm(x, x.shape[-1:], eps=LAYER_EPS), chosen(self.gain))


class BatchRenorm(nn.Module):
    """Batch renormalisation, Ioffe 2017 (arXiv:1702.03275), of n nets, with CrossQ's constants.

        y = gain ((x - mean of the batch) / deviation of the batch * r + d) + shift
        r = deviation of the batch / running deviation,  d = (mean of the batch - running mean) / running deviation

    r and d are bounded and carry no gradient. In the first RENORM_AFTER batches they are 1 and 0: batch normalisation.
    """

    mean: Tensor  # [n, 1, width]
    variance: Tensor  # [n, 1, width]
    batches: Tensor  # []  int64

    def __init__(self, nets: int, width: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(nets, 1, width)), nn.Parameter(torch.zeros(nets, 1, width))
        self.register_buffer("mean", torch.zeros(nets, 1, width))
        self.register_buffer("variance", torch.ones(nets, 1, width))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, chosen: Callable[[Tensor], Tensor], batch_statistics: bool) -> Tensor:
        """[n, B, width] to the same."""
        if not batch_statistics:
            scale = (self.variance + BATCH_EPS).rsqrt()
            return torch.addcmul(chosen(self.shift), (x - self.mean) * scale, chosen(self.gain))
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        deviation = (variance + BATCH_EPS).sqrt()
        y = (x - mean) / deviation
        with torch.no_grad():
            if self.batches >= RENORM_AFTER:
                running = (self.variance + BATCH_EPS).sqrt()
                r = (deviation / running).clamp(1 / R_MAX, R_MAX)
                d = ((mean - self.mean) / running).clamp(-D_MAX, D_MAX)
            else:
                r, d = torch.ones_like(mean), torch.zeros_like(mean)
            self.mean.lerp_(mean, 1 - MOMENTUM)
            self.variance.lerp_(variance, 1 - MOMENTUM)
            self.batches += 1
        return torch.addcmul(chosen(self.shift), y * r + d, chosen(self.gain))

    def row(self, x: Tensor) -> Tensor:
        """[..., width] to the same, by the running statistics of a single net."""
        scale = self.gain[0, 0] * (self.variance[0, 0] + BATCH_EPS).rsqrt()
        return (x - self.mean[0, 0]) * scale + self.shift[0, 0]
