"""Encoders: observations of any space to a flat vector of features, and the torsos that users bring."""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from rltrain.algorithms.networks.cnn import CNNS, NATURE_SIDE, NatureCNN, SmallCNN, arranged, channels_first
from rltrain.algorithms.settings import OWN
from rltrain.envs.spec import EnvSpec, Leaf
from rltrain.rollout.tree import Tree, leaves, tree_map, unflatten


class OneHot(nn.Module):
    """Integers [..., *O] to one-hot vectors [..., sum(nvec)], concatenated."""

    slot: Tensor  # [sum(nvec)] the value that sets this output to 1
    head: Tensor  # [sum(nvec)] index of the integer that this output encodes

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
    """An observation of any space to one flat vector: its leaves are encoded and concatenated in their order.

    Box and multi_binary leaves are flattened, discrete ones become one-hot, and each image has a CNN. Box leaves are
    not normalised here: `Normalizer` does that before.

    Args:
        spec:      the environment.
        features:  width of an image's features; None leaves it to its CNN.
        generator: for the initial weights.
        cnn:       one of CNNS, for all images; None: NatureCNN, or SmallCNN for images that are too small for it.
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
        self.precision: torch.dtype | None = None  # of the CNNs, under autocast
        self.rows: int | None = None  # rows of a batch that are encoded; None: all
        self.nets = nn.ModuleDict()  # of images and integers, by the index of the leaf
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
        """For learners: run the CNNs in `precision`, and compile them at their first use if `compiled`."""
        self.precision = precision
        for i, leaf in enumerate(self.leaves):
            if compiled and leaf.kind == "image":
                self.nets[str(i)].compile()

    def set_active_rows(self, rows: int | None) -> None:
        """For actors: only the first `rows` rows of a batch are used, so that the padding is not convolved."""
        self.rows = None if rows is None else -(-rows // 4) * 4  # a single row would change the bits

    def fast_layout(self, obs: Tree) -> Tree:
        """tree of [N, *O], the same numbers with images in the memory layout that their networks read fastest."""
        if not self.nets:
            return obs
        kinds = zip(self.leaves, leaves(obs), strict=True)
        return unflatten(obs, [arranged(x, leaf) if leaf.kind == "image" else x for leaf, x in kinds])

    def _image(self, net: Any, image: Tensor) -> Tensor:
        padded = self.rows is not None and self.rows < len(image)
        encoded: Tensor = net.some(image, self.rows) if padded else net(image)
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
        return x.reshape(*lead, math.prod(leaf.shape)).to(torch.get_default_dtype())


class UserTorso(nn.Module):
    """A user's module with the interface of Encoder: it always gets [N, *O], whatever the leading dims are."""

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
    [N, features]. Its initial weights are reproducible: torch's global generator is seeded from `generator`.

    Raises:
        ValueError: with one line, if the name or the module is not valid.
    """
    if name == "auto":
        return Encoder(spec, generator=generator)
    if name in CNNS:
        return Encoder(spec, generator=generator, cnn=name)
    home, colon, attribute = name.partition(":")
    if not (home and colon and attribute):
        raise ValueError(f"torso {name!r} is neither 'auto', 'nature', 'impala' nor of the form 'package.module:Class'")
    build = OWN.get(name)
    if build is None:
        try:
            build = getattr(importlib.import_module(home), attribute)
        except ImportError as error:
            raise ValueError(f"torso {name!r} cannot be imported: {error}") from error
        except AttributeError as error:
            raise ValueError(f"torso {name!r}: module {home!r} has no {attribute!r}") from error
    try:
        inspect.signature(build).bind(spec)
    except TypeError as error:
        raise ValueError(f"torso {name!r} is created as {attribute}(spec): {error}") from None
    except ValueError:
        pass  # it has no signature
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        module = build(spec)
    if not isinstance(module, nn.Module):
        raise ValueError(f"torso {name!r} must be an nn.Module, got {type(module).__name__}")
    if not isinstance(getattr(module, "features", None), int):
        raise ValueError(f"torso {name!r} needs an int attribute `features`, the width of what forward returns")
    return UserTorso(module, spec)
