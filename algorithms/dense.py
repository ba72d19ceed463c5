"""MLPs whose backward pass is written out, n of one shape side by side: the networks of SAC, TD3 and DDPG.

Autograd would do. But it makes every activation and every gradient anew, half a megabyte at a time, which the C library
hands back to the system and asks for again; it cannot add to a gradient while it multiplies; and it computes gradients
of weights that only pass a gradient on. Here activations are kept for the next update, a weight's gradient is added to
where it lies, and `frozen` leaves it out.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from algorithms.networks import load_torso
from envs.spec import EnvSpec
from rollout.tree import Tree

Activation = Literal["tanh", "relu"]
Pairs = Sequence[tuple[Tensor, Tensor]]  # weight [n, out, in] and bias [n, 1, out] of each layer
ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh_, "relu": torch.relu_}


class Dense(nn.Module):
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
        self.nets, self.activation = nets, activation
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
        self._free: dict[tuple[int, int], list[list[Tensor]]] = {}  # activations nobody needs, by n and B

    def forward(self, *inputs: Tensor, frozen: bool = False, first: bool = False) -> Tensor:
        """[B, F] each, side by side, to [n, B, outputs].

        Gradients of weights are added to their `.grad`, which must be there (`optim.flatten`); they do not pass through
        autograd, so a hook on a weight is not called.

        Args:
            frozen: whether gradients go through to the inputs only, and none to the weights.
            first:  whether the first net alone is asked, [1, B, outputs]; only with `frozen`.
        """
        pairs: Pairs = [(w[:1], b[:1]) for w, b in self.pairs] if first else self.pairs
        if not torch.is_grad_enabled():
            x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)
            hidden = self._take(pairs, len(x))
            out = self._layers(pairs, x, hidden)
            self._give(hidden)
            return out
        if frozen:
            pairs, learns = [(w.detach(), b.detach()) for w, b in pairs], None
        else:
            assert not first, "the first net alone cannot learn"
            learns = self.pairs[0][0]
        result: Tensor = _WrittenOut.apply(self, pairs, learns, *inputs)  # type: ignore[no-untyped-call]
        return result

    def rows(self, x: Tensor) -> Tensor:
        """[..., F] to [..., outputs], of a single net: what actors run; a row's bits do not depend on the others."""
        activate = ACTIVATE[self.activation]
        *hidden, (weight, bias) = self.pairs
        for w, b in hidden:
            x = activate(F.linear(x, w[0], b[0, 0]))
        return F.linear(x, weight[0], bias[0, 0])

    def _layers(self, pairs: Pairs, x: Tensor, hidden: list[Tensor]) -> Tensor:
        """The layers one after the other; activations [n, B, width] are left in `hidden`."""
        activate = ACTIVATE[self.activation]
        below = x.expand(len(pairs[0][0]), *x.shape)
        *inner, (weight, bias) = pairs
        for (w, b), out in zip(inner, hidden, strict=True):
            below = activate(torch.baddbmm(b, below, w.mT, out=out))
        return torch.baddbmm(bias, below, weight.mT)

    def _take(self, pairs: Pairs, rows: int) -> list[Tensor]:
        """Arrays [n, B, width] for the hidden layers."""
        nets = len(pairs[0][0])
        free = self._free.setdefault((nets, rows), [])
        if free:
            return free.pop()
        return [weight.detach().new_empty(nets, rows, weight.shape[1]) for weight, _ in pairs[:-1]]

    def _give(self, hidden: list[Tensor]) -> None:
        """Nobody needs these any more."""
        if hidden:
            nets, rows, _ = hidden[0].shape
            self._free[nets, rows].append(hidden)

    def __deepcopy__(self, memo: dict[int, Any]) -> Dense:
        """Without the activations."""
        free, self._free = self._free, {}
        try:
            twin = self.__class__.__new__(self.__class__)
            memo[id(self)] = twin
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        finally:
            self._free = free
        return twin


class Tower(nn.Module):
    """An encoder and, on what it sees, n MLPs of one shape (`Dense`).

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
        self.dense = Dense(self.encoder.features + beside, config.widths, outputs, nets, config.activation, generator)

    def forward(self, obs: Tree, *beside: Tensor, frozen: bool = False, first: bool = False) -> Tensor:
        """tree of [B, *O], normalised, and [B, F] each to [n, B, outputs].

        With `frozen` only `beside` gets gradients; `first` as in `Dense`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.encoder.forward(obs)
        return self.dense.forward(features, *beside, frozen=frozen, first=first)

    def rows(self, obs: Tree) -> Tensor:
        """tree of [..., *O], normalised, to [..., outputs] of a single net, as actors need it."""
        return self.dense.rows(self.encoder.forward(obs))


class _WrittenOut(torch.autograd.Function):
    """The backward pass of `Dense`, layer by layer from the last."""

    @staticmethod
    def forward(ctx: Any, net: Dense, pairs: Pairs, learns: Tensor | None, *inputs: Tensor) -> Tensor:
        """`learns` is one of the weights, so that there is a gradient to ask for although no input has one."""
        ctx.net, ctx.pairs, ctx.learns = net, pairs, learns is not None
        ctx.x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)  # [B, F]
        ctx.columns = [x.shape[-1] for x in inputs]
        ctx.hidden = net._take(pairs, len(ctx.x))
        return net._layers(pairs, ctx.x, ctx.hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        net, pairs, x, hidden = ctx.net, ctx.pairs, ctx.x, ctx.hidden
        ctx.hidden = None  # others will write there: this graph has had its backward pass
        below = [x.expand(len(d), *x.shape), *hidden]
        slopes = net._take(pairs, len(x))
        for i in reversed(range(len(pairs))):
            weight, bias = pairs[i]
            if ctx.learns:
                bias.grad.add_(d.sum(1, keepdim=True))
                if i > 0:
                    weight.grad.baddbmm_(d.mT, below[i])
                else:  # inputs are few, and a product that is narrow is quicker this way round
                    weight.grad.add_(torch.bmm(below[i].mT, d).mT)
            if i > 0:
                d = torch.bmm(d, weight, out=slopes[i - 1])
                if net.activation == "relu":
                    torch.ops.aten.threshold_backward.grad_input(d, below[i], 0.0, grad_input=d)
                else:
                    torch.ops.aten.tanh_backward.grad_input(d, below[i], grad_input=d)
        answer: list[Tensor | None] = [None, None, None]
        weights = torch.split(pairs[0][0], ctx.columns, -1)
        for columns, wanted in zip(weights, ctx.needs_input_grad[3:], strict=True):
            answer.append(functools.reduce(torch.add, map(torch.mm, d, columns)) if wanted else None)
        net._give(hidden)
        net._give(slopes)
        return tuple(answer)
