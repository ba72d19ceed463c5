"""Several MLPs of one shape, computed as batched matrix products with a hand-written backward pass.

Autograd would give the same gradients. It allocates every activation and gradient again in each update, half a megabyte
at a time, which the C library returns to the system; it cannot accumulate a weight's gradient during the product; and
it computes gradients of weights that need none. Here activations are kept for the next update, the gradient of a weight
is accumulated where it is stored, and `frozen` leaves it out: a quarter less time for the critics of SAC.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks.memory import make_encoder
from rltrain.algorithms.networks.mlp import ActorPass
from rltrain.algorithms.networks.normalized_mlp import Norm, NormalizedMLP
from rltrain.algorithms.networks.products import (
    ACTIVATE,
    add_batched_weight_gradient,
    aligned,
    batched_dense,
    batched_input_gradient,
)
from rltrain.algorithms.settings import Activation
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree

SHAPES = 8  # numbers of rows whose activation arrays are kept; with memory it differs from update to update
THIN = 32  # columns of a layer's input below which its weight gradient is computed transposed, which is faster


class Layer(NamedTuple):
    """One layer of n nets: views of the parameters and their gradients, without autograd."""

    weight: Tensor  # [n, out, in]
    transposed: Tensor  # [n, in, out]
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
        outputs:    numbers per row of the result.
        nets:       n.
        activation: tanh or relu.
        generator:  for the initial weights.
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
        self.keeps_memory = False  # see `for_actors`
        self._reset_caches()

    def _reset_caches(self) -> None:
        self._free: dict[tuple[int, int], list[list[Tensor]]] = {}  # unused activation arrays, by n and B
        self._layers: list[list[Layer]] = []  # of all nets, and of the first net alone
        self._single: list[tuple[Tensor, Tensor]] = []  # of the first net: weight [out, in] and bias [out]
        self._actor_pass: ActorPass | None = None
        self._addresses: tuple[int, int] | None = None  # of the parameters and gradients that the views belong to

    def forward(
        self,
        *inputs: Tensor,
        frozen: bool = False,
        first: bool = False,
        nets: Tensor | None = None,
        rng: Rng | None = None,
    ) -> Tensor:
        """[B, F] each, concatenated, to [n, B, outputs].

        Gradients of weights are added to their `.grad`, which must exist (`optim.flatten`); they do not pass through
        autograd, so a hook on a weight is not called. A graph allows one backward pass (TypeError at the second).

        Args:
            frozen: gradients go to the inputs only, none to the weights.
            first:  only the first net, [1, B, outputs]; needs `frozen`.
            nets:   [m] indices of the nets to compute, without gradients; None: all.
            rng:    unused: there is no dropout.
        """
        if not torch.is_grad_enabled():
            layers = self._views(first)
            if nets is not None:
                layers = [Layer(w[nets], w[nets].mT, b[nets], None, None) for w, _, b, *_ in layers]
            out, hidden = self._evaluate(_concatenated(inputs), layers)
            self._recycle(hidden)
            return out
        assert frozen or not first, "the first net alone cannot learn"
        weight = None if frozen else self.pairs[0][0]
        result: Tensor = _Fused.apply(self, first, weight, *inputs)  # type: ignore[no-untyped-call]
        return result

    def rows(self, x: Tensor) -> Tensor:
        """[..., F] to [..., outputs] of a single net, for actors: the bits of a row do not depend on other rows."""
        if self.keeps_memory and x.ndim == 2:
            if self._actor_pass is None or not self._actor_pass.is_of(self.pairs[0][0]):
                pairs = [(weight[0], bias[0, 0]) for weight, bias in self.pairs]
                self._actor_pass = ActorPass(pairs, len(pairs) - 1, self.activation)
            return self._actor_pass(x)
        activate = ACTIVATE[self.activation]
        self._views()
        *hidden, (weight, bias) = self._single
        for w, b in hidden:
            x = activate(F.linear(aligned(x, w), w, b))
        return F.linear(aligned(x, weight), weight, bias)

    def _views(self, first: bool = False) -> list[Layer]:
        """The layers of all nets, or of the first; built again only after parameters or gradients have moved."""
        weight = self.pairs[0][0]
        addresses = weight.data_ptr(), 0 if weight.grad is None else weight.grad.data_ptr()
        if addresses != self._addresses:
            self._addresses = addresses
            self._layers = [[_layer(w, b, nets) for w, b in self.pairs] for nets in (self.nets, 1)]
            self._single = [(layer.weight[0], layer.bias[0, 0]) for layer in self._layers[1]]
        return self._layers[first]

    def _evaluate(self, x: Tensor, layers: list[Layer]) -> tuple[Tensor, list[Tensor]]:
        """[B, F] to the output [n, B, outputs] and the activations [n, B, width] of the hidden layers."""
        nets = len(layers[0].weight)
        hidden = self._arrays(nets, len(x))
        x = x.expand(nets, *x.shape)
        for layer, out in zip(layers[:-1], hidden, strict=True):
            x = batched_dense(x, layer.weight, layer.transposed, layer.bias, self.activation, out)
        last = layers[-1]
        return batched_dense(x, last.weight, last.transposed, last.bias, "none"), hidden

    def _arrays(self, nets: int, rows: int) -> list[Tensor]:
        """Arrays [n, B, width] for the hidden layers; give them back with `_recycle`."""
        free = self._free.setdefault((nets, rows), [])
        if free:
            return free.pop()
        return [weight.detach().new_empty(nets, rows, weight.shape[1]) for weight, _ in self.pairs[:-1]]

    def _recycle(self, arrays: list[Tensor]) -> None:
        if arrays:
            nets, rows, _ = arrays[0].shape
            if len(self._free) > SHAPES:
                self._free = {}
            self._free.setdefault((nets, rows), []).append(arrays)

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchedMLP:
        """A copy of the parameters, with empty caches."""
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        caches = ("_free", "_layers", "_single", "_actor_pass", "_addresses")
        own = {name: value for name, value in self.__dict__.items() if name not in caches}
        twin.__dict__.update(copy.deepcopy(own, memo))
        twin._reset_caches()
        return twin


class EncoderMLP(nn.Module):
    """An encoder of observations, and n MLPs of one shape (`BatchedMLP`) on its features.

    Args:
        spec:         the environment.
        config:       the settings of an algorithm: torso, widths, activation.
        extra_inputs: numbers per row in addition to the features, an action's for critics.
        outputs:      numbers per row of the result.
        nets:         n; they share the encoder.
        generator:    for the initial weights.
        widths:       units of the hidden layers; None: those of the settings.
        norm:         of the hidden layers; this and the next as in `NormalizedMLP`.
        dropout:      probability that a hidden unit is 0.
        acts:         this network acts; see `MemoryEncoder`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        config: Any,
        extra_inputs: int,
        outputs: int,
        nets: int,
        generator: torch.Generator,
        widths: Sequence[int] | None = None,
        norm: Norm = "none",
        dropout: float = 0.0,
        acts: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(spec, config, generator, acts)
        shape = self.encoder.features + extra_inputs, config.widths if widths is None else widths, outputs, nets
        self.dense: BatchedMLP | NormalizedMLP
        if norm == "none" and dropout == 0:
            self.dense = BatchedMLP(*shape, config.activation, generator)
        else:
            self.dense = NormalizedMLP(*shape, config.activation, generator, norm, dropout)

    def forward(self, obs: Tree, *extra_inputs: Tensor, frozen: bool = False, **options: Any) -> Tensor:
        """tree of [B, *O], normalised, and [B, F] each to [n, B, outputs]; with memory obs is a `History`.

        With `frozen` only `extra_inputs` get gradients; other options as in `BatchedMLP` and `NormalizedMLP`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.encoder.forward(obs)  # [B, features]
        return self.dense.forward(features, *extra_inputs, frozen=frozen, **options)

    def of_actions(self, obs: Tree, actions: Tensor, rng: Rng | None = None) -> Tensor:
        """[n, K, B, outputs] for K actions [K, B, A] in each row of normalised obs, which is encoded once."""
        features = self.encoder.forward(obs)  # [B, features]
        features = features.expand(len(actions), *features.shape).flatten(0, 1)  # [K B, features]
        out = self.dense.forward(features, actions.flatten(0, 1), rng=rng)
        return out.view(len(out), *actions.shape[:2], -1)

    def rows(self, obs: Tree) -> Tensor:
        """tree of [..., *O], normalised, to [..., outputs] of a single net, for actors."""
        return self.dense.rows(self.encoder.forward(obs))

    def step(self, obs: Tree, core: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`rows` of one step [B, *O], and the next core [B, C]; None without memory."""
        encoder: Any = self.encoder
        features, core = (encoder.forward(obs), None) if core is None else encoder.step(obs, core)
        return self.dense.rows(features), core


