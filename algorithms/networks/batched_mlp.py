"""MLPs whose backward pass is written out, n of one shape side by side: the networks of SAC, TD3 and DDPG.

Autograd would do. But it makes every activation and every gradient anew, half a megabyte at a time, which the C library
hands back to the system and asks for again; it cannot add to a gradient while it multiplies; and it computes gradients
of weights that only pass a gradient on. Here activations are kept for the next update, a weight's gradient is added to
where it lies, and `frozen` leaves it out. A `ForwardPass` needs no nodes of autograd, each of which costs as much as
several small operations.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rltrain.algorithms.networks.encoder import load_torso
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree

Activation = Literal["tanh", "relu"]
ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh_, "relu": torch.relu_}
THIN = 32  # inputs; the gradient of a narrower weight is quicker as the product of the other way round


class Layer(NamedTuple):
    """One layer of n nets: views of the parameters that autograd does not follow."""

    weight: Tensor  # [n, out, in]
    turned: Tensor  # [n, in, out], the same
    bias: Tensor  # [n, 1, out]
    weight_grad: Tensor | None  # [n, out, in]
    bias_grad: Tensor | None  # [n, 1, out]


class BatchedMLP(nn.Module):
    """n independent MLPs: linear layers with an activation after each of `widths`, and a linear output layer.

    Weights and biases are uniform in +-1 / sqrt(inputs of the layer), torch's own choice, which the published results
    of these algorithms were made with.

    Args:
        inputs:     numbers per row.
        widths:     units of the hidden layers.
        outputs:    numbers per row that come out.
        nets:       n.
        activation: tanh or relu.
        generator:  for the first weights.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        outputs: int,
        nets: int = 1,
        activation: Activation = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.nets, self.outputs, self.activation = nets, outputs, activation
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []  # [n, out, in] and [n, 1, out] of each layer
        for i, width in enumerate((*widths, outputs)):
            bound = 1 / math.sqrt(inputs)
            weight, bias = nn.Parameter(torch.empty(nets, width, inputs)), nn.Parameter(torch.empty(nets, 1, width))
            for net in range(nets):
                nn.init.uniform_(weight[net], -bound, bound, generator=generator)
                nn.init.uniform_(bias[net], -bound, bound, generator=generator)
            self.register_parameter(f"weight{i}", weight)
            self.register_parameter(f"bias{i}", bias)
            self.pairs.append((weight, bias))
            inputs = width
        self._free: dict[tuple[int, int], list[list[Tensor]]] = {}  # arrays nobody needs, by n and B
        self._layers: list[list[Layer]] = []  # of all nets, and of the first alone
        self._single: list[tuple[Tensor, Tensor]] = []  # of the first: weight [out, in] and bias [out]
        self._place: tuple[int, int] | None = None  # of the parameters and their gradients when those were made

    def forward(self, *inputs: Tensor, frozen: bool = False, first: bool = False) -> Tensor:
        """[B, F] each, side by side, to [n, B, outputs].

        Gradients of weights are added to their `.grad`, which must be there (`optim.flatten`); they do not pass through
        autograd, so a hook on a weight is not called.

        Args:
            frozen: whether gradients go through to the inputs only, and none to the weights.
            first:  whether the first net alone is asked, [1, B, outputs]; only with `frozen`.
        """
        if not torch.is_grad_enabled():
            walk = self.walk(*inputs, first=first)
            walk.forget()
            return walk.out
        assert frozen or not first, "the first net alone cannot learn"
        learns = None if frozen else self.pairs[0][0]
        result: Tensor = _WrittenOut.apply(self, first, learns, *inputs)  # type: ignore[no-untyped-call]
        return result

    def walk(self, *inputs: Tensor, frozen: bool = False, first: bool = False) -> ForwardPass:
        """The same outside of autograd: the way back is the caller's to ask for."""
        return ForwardPass(self, inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1), frozen, first)

    def rows(self, x: Tensor) -> Tensor:
        """[..., F] to [..., outputs], of a single net: what actors run; a row's bits do not depend on the others."""
        activate = ACTIVATE[self.activation]
        self.layers()
        *hidden, (weight, bias) = self._single
        for w, b in hidden:
            x = activate(F.linear(x, w, b))
        return F.linear(x, weight, bias)

    def layers(self, first: bool = False) -> list[Layer]:
        """Of all nets, or of the first alone; made anew only where the parameters or their gradients have moved."""
        weight = self.pairs[0][0]
        place = weight.data_ptr(), 0 if weight.grad is None else weight.grad.data_ptr()
        if place != self._place:
            self._place = place
            self._layers = [[_layer(w, b, nets) for w, b in self.pairs] for nets in (self.nets, 1)]
            self._single = [(layer.weight[0], layer.bias[0, 0]) for layer in self._layers[1]]
        return self._layers[first]

    def take(self, nets: int, rows: int) -> list[Tensor]:
        """Arrays [n, B, width] for the hidden layers."""
        free = self._free.setdefault((nets, rows), [])
        if free:
            return free.pop()
        return [weight.detach().new_empty(nets, rows, weight.shape[1]) for weight, _ in self.pairs[:-1]]

    def give(self, arrays: list[Tensor]) -> None:
        """Nobody needs these any more."""
        if arrays:
            nets, rows, _ = arrays[0].shape
            self._free[nets, rows].append(arrays)

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchedMLP:
        """Without what can be made again."""
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        afresh: dict[str, Any] = {"_free": {}, "_layers": [], "_single": [], "_place": None}
        own = {name: value for name, value in self.__dict__.items() if name not in afresh}
        twin.__dict__.update(copy.deepcopy(own, memo), **afresh)
        return twin


