"""Networks: an observation of any kind to features, features to outputs, and a memory between.

They act far more often than they are built, so `forward` works on the parameters directly, without a module per layer.
"""

from __future__ import annotations

import importlib
import math
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.images import CNNS as CNNS
from rltrain.algorithms.images import NATURE_SIDE, arranged, channels_first
from rltrain.algorithms.images import ImpalaCNN as ImpalaCNN
from rltrain.algorithms.images import NatureCNN as NatureCNN
from rltrain.algorithms.images import SmallCNN as SmallCNN
from rltrain.algorithms.layers import HIDDEN_GAIN, Layers
from rltrain.algorithms.layers import init_orthogonal as init_orthogonal
from rltrain.envs.spec import EnvSpec, Leaf
from rltrain.rollout.tree import Tree, leaves, tree_map, unflatten

if TYPE_CHECKING:
    from rltrain.algorithms.tape import Tape

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
        cnn:       one of CNNS for all images; None: NatureCNN, or SmallCNN for those too small for it.
    """

    def __init__(
        self,
        spec: EnvSpec,
        features: int | None = None,
        generator: torch.Generator | None = None,
        cnn: str | None = None,
    ) -> None:
        super().__init__()
        self.leaves = spec.leaves()
        self.precision: torch.dtype | None = None  # of images' networks under autocast
        self.rows: int | None = None  # of a batch that are looked at; None: all
        self.nets = nn.ModuleDict()  # of images and whole numbers, by the place of the leaf
        self.features = 0
        for i, leaf in enumerate(self.leaves):
            if leaf.kind == "image":
                small = min(channels_first(leaf)[1:]) < NATURE_SIDE
                if small and cnn == "nature":
                    raise ValueError(f"torso 'nature' needs images of {NATURE_SIDE} pixels a side, got {leaf.shape}")
                build = CNNS[cnn] if cnn else SmallCNN if small else NatureCNN
                net = build(leaf, features, generator) if features else build(leaf, generator=generator)
                self.nets[str(i)], width = net, net.features
            elif leaf.kind in ("discrete", "multi_discrete"):
                one_hot = OneHot(leaf)
                self.nets[str(i)], width = one_hot, one_hot.features
            else:
                width = math.prod(leaf.shape)
            self.features += width
        self.plain = spec.obs == self.leaves[0] and self.leaves[0].kind == "box" and len(self.leaves[0].shape) == 1

    def hasten(self, precision: torch.dtype | None, compiled: bool) -> None:
        """For learners: compute images' features in `precision`, with networks that torch compiles when first used."""
        self.precision = precision
        for i, leaf in enumerate(self.leaves):
            if compiled and leaf.kind == "image":
                self.nets[str(i)].compile()

    def narrow(self, rows: int | None) -> None:
        """For actors: only the first `rows` of a batch are looked at, so those that fill it up are not convolved."""
        self.rows = None if rows is None else -(-rows // 4) * 4  # a single row would have other bits

    def arranged(self, obs: Tree) -> Tree:
        """tree of [N, *O], the same with its images as their networks read them quickest."""
        if not self.nets:
            return obs
        kinds = zip(self.leaves, leaves(obs), strict=True)
        return unflatten(obs, [arranged(x, leaf) if leaf.kind == "image" else x for leaf, x in kinds])

    def _image(self, net: Any, image: Tensor) -> Tensor:
        whole = self.rows is None or self.rows >= len(image)
        encoded: Tensor = net(image) if whole else net.some(image, self.rows)
        return encoded

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
            with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
                encoded = self._image(self.nets[str(i)], x.reshape(-1, *leaf.shape))
            return encoded.reshape(*lead, -1).float() if self.precision else encoded.reshape(*lead, -1)
        if leaf.kind in ("discrete", "multi_discrete"):
            numbers: Tensor = self.nets[str(i)](x)
            return numbers
        return x.reshape(*lead, math.prod(leaf.shape)).float()


class Memory(nn.Module):
    """A GRU (Cho et al. 2014) or an LSTM (Hochreiter and Schmidhuber 1997) that forgets where an episode begins.

    The core is what it carries from row to row: the output [N, H] itself, or for an LSTM output and cell [N, 2H].
    torch's cells give a row the same bits at every width that is a multiple of 16 (tested).
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
        if self.kind == "gru":
            return torch.gru_cell(x, core, *weights)
        return torch.cat(torch.lstm_cell(x, core.chunk(2, -1), *weights), -1)

    def output(self, core: Tensor) -> Tensor:
        """What the network behind it sees [..., H] of a core [..., C]."""
        return core[..., : self.features]

    def unroll(self, x: Tensor, core: Tensor, first: Tensor, sequence: int | None = None) -> Tensor:
        """L steps with their gradient.

        Args:
            x:        [L, N, F]
            core:     [N, C]  before the first row.
            first:    [L, N]  bool, rows that begin an episode: their core is 0 before the step.
            sequence: rows a gradient goes back through; None: all.

        Returns:
            [L, N, H] the output after each row.
        """
        keep = (~first).to(x.dtype).unsqueeze(-1)  # [L, N, 1]
        cores = []
        for t, (row, kept) in enumerate(zip(x.unbind(0), keep.unbind(0), strict=True)):
            if sequence and t and t % sequence == 0:
                core = core.detach()
            core = self.step(row, core * kept)
            cores.append(core)
        return self.output(torch.stack(cores))


def core_size(kind: str, hidden: int) -> int:
    """Numbers that a memory of `hidden` units carries from row to row."""
    return {"none": 0, "gru": 1, "lstm": 2}[kind] * hidden


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
    """The torso called `name`: "auto", "nature" or "impala" for an Encoder, else "module:Class".

    The class is built as `Class(spec)`, has an int `features` and a `forward(obs)` from a tree of [N, *O] to
    [N, features]. Its weights are drawn under a seed from `generator`, so that they repeat.

    Raises:
        ValueError: one line that says what is wrong with it.
    """
    if name == "auto":
        return Encoder(spec, generator=generator)
    if name in CNNS:
        return Encoder(spec, generator=generator, cnn=name)
    home, colon, attribute = name.partition(":")
    if not (home and colon and attribute):
        raise ValueError(f"torso {name!r} is neither 'auto', 'nature', 'impala' nor of the form 'package.module:Class'")
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