class _Fused(torch.autograd.Function):
    """The forward and backward pass of a `BatchedMLP` as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, net: BatchedMLP, first: bool, weight: Tensor | None, *inputs: Tensor) -> Tensor:
        """`weight` is one that learns, so that the result needs a gradient even if no input does; None: frozen."""
        ctx.ends_graph = not any(ctx.needs_input_grad[3:])  # nothing before this node needs a gradient
        ctx.net, ctx.x, ctx.layers = net, _concatenated(inputs), net._views(first)
        ctx.widths = [x.shape[-1] for x in inputs]
        out, ctx.hidden = net._evaluate(ctx.x, ctx.layers)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Adds to the weights' gradients, from grad [n, B, outputs], and returns those of the inputs [B, F]."""
        assert not torch.is_grad_enabled(), "there is no second derivative"  # as once_differentiable, in less time
        net, x, layers, hidden = ctx.net, ctx.x, ctx.layers, ctx.hidden
        if hidden is None:
            raise TypeError("a BatchedMLP's graph allows one backward pass: its activations are in use again")
        below = [x.expand(len(grad), *x.shape), *hidden]  # the input of each layer
        arrays = net._arrays(len(grad), len(x))
        for i in reversed(range(len(layers))):
            if ctx.needs_input_grad[2]:
                _accumulate(layers[i], grad, below[i])
            if i:
                grad = batched_input_gradient(grad, layers[i].weight, arrays[i - 1])
                if net.activation == "relu":
                    torch.ops.aten.threshold_backward.grad_input(grad, below[i], 0.0, grad_input=grad)
                else:
                    torch.ops.aten.tanh_backward.grad_input(grad, below[i], grad_input=grad)
        needs, widths = ctx.needs_input_grad[3:], ctx.widths
        begin = needs.index(True) if True in needs else len(needs)  # no gradient of the inputs before the first of them
        parts: list[Tensor | None] = [None] * (3 + begin)
        if sum(widths[begin:]):
            weight = layers[0].weight[..., -sum(widths[begin:]) :]
            parts += torch.split(functools.reduce(torch.add, map(torch.mm, grad, weight)), widths[begin:], -1)
        net._recycle(arrays)
        net._recycle(hidden)
        ctx.hidden = None
        return (*parts, *[None] * (3 + len(needs) - len(parts)))


def _concatenated(inputs: tuple[Tensor, ...]) -> Tensor:
    x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)
    return x.detach()


def _layer(weight: nn.Parameter, bias: nn.Parameter, nets: int) -> Layer:
    w, b, dw, db = weight.detach()[:nets], bias.detach()[:nets], weight.grad, bias.grad
    return Layer(w, w.mT, b, None if dw is None else dw[:nets], None if db is None else db[:nets])


def _accumulate(layer: Layer, grad: Tensor, x: Tensor) -> None:
    """Add to a layer's gradients, from the gradient [n, B, out] of its output and its input [n, B, in]."""
    assert layer.weight_grad is not None, "optim.flatten comes first"
    assert layer.bias_grad is not None
    layer.bias_grad.add_(grad.sum(1, keepdim=True))
    add_batched_weight_gradient(layer.weight_grad, grad, x, THIN)
