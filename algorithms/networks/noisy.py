"""Noisy linear layers: exploration by noise on the weights, whose scale is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.networks.products import aligned
from rltrain.algorithms.settings import Activation

SIGMA = 0.5  # sigma_0 of the paper


class NoisyMLP(nn.Module):
    """Linear layers with factorised Gaussian noise, Fortunato et al. 2018 (arXiv:1706.10295), equations 9 to 11.

        y = (mu_w + sigma_w * f(e_out) f(e_in)^T) x + mu_b + sigma_b * f(e_out),   f(e) = sign(e) sqrt|e|

    The learner draws one noise for all rows of a batch, which is a buffer. An actor gives each row its own noise:

        y = mu_w x + mu_b + f(e_out) * (sigma_w (f(e_in) * x) + sigma_b)

    Args: as for `MLP`; the initial weights are those of section 3.2 of the paper.
    """

    noise: Tensor  # [sum of inputs and outputs] f(e), layer by layer: inputs, outputs

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        outputs: int | None = None,
        activation: Activation = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        self.hidden = len(widths)
        self.features = inputs
        self.layers: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # mu and sigma of weight, mu and sigma of bias
        self.sizes: list[int] = []
        for width in (*widths, *([] if outputs is None else [outputs])):
            self._add(width, generator)
        self.register_buffer("noise", torch.zeros(sum(self.sizes)))

    def _add(self, width: int, generator: torch.Generator | None) -> None:
        bound, i = 1 / math.sqrt(self.features), len(self.layers)
        weight = nn.Parameter(torch.empty(width, self.features).uniform_(-bound, bound, generator=generator))
        bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound, generator=generator))
        weight_sigma = nn.Parameter(torch.full((width, self.features), SIGMA * bound))
        bias_sigma = nn.Parameter(torch.full((width,), SIGMA * bound))
        layer = (weight, weight_sigma, bias, bias_sigma)
        for name, parameter in zip(("weight", "weight_sigma", "bias", "bias_sigma"), layer, strict=True):
            self.register_parameter(f"{name}{i}", parameter)
        self.layers.append(layer)
        self.sizes += [self.features, width]
        self.features = width

    def draw(self, generator: torch.Generator) -> None:
        """Draw new noise from a generator on the CPU, so that it is the same on every device."""
        self.noise.copy_(squashed(torch.randn(self.noise.shape, generator=generator)))

    def forward(self, x: Tensor, noisy: bool | Tensor = True) -> Tensor:
        """[..., inputs] to [..., features].

        Args:
            noisy: the noise of each row, [..., elements of the buffer `noise`]; True: the buffer; False: no noise.
        """
        if isinstance(noisy, Tensor):
            return self._row_wise(x, torch.split(noisy, self.sizes, -1))
        noise = torch.split(self.noise, self.sizes)
        for i, (weight, weight_sigma, bias, bias_sigma) in enumerate(self.layers):
            if noisy:
                e_in, e_out = noise[2 * i], noise[2 * i + 1]
                weight = torch.addcmul(weight, weight_sigma, torch.outer(e_out, e_in))
                bias = torch.addcmul(bias, bias_sigma, e_out)
            x = F.linear(aligned(x, weight), weight, bias)
            if i < self.hidden:
                x = self.activation(x)
        return x

    def _row_wise(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        for i, (weight, weight_sigma, bias, bias_sigma) in enumerate(self.layers):
            e_in, e_out = noise[2 * i], noise[2 * i + 1]
            x, noisy = aligned(x, weight), aligned(e_in * x, weight)
            x = torch.addcmul(F.linear(x, weight, bias), e_out, F.linear(noisy, weight_sigma, bias_sigma))
            if i < self.hidden:
                x = self.activation(x)
        return x


def squashed(e: Tensor) -> Tensor:
    """f(e) = sign(e) sqrt|e|, of normal noise."""
    return e.sign() * e.abs().sqrt()
