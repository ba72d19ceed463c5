"""Networks: an observation of any kind to features, features to outputs, and a memory between.

They act far more often than they are built, so `forward` works on the parameters directly, without a module per layer.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.spec import EnvSpec, Leaf
from rollout.tree import Tree, leaves, tree_map

if TYPE_CHECKING:
    from algorithms.tape import Tape

Activation = Literal["tanh", "relu"]
HIDDEN_GAIN = math.sqrt(2)
NATURE_SIDE = 36  # the smallest image that the three convolutions of NatureCNN leave something of


def init_orthogonal(weight: Tensor, gain: float, generator: torch.Generator | None = None) -> None:
    """Fill a weight [outputs, ...] with rows orthogonal to each other, each of length `gain` (if there is room)."""
    nn.init.orthogonal_(weight, gain, generator=generator)


def fast_tanh_(x: Tensor) -> Tensor:
    """tanh in place, to 1e-7 absolute: on CPUs a third of the time of torch's own.

    For learners only: its last bit depends on where in the array a number stands, so actors keep to `torch.tanh`.
    """
    return x.mul_(2).sigmoid_().mul_(2).sub_(1) if x.device.type == "cpu" else x.tanh_()


class _Layers(nn.Module):
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


class MLP(_Layers):
    """Linear layers with an activation after each of `widths`, and a linear output layer if `outputs` is given.

    Weights are orthogonal, of gain sqrt(2) in hidden layers and `gain` in the output layer; biases are 0.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        outputs: int | None = None,
        activation: Activation = "tanh",
        gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        self.hidden = len(widths)
        self.tape: Tape | None = None  # while one is open: it does the forward pass, and the backward one
        self.features = inputs
        for width in widths:
            self.add((width, self.features), HIDDEN_GAIN, generator)
            self.features = width
        if outputs is not None:
            self.add((outputs, self.features), gain, generator)
            self.features = outputs

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., features]"""
        if self.tape is not None and not x.requires_grad:
            return self.tape.forward(self, x)
        activation = self.activation
        if activation is torch.tanh and not (torch.is_grad_enabled() or torch.is_inference_mode_enabled()):
            activation = fast_tanh_
        for weight, bias in self.pairs[: self.hidden]:
            x = activation(F.linear(x, weight, bias))
        for weight, bias in self.pairs[self.hidden :]:
            x = F.linear(x, weight, bias)
        return x


class _CNN(_Layers):
    """Convolutions and one linear layer, with relu after each. Images come as uint8 and are scaled to [0, 1]."""

    def __init__(
        self,
        leaf: Leaf,
        convolutions: Sequence[tuple[int, int, int, int]],  # channels, kernel, stride, padding
        features: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.gray = len(leaf.shape) == 2
        self.channels_last = leaf.channels_last
        channels, height, width = _channels_first(leaf)
        self.moves: list[tuple[int, int]] = []  # stride, padding
        for outputs, kernel, stride, padding in convolutions:
            self.add((outputs, channels, kernel, kernel), HIDDEN_GAIN, generator)
            self.moves.append((stride, padding))
            channels = outputs
            height = (height + 2 * padding - kernel) // stride + 1
            width = (width + 2 * padding - kernel) // stride + 1
        self.features = features
        self.add((features, channels * height * width), HIDDEN_GAIN, generator)

    def forward(self, image: Tensor) -> Tensor:
        """[N, *O] uint8 to [N, features]"""
        if self.gray:
            image = image.unsqueeze(1)
        elif self.channels_last:
            image = image.permute(0, 3, 1, 2)
        x = image.to(self.pairs[0][0].dtype).mul_(1 / 255).contiguous()  # [N, C, H, W]
        for (weight, bias), (stride, padding) in zip(self.pairs, self.moves, strict=False):
            x = torch.relu(F.conv2d(x, weight, bias, stride, padding))
        return torch.relu(F.linear(x.flatten(1), *self.pairs[-1]))


class NatureCNN(_CNN):
    """The network of Mnih et al. 2015, for images of 36 pixels a side and more."""

    def __init__(self, leaf: Leaf, features: int = 512, generator: torch.Generator | None = None) -> None:
        super().__init__(leaf, [(32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)], features, generator)


class SmallCNN(_CNN):
    """For images too small for NatureCNN, down to a single pixel. Ours."""

    def __init__(self, leaf: Leaf, features: int = 128, generator: torch.Generator | None = None) -> None:
        super().__init__(leaf, [(16, 3, 1, 1), (32, 3, 2, 1)], features, generator)


class OneHot(nn.Module):
    """Whole numbers [..., *O] to one-hot vectors [..., sum(nvec)], side by side."""

    slot: Tensor  # [sum(nvec)] the value each output stands for
    head: Tensor  # [sum(nvec)] the number it belongs to

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        self.features = sum(leaf.nvec)
        self.scalar = leaf.shape == ()
        slots = [torch.arange(n) for n in leaf.nvec]
        heads = [torch.full((n,), i) for i, n in enumerate(leaf.nvec)]
        self.register_buffer("slot", torch.cat(slots), persistent=False)
        self.register_buffer("head", torch.cat(heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(-1) if self.scalar else x[..., self.head]
        return (x == self.slot).float()


class Encoder(nn.Module):
    """An observation, whatever its space, to one flat vector: its leaves encoded and put side by side in their order.

    Box and multi_binary leaves are flattened, discrete ones become one-hot, images go through a CNN each. Box leaves
    are not normalised here: give it what `Normalizer` returns.

    Args:
        spec:      whose observation.
        features:  width of an image's features; None leaves it to its CNN.
        generator: for the weights.
    """

    def __init__(self, spec: EnvSpec, features: int | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.leaves = spec.leaves()
        self.nets = nn.ModuleDict()  # of images and whole numbers, by the place of the leaf
        self.features = 0
        for i, leaf in enumerate(self.leaves):
            if leaf.kind == "image":
                small = min(_channels_first(leaf)[1:]) < NATURE_SIDE
                build = SmallCNN if small else NatureCNN
                cnn = build(leaf, features, generator) if features else build(leaf, generator=generator)
                self.nets[str(i)], width = cnn, cnn.features
            elif leaf.kind in ("discrete", "multi_discrete"):
                one_hot = OneHot(leaf)
                self.nets[str(i)], width = one_hot, one_hot.features
            else:
                width = math.prod(leaf.shape)
            self.features += width
        self.plain = spec.obs == self.leaves[0] and self.leaves[0].kind == "box" and len(self.leaves[0].shape) == 1

    def forward(self, obs: Tree) -> Tensor:
        """tree of [..., *O] to [..., features]"""
        if self.plain:
            assert isinstance(obs, Tensor)
            return obs
        parts = [self._encode(i, leaf, x) for i, (leaf, x) in enumerate(zip(self.leaves, leaves(obs), strict=True))]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _encode(self, i: int, leaf: Leaf, x: Tensor) -> Tensor:
        lead = x.shape[: x.ndim - len(leaf.shape)]
        if leaf.kind == "image":
            encoded: Tensor = self.nets[str(i)](x.reshape(-1, *leaf.shape))
            return encoded.reshape(*lead, -1)
        if leaf.kind in ("discrete", "multi_discrete"):
            numbers: Tensor = self.nets[str(i)](x)
            return numbers
        return x.reshape(*lead, math.prod(leaf.shape)).float()


class Memory(nn.Module):
    """A GRU, Cho et al. 2014, that forgets where an episode begins.

    torch.gru_cell gives a row the same bits at every width that is a multiple of 16 (tested).
    """

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.features = hidden
        self.weight_x = nn.Parameter(torch.empty(3 * hidden, inputs))
        self.weight_h = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.bias_x = nn.Parameter(torch.zeros(3 * hidden))
        self.bias_h = nn.Parameter(torch.zeros(3 * hidden))
        for gates in (*torch.split(self.weight_x.data, hidden), *torch.split(self.weight_h.data, hidden)):
            init_orthogonal(gates, 1.0, generator)

    def step(self, x: Tensor, core: Tensor) -> Tensor:
        """x [N, F] and core [N, H] to the next core [N, H], which is the output too."""
        return torch.gru_cell(x, core, self.weight_x, self.weight_h, self.bias_x, self.bias_h)

    def unroll(self, x: Tensor, core: Tensor, first: Tensor, sequence: int | None = None) -> Tensor:
        """L steps with their gradient.

        Args:
            x:        [L, N, F]
            core:     [N, H]  before the first row.
            first:    [L, N]  bool, rows that begin an episode: their core is 0 before the step.
            sequence: rows a gradient goes back through; None: all.

        Returns:
            [L, N, H] the core after each row.
        """
        keep = (~first).to(x.dtype).unsqueeze(-1)  # [L, N, 1]
        cores = []
        for t, (row, kept) in enumerate(zip(x.unbind(0), keep.unbind(0), strict=True)):
            if sequence and t and t % sequence == 0:
                core = core.detach()
            core = self.step(row, core * kept)
            cores.append(core)
        return torch.stack(cores)


class UserTorso(nn.Module):
    """A user's module behind the interface of Encoder: it sees [N, *O] only, whatever the leading dims are."""

    def __init__(self, module: nn.Module, spec: EnvSpec) -> None:
        super().__init__()
        self.module = module
        self.features = int(module.features)  # type: ignore[arg-type]
        self.event_dims = len(spec.leaves()[0].shape)

    def forward(self, obs: Tree) -> Tensor:
        """tree of [..., *O] to [..., features]"""
        first = leaves(obs)[0]
        lead = first.shape[: first.ndim - self.event_dims]
        encoded: Tensor = self.module(tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(lead) :]), obs))
        return encoded.reshape(*lead, self.features)


