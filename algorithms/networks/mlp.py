"""Fully connected networks: initialisation, layers, and the MLP with its hand-written backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.networks.products import (
    ACTIVATE,
    add_weight_gradient,
    aligned,
    dense,
    fast_tanh_,
    input_gradient,
    is_large,
    needs_alignment,
)
from rltrain.algorithms.settings import Activation

HIDDEN_GAIN = math.sqrt(2)
LARGE = 2**18  # elements of a weight above which a product with few rows is faster on the transposed storage
SHAPES = 64  # numbers of rows and threads for which an `ActorPass` keeps memory
THIN = 16  # columns of a layer's input below which its weight gradient is computed transposed, which is faster


def init_orthogonal(weight: Tensor, gain: float, generator: torch.Generator | None = None) -> None:
    """Fill a weight [outputs, ...] with orthogonal rows (columns, if there are fewer of them) of length `gain`."""
    nn.init.orthogonal_(weight, gain, generator=generator)


class Layers(nn.Module):
    """A list of (weight, bias) parameters: `forward` methods use them directly, without a module per layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, shape: tuple[int, ...], gain: float | None, generator: torch.Generator | None) -> None:
        """Add a layer with weights [outputs, ...]: orthogonal with biases 0, or, if `gain` is None, torch's default."""
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


class ActorPass:
    """The forward pass of an actor: the results of the hidden layers are written into the same memory at each call.

    It has the bits of `F.linear` and the activation, in two thirds of the time for 16 rows and layers of 64. A thread
    has memory of its own.

    Args:
        pairs:      weight [out, in] and bias [out] of each layer.
        hidden:     the number of layers with an activation.
        activation: tanh or relu.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], hidden: int, activation: str) -> None:
        self._address, self._last_is_hidden = pairs[0][0].data_ptr(), hidden == len(pairs)
        self._activate = ACTIVATE[activation]
        self._aligns = any(needs_alignment(weight) for weight, _ in pairs)
        *self._inner, self._last = [(bias.detach(), weight.detach().t()) for weight, bias in pairs]
        self._memory: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = {}  # by number of rows and thread

    def is_of(self, weight: Tensor) -> bool:
        """Whether this is the memory of the first layer's weight, which has not moved."""
        return weight.data_ptr() == self._address

    def __call__(self, x: Tensor) -> Tensor:
        """[B, in] to [B, out] of the last layer, in memory of its own."""
        rows, activate, addmm = len(x), self._activate, torch.addmm
        key = rows, get_ident()
        layers = self._memory.get(key)
        if layers is None:
            if len(self._memory) >= SHAPES:
                self._memory = {}
            layers = [(bias, weight, weight.new_empty(rows, weight.shape[1])) for bias, weight in self._inner]
            self._memory[key] = layers
        if self._aligns:
            for bias, weight, out in layers:
                x = activate(addmm(bias, aligned(x, weight.t()), weight, out=out))
            x = aligned(x, self._last[1].t())
        else:
            for bias, weight, out in layers:
                x = activate(addmm(bias, x, weight, out=out))
        bias, weight = self._last
        x = addmm(bias, x, weight)
        return activate(x) if self._last_is_hidden else x


class RowPass:
    """The forward pass of an MLP for one observation at a time, in inference mode, in memory that it keeps.

    It is the first of several rows, which gives it the bits that it has in a batch. For one thread.

    Args:
        mlp:  the network.
        rows: of the batch.

    Attributes:
        numbers: [1, outputs], the result of the last call as an array of numpy.
    """

    def __init__(self, mlp: MLP, rows: int) -> None:
        self._parameters = [tensor for pair in mlp.pairs for tensor in pair]
        self._addresses = [tensor.data_ptr() for tensor in self._parameters]
        x = torch.zeros(rows, self._parameters[0].shape[1])
        self._x, self._row = x, x.numpy()[0]  # the first row is aligned in memory
        self._layers: list[tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor] | None]] = []
        for place, (weight, bias) in enumerate(mlp.pairs):
            x = torch.empty(rows, len(weight))
            activate = ACTIVATE[mlp.activation_name] if place < mlp.hidden else None
            self._layers.append((bias.detach(), weight.detach().t(), x, activate))
        self._out = x[:1]
        self.numbers = self._out.numpy()

    def moved(self) -> bool:
        """Whether a parameter has got other memory since."""
        return [tensor.data_ptr() for tensor in self._parameters] != self._addresses

    def __call__(self, obs: Any) -> Tensor:
        """[inputs], an array, to [1, outputs]. The next call overwrites the result."""
        self._row[...] = obs
        x, addmm = self._x, torch.addmm
        for bias, weight, out, activate in self._layers:
            x = addmm(bias, x, weight, out=out)
            if activate is not None:
                activate(x)
        return self._out


def for_inference(policy: Any, keeps_memory: bool = True) -> Any:
    """Let the MLPs of a policy use `ActorPass` in inference mode. Returns the policy.

    Args:
        keeps_memory: False: prepare it for an export: no memory is kept, and the operations are those of an actor
                      outside of inference mode too.
    """
    for module in policy.modules() if isinstance(policy, nn.Module) else ():
        if isinstance(module, MLP):
            module.keeps_memory, module.is_exported = keeps_memory, not keeps_memory
    return policy