class ForwardPass:
    """One way through a `BatchedMLP`; it can be walked back once.

    Attributes:
        out: [n, B, outputs], without a graph.
    """

    def __init__(self, net: BatchedMLP, x: Tensor, frozen: bool = False, first: bool = False) -> None:
        """x [B, F]; if it carries a graph, so does the way back. `frozen` and `first` as in `BatchedMLP.forward`."""
        self._net, self._frozen = net, frozen
        self._x, self._graph = x.detach(), x if x.requires_grad and not frozen else None
        self._layers = net.layers(first)
        *inner, last = self._layers
        activate, nets = ACTIVATE[net.activation], len(last.weight)
        self._hidden: list[Tensor] | None = net.take(nets, len(x))
        below = self._x.expand(nets, *x.shape)
        for layer, above in zip(inner, self._hidden, strict=True):
            below = activate(torch.baddbmm(layer.bias, below, layer.turned, out=above))
        self.out = torch.baddbmm(last.bias, below, last.turned)

    def back(self, slope: Tensor) -> None:
        """From the gradient [n, B, outputs] of a loss along `out` to those of the weights, which are added to them."""
        self.back_to(slope, 0)

    def back_to(self, slope: Tensor, last: int) -> Tensor:
        """The same, and on to the last columns of x.

        Returns:
            [B, last] the gradient along them, summed over the nets.

        Raises:
            TypeError: the way back was walked before; its activations belong to others by now.
        """
        net, x, hidden = self._net, self._x, self._hidden
        if hidden is None:
            raise TypeError("there is one way back")
        below, d = [x.expand(len(slope), *x.shape), *hidden], slope
        slopes = net.take(len(slope), len(x))
        for i in reversed(range(len(below))):
            layer = self._layers[i]
            if not self._frozen:
                _learn(layer, d, below[i])
            if i:
                product = torch.bmm if net.outputs > 1 or i < len(hidden) else torch.mul
                d = product(d, layer.weight, out=slopes[i - 1])
                if net.activation == "relu":
                    torch.ops.aten.threshold_backward.grad_input(d, below[i], 0.0, grad_input=d)
                else:
                    torch.ops.aten.tanh_backward.grad_input(d, below[i], grad_input=d)
        columns = x.shape[1] if self._graph is not None else last
        along_x = x.new_empty(len(x), 0)
        if columns:
            weight = self._layers[0].weight[..., -columns:]
            along_x = functools.reduce(torch.add, map(torch.mm, d, weight))
        net.give(slopes)
        self.forget()
        if self._graph is not None:
            self._graph.backward(along_x)  # type: ignore[no-untyped-call]
        return along_x[:, columns - last :]

    def forget(self) -> None:
        """There is no way back."""
        self._net.give(self._hidden or [])
        self._hidden = None


