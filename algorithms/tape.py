"""The backward pass of MLPs written out, for networks so small that autograd costs more than they do.

Autograd visits some thirty nodes for two networks of three layers, and adds each gradient to zeros. Here the networks
stand outside of its graph: what they put out is a leaf, autograd goes from the loss to the leaves, and from there the
layers are walked once, last to first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rltrain.algorithms.networks import MLP, fast_tanh_

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