def for_actors(policy: Any) -> Any:
    """Prepare a new policy for an actor, which has few rows and one thread. Returns the policy.

    Its dense layers use `ActorPass`. Large weights are stored transposed, which saves 40% of the time for few rows.
    """
    layers: Any
    for layers in policy.modules() if isinstance(policy, nn.Module) else ():
        if hasattr(layers, "keeps_memory"):
            layers.keeps_memory = True
        for weight, _ in layers.pairs if isinstance(layers, Layers) else ():
            if weight.ndim == 2 and weight.numel() >= LARGE:
                weight.data = weight.data.t().contiguous().t()
    return policy


Init = Literal["orthogonal", "uniform"]


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
        self.activation_name = activation
        self.keeps_memory = False  # see `for_actors`
        self.is_exported = False  # see `for_inference`
        self._actor_pass: ActorPass | None = None
        self.hidden = len(widths)
        self.features = inputs
        for width in widths:
            self.add((width, self.features), HIDDEN_GAIN if init == "orthogonal" else None, generator)
            self.features = width
        if outputs is not None:
            self.add((outputs, self.features), gain if init == "orthogonal" else None, generator)
            self.features = outputs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_actor_pass": None}  # it refers to the memory of this network

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., features].

        If the weights have a `.grad` (`optim.flatten`) and x needs none, the backward pass is written out: it adds
        gradients to `.grad` directly, so hooks of the weights are not called and `torch.autograd.grad` sees no weights.
        Such a graph allows one backward pass (TypeError at the second).
        """
        activation, learns = self.activation, False
        if torch.is_grad_enabled():
            first = self.pairs[0][0] if self.pairs else None
            if first is not None and first.grad is not None and first.requires_grad and not x.requires_grad:
                out: Tensor = _Fused.apply(self, first, x.reshape(-1, x.shape[-1]))  # type: ignore[no-untyped-call]
                return out if x.ndim == 2 else out.view(*x.shape[:-1], self.features)
        else:
            learns = not torch.is_inference_mode_enabled() and not self.is_exported  # actors are in inference mode
            if self.keeps_memory and not learns and x.ndim == 2 and self.pairs:
                if self._actor_pass is None or not self._actor_pass.is_of(self.pairs[0][0]):
                    self._actor_pass = ActorPass(self.pairs, self.hidden, self.activation_name)
                return self._actor_pass(x)
            if not learns and x.ndim != 2 and any(needs_alignment(weight) for weight, _ in self.pairs):
                return self.forward(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.features)
            activation = torch.relu_ if activation is torch.relu else fast_tanh_ if learns else activation
        for weight, bias in self.pairs[: self.hidden]:
            if learns and is_large(x, weight):
                x = dense(x, weight, bias, self.activation_name)
            else:
                x = activation(F.linear(x if learns else aligned(x, weight), weight, bias))
        for weight, bias in self.pairs[self.hidden :]:
            x = F.linear(x if learns else aligned(x, weight), weight, bias)
        return x

    def row_wise(self, x: Tensor) -> Tensor:
        """[B, inputs] to [B], for an MLP of one layer with one unit: the bits of a row do not depend on other rows."""
        ((weight, bias),) = self.pairs
        return (x * weight).sum(-1).add_(bias)


class _Fused(torch.autograd.Function):
    """Forward and backward pass of an MLP as one node: it needs half of the operations that autograd records."""

    @staticmethod
    def forward(ctx: Any, net: MLP, weight: Tensor, x: Tensor) -> Tensor:
        """[N, inputs] to [N, features]. `weight` is the first one, without which the result would need no gradient."""
        ctx.ends_graph = True  # nothing before this node needs a gradient
        ctx.net, ctx.values = net, [x]  # the input of each layer; the output too if the last layer has an activation
        for i, (w, b) in enumerate(net.pairs):
            x = dense(x, w, b, net.activation_name if i < net.hidden else "none")
            if i < net.hidden:
                ctx.values.append(x if i + 1 < len(net.pairs) else x.detach())
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        assert not torch.is_grad_enabled(), "there is no second derivative"  # as once_differentiable, in less time
        net, values, ctx.values = ctx.net, ctx.values, None
        if values is None:  # the weights may have changed since: the gradient would be wrong
            raise TypeError("an MLP's graph allows one backward pass: compute the loss again, or add both losses")
        grad = grad.contiguous()  # [N, features]
        for i in reversed(range(len(net.pairs))):
            weight, bias = net.pairs[i]
            if i < net.hidden:
                grad = _activation_backward(net.activation, grad, values[i + 1])
            for parameter in (weight, bias):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            if bias.requires_grad:
                bias.grad.add_(grad.sum(0))
            if weight.requires_grad:
                add_weight_gradient(weight.grad, grad, values[i], THIN)
            if i > 0:
                grad = input_gradient(grad, weight)
        return None, None, None


def _activation_backward(activation: Callable[[Tensor], Tensor], grad: Tensor, output: Tensor) -> Tensor:
    """From the gradient of an activation's output to that of its input."""
    if activation is torch.tanh:
        return torch.ops.aten.tanh_backward(grad, output)  # type: ignore[no-any-return]
    return torch.ops.aten.threshold_backward(grad, output, 0.0)  # type: ignore[no-any-return]