def load_torso(name: str, spec: EnvSpec, generator: torch.Generator | None = None) -> Encoder | UserTorso:
    """The torso called `name`: "auto" for an Encoder, else "module:Class".

    The class is built as `Class(spec)`, has an int `features` and a `forward(obs)` from a tree of [N, *O] to
    [N, features]. Its weights are drawn under a seed from `generator`, so that they repeat.

    Raises:
        ValueError: one line that says what is wrong with it.
    """
    if name == "auto":
        return Encoder(spec, generator=generator)
    home, colon, attribute = name.partition(":")
    if not (home and colon and attribute):
        raise ValueError(f"torso {name!r} is neither 'auto' nor of the form 'package.module:Class'")
    try:
        build = getattr(importlib.import_module(home), attribute)
    except ImportError as error:
        raise ValueError(f"torso {name!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ValueError(f"torso {name!r}: module {home!r} has no {attribute!r}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        module = build(spec)
    if not isinstance(module, nn.Module):
        raise ValueError(f"torso {name!r} must be an nn.Module, got {type(module).__name__}")
    if not isinstance(getattr(module, "features", None), int):
        raise ValueError(f"torso {name!r} needs an int attribute `features`, the width of what forward returns")
    return UserTorso(module, spec)


def _channels_first(leaf: Leaf) -> tuple[int, int, int]:
    if len(leaf.shape) == 2:
        return (1, *leaf.shape)
    one, two, three = leaf.shape
    return (three, one, two) if leaf.channels_last else (one, two, three)
