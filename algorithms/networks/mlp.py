"""Fully connected networks: initialisation, layers, the MLP and its backward pass."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    pass


HIDDEN_GAIN = math.sqrt(2)
BIG = 2**18  # numbers of a weight that few rows are slow with, as it lies


def init_orthogonal(weight: Tensor, gain: float, generator: torch.Generator | None = None) -> None:
    """Fill a weight [outputs, ...] with rows orthogonal to each other, each of length `gain` (if there is room)."""
    nn.init.orthogonal_(weight, gain, generator=generator)


class Layers(nn.Module):
    """Weights and biases of one layer after the other, at hand as plain pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, shape: tuple[int, ...], gain: float | None, generator: torch.Generator | None) -> None:
        """A layer of weights [outputs, ...], orthogonal with biases 0; without a gain uniform as torch has them."""
        weight, bias = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.zeros(shape[0]))
        if gain is None:
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            nn.init.uniform_(bias, -bound, bound, generator=generator)
        else:
            init_orthogonal(weight, gain, generator)
        self.register_parameter(f"weight{len(self.pairs)}", weight)
        self.register_parameter(f"bias{len(self.pairs)}", bias)
        self.pairs.append((weight, bias))


def turned(policy: Any) -> Any:
    """The same policy, for few rows: inputs of its wide `Layers` lie outermost in memory, which takes 40% less time."""
    for layers in policy.modules() if isinstance(policy, nn.Module) else ():
        for weight, _ in layers.pairs if isinstance(layers, Layers) else ():
            if weight.ndim == 2 and weight.numel() >= BIG:
                weight.data = weight.data.t().contiguous().t()
    return policy


THIN = 16  # columns; a product that is narrower is quicker the other way round


class Record(NamedTuple):
    """One pass through an MLP."""

    net: MLP
    inputs: list[Tensor]  # [N, features] of each layer
    output: Tensor  # [..., outputs], a leaf


class Tape:
    """Gradients of a module's MLPs, where their input has none: `with tape: loss = ...`, then `tape.backward(loss)`.

    Inside the `with`, an MLP whose input carries a gradient goes through autograd as usual. Gradients are added to the
    parameters' `.grad`, which must be there (`optim.flatten`).
    """

    def __init__(self, module: nn.Module) -> None:
        self.nets = [net for net in module.modules() if isinstance(net, MLP)]
        self.records: list[Record] = []

    def __enter__(self) -> None:
        self.records.clear()
        for net in self.nets:
            net.tape = self

    def __exit__(self, *error: Any) -> None:
        for net in self.nets:
            net.tape = None

    def forward(self, net: MLP, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], cut off from the graph and remembered."""
        with torch.no_grad():
            lead = x.shape[:-1]
            x = x.reshape(-1, x.shape[-1])
            inputs = []
            for i, (weight, bias) in enumerate(net.pairs):
                inputs.append(x)
                x = torch.addmm(bias, x, weight.t())
                if i < net.hidden:
                    x = fast_tanh_(x) if net.activation is torch.tanh else x.relu_()
            output = x.reshape(*lead, x.shape[-1])
        self.records.append(Record(net, inputs, output.requires_grad_()))
        return output

    def backward(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """What `loss.backward(gradient)` does, for the MLPs too."""
        with torch.no_grad():
            if gradient is not None and self.records and self.records[-1].output is loss:
                _walk(self.records[-1], gradient)  # there is nothing for autograd in between
            else:
                if gradient is not None:  # autograd takes one too, but imports a second's worth of modules first
                    with torch.enable_grad():
                        loss = (loss * gradient).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                for record in reversed(self.records):
                    if record.output.grad is not None:
                        _walk(record, record.output.grad)
        self.records.clear()


def _walk(record: Record, gradient: Tensor) -> None:
    """From the gradient of a pass with respect to its output, of the output's shape, to those of its weights."""
    net, inputs, output = record
    d = gradient.reshape(-1, gradient.shape[-1])  # [N, outputs]
    after = output.detach().reshape(d.shape)
    backward = torch.ops.aten.tanh_backward if net.activation is torch.tanh else _relu_backward
    for i in reversed(range(len(net.pairs))):
        weight, bias = net.pairs[i]
        assert weight.grad is not None
        assert bias.grad is not None
        if i < net.hidden:
            d = backward(d, after)
        x = inputs[i]
        bias.grad.add_(d.sum(0))
        if x.shape[1] < THIN:
            weight.grad.add_(torch.mm(x.t(), d).t())
        else:
            weight.grad.addmm_(d.t(), x)
        if i > 0:
            d, after = torch.mm(d, weight), x


def _relu_backward(d: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(d, output, 0.0)  # type: ignore[no-any-return]


Activation = Literal["tanh", "relu"]
Init = Literal["orthogonal", "uniform"]


def _slow_tanh() -> bool:
    """Whether torch's own tanh is slow here: it is MKL's, which is quick on Intel's processors alone."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        with open("/proc/cpuinfo", "rb") as told:
            return b"GenuineIntel" not in told.read(4096)
    except OSError:
        return "GenuineIntel" not in platform.processor()


SLOW_TANH = _slow_tanh()


def fast_tanh_(x: Tensor) -> Tensor:
    """tanh in place, to 1e-7 absolute: where torch's own is slow, a third of its time.

    For learners only: its last bit depends on where in the array a number stands, so actors keep to `torch.tanh`.
    """
    return x.mul_(2).sigmoid_().mul_(2).sub_(1) if SLOW_TANH and x.device.type == "cpu" else x.tanh_()


class MLP(Layers):
    """Linear layers with an activation after each of `widths`, and a linear output layer if `outputs` is given.

    Weights are orthogonal, of gain sqrt(2) in hidden layers and `gain` in the output layer, and biases are 0; or both
    are uniform in +-1 / sqrt(inputs of the layer), torch's own choice.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        outputs: int | None = None,
        activation: Activation = "tanh",
        gain: float = 1.0,
        generator: torch.Generator | None = None,
        init: Init = "orthogonal",
    ) -> None:
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        self.hidden = len(widths)
        self.tape: Tape | None = None  # while one is open: it does the forward pass, and the backward one
        self.features = inputs
        for width in widths:
            self.add((width, self.features), HIDDEN_GAIN if init == "orthogonal" else None, generator)
            self.features = width
        if outputs is not None:
            self.add((outputs, self.features), gain if init == "orthogonal" else None, generator)
            self.features = outputs

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., features]"""
        if self.tape is not None and not x.requires_grad:
            return self.tape.forward(self, x)
        activation = self.activation
        if not torch.is_grad_enabled():
            if activation is torch.relu:
                activation = torch.relu_
            elif not torch.is_inference_mode_enabled():
                activation = fast_tanh_
        for weight, bias in self.pairs[: self.hidden]:
            x = activation(F.linear(x, weight, bias))
        for weight, bias in self.pairs[self.hidden :]:
            x = F.linear(x, weight, bias)
        return x

    def row_wise(self, x: Tensor) -> Tensor:
        """[B, inputs] to [B], for one layer of one unit: bits that do not depend on other rows, as of a product."""
        ((weight, bias),) = self.pairs
        return (x * weight).sum(-1).add_(bias)