class EncoderMLP(nn.Module):
    """An encoder and, on what it sees, n MLPs of one shape (`BatchedMLP`).

    Args:
        spec:      whose observations.
        config:    the settings of an algorithm: torso, widths, activation.
        beside:    numbers per row that come beside the features, an action's for critics.
        outputs:   numbers per row that come out.
        nets:      n; they share the encoder.
        generator: for the first weights.
    """

    def __init__(
        self, spec: EnvSpec, config: Any, beside: int, outputs: int, nets: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.encoder = load_torso(config.torso, spec, generator)
        self.dense = BatchedMLP(
            self.encoder.features + beside, config.widths, outputs, nets, config.activation, generator
        )

    def forward(self, obs: Tree, *beside: Tensor, frozen: bool = False, first: bool = False) -> Tensor:
        """tree of [B, *O], normalised, and [B, F] each to [n, B, outputs].

        With `frozen` only `beside` gets gradients; `first` as in `BatchedMLP`.
        """
        return self.dense.forward(self._features(obs, frozen), *beside, frozen=frozen, first=first)

    def walk(self, obs: Tree, *beside: Tensor, frozen: bool = False, first: bool = False) -> ForwardPass:
        """The same with the way back in the caller's hand; it goes on through the encoder, unless `frozen`."""
        return self.dense.walk(self._features(obs, frozen), *beside, frozen=frozen, first=first)

    def rows(self, obs: Tree) -> Tensor:
        """tree of [..., *O], normalised, to [..., outputs] of a single net, as actors need it."""
        return self.dense.rows(self.encoder.forward(obs))

    def _features(self, obs: Tree, frozen: bool) -> Tensor:
        """[B, features]"""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return self.encoder.forward(obs)


class _WrittenOut(torch.autograd.Function):
    """A `ForwardPass` as a part of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, net: BatchedMLP, first: bool, learns: Tensor | None, *inputs: Tensor) -> Tensor:
        """`learns` is one of the weights, so that there is a gradient to ask for although no input has one."""
        ctx.walk = net.walk(*(x.detach() for x in inputs), frozen=learns is None, first=first)
        ctx.columns = [x.shape[-1] for x in inputs]
        return ctx.walk.out.detach()  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        wanted, columns = ctx.needs_input_grad[3:], ctx.columns
        begin = next((i for i, asked in enumerate(wanted) if asked), len(columns))
        along_x = ctx.walk.back_to(slope, sum(columns[begin:]))
        parts = [None] * (3 + begin) + list(torch.split(along_x, columns[begin:], -1) if columns[begin:] else ())
        return tuple(part if asked else None for part, asked in zip(parts, ctx.needs_input_grad, strict=True))


def _layer(weight: nn.Parameter, bias: nn.Parameter, nets: int) -> Layer:
    w, b, dw, db = weight.detach()[:nets], bias.detach()[:nets], weight.grad, bias.grad
    return Layer(w, w.mT, b, None if dw is None else dw[:nets], None if db is None else db[:nets])


def _learn(layer: Layer, d: Tensor, below: Tensor) -> None:
    """Add to a layer's gradients, from the gradient d [n, B, out] along what it puts out and its inputs [n, B, in]."""
    assert layer.weight_grad is not None, "optim.flatten comes first"
    assert layer.bias_grad is not None
    layer.bias_grad.add_(d.sum(1, keepdim=True))
    if below.shape[-1] < THIN:
        layer.weight_grad.add_(torch.bmm(below.mT, d).mT)
    else:
        layer.weight_grad.baddbmm_(d.mT, below)
