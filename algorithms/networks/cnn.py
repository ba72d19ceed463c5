"""Convolutional networks for images, each with one linear layer at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rltrain.algorithms.networks.mlp import HIDDEN_GAIN, Layers
from rltrain.envs.spec import Leaf

NATURE_SIDE = 36  # height and width of the smallest image that NatureCNN can process


class _CNN(Layers):
    """Convolutions and one linear layer, with relu after each. Images come as uint8 and are scaled to [0, 1]."""

    def __init__(
        self,
        leaf: Leaf,
        convolutions: Sequence[tuple[int, int, int, int]],  # channels, kernel, stride, padding
        features: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.leaf = leaf
        self.invariant: dict[
            int, bool
        ] = {}  # by number of rows: whether the linear layer's bits are those of the full batch
        channels, height, width = channels_first(leaf)
        self.strides: list[tuple[int, int]] = []  # stride, padding
        for outputs, kernel, stride, padding in convolutions:
            self.add((outputs, channels, kernel, kernel), HIDDEN_GAIN, generator)
            self.strides.append((stride, padding))
            channels = outputs
            height = (height + 2 * padding - kernel) // stride + 1
            width = (width + 2 * padding - kernel) // stride + 1
        self.features = features
        self.add((features, channels * height * width), HIDDEN_GAIN, generator)

    def convolved(self, image: Tensor) -> Tensor:
        """[N, *O] uint8 to the flattened output of the convolutions."""
        x = numbers(image, self.leaf, self.pairs[0][0].dtype, turn=torch.is_grad_enabled())  # [N, C, H, W]
        for i, ((weight, bias), (stride, padding)) in enumerate(zip(self.pairs, self.strides, strict=False)):
            weight = (
                weight if i else weight * (1 / self.leaf.high)
            )  # the weight has fewer elements to scale than the images
            x = torch.relu_(F.conv2d(x, weight, bias, stride, padding))
        return x.flatten(1)

    def forward(self, image: Tensor) -> Tensor:
        """[N, *O] uint8 to [N, features]"""
        return self.dense(self.convolved(image))

    def dense(self, x: Tensor) -> Tensor:
        """The output of the convolutions [N, F] to [N, features]."""
        return torch.relu_(F.linear(x, *self.pairs[-1]))

    def some(self, image: Tensor, rows: int) -> Tensor:
        """The features [N, features] of the first `rows` images of a padded batch [N, *O]; those of the padding are 0.

        A matrix product of fewer rows may have other bits. A test on random numbers, once, shows if it does here.
        """
        x = self.convolved(image[:rows])
        if rows not in self.invariant:
            sample = torch.rand(len(image), x.shape[1], generator=torch.Generator().manual_seed(0)).to(x)
            self.invariant[rows] = torch.equal(self.dense(sample)[:rows], self.dense(sample[:rows]))
        padding = (0, 0, 0, len(image) - rows)
        return F.pad(self.dense(x), padding) if self.invariant[rows] else self.dense(F.pad(x, padding))


def arranged(image: Tensor, leaf: Leaf) -> Tensor:
    """[N, *O] with channels innermost in memory, as `numbers` needs them: once before several passes."""
    first = len(leaf.shape) == 3 and not leaf.channels_last
    return image.contiguous(memory_format=torch.channels_last) if first else image


def numbers(image: Tensor, leaf: Leaf, dtype: torch.dtype, turn: bool = True) -> Tensor:
    """[N, *O] uint8 to [N, C, H, W] floats from 0 to the leaf's highest number, on the device it is on.

    With `turn`, channels are innermost in memory, and stay so after each convolution: 25% less time on CPUs, 50% for
    IMPALA's network. NatureCNN without gradients, as for the few rows of an actor, is slightly faster without.
    """
    if len(leaf.shape) == 2:
        image = image.unsqueeze(1)
    elif leaf.channels_last:
        image = image.permute(0, 3, 1, 2)
    if not turn:
        return image.to(dtype)
    return image.contiguous(memory_format=torch.channels_last).to(dtype)


class NatureCNN(_CNN):
    """The network of Mnih et al. 2015, for images of at least 36 x 36 pixels."""

    def __init__(self, leaf: Leaf, features: int = 512, generator: torch.Generator | None = None) -> None:
        super().__init__(leaf, [(32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)], features, generator)


class SmallCNN(_CNN):
    """A network of our own for images too small for NatureCNN, down to a single pixel."""

    def __init__(self, leaf: Leaf, features: int = 128, generator: torch.Generator | None = None) -> None:
        super().__init__(leaf, [(16, 3, 1, 1), (32, 3, 2, 1)], features, generator)


class ImpalaCNN(_CNN):
    """The residual network of Espeholt et al. 2018 (figure 3, right), for images of any size.

    Three sections of 16, 32 and 32 channels: a convolution, a max over 3x3 with stride 2, and two residual blocks of
    two convolutions each; then one linear layer. All convolutions are 3x3. `width` multiplies the channels.
    """

    def __init__(
        self, leaf: Leaf, features: int = 256, generator: torch.Generator | None = None, width: int = 1
    ) -> None:
        Layers.__init__(self)
        self.leaf = leaf
        self.invariant = {}
        self.features = features
        channels, high, wide = channels_first(leaf)
        for outputs in (16 * width, 32 * width, 32 * width):
            for inputs in (channels, *4 * (outputs,)):
                self.add(
                    (outputs, inputs, 3, 3), 1.0, generator
                )  # with gain sqrt(2) the six residual sums would grow by a factor of 8
            channels, high, wide = outputs, (high + 1) // 2, (wide + 1) // 2
        self.add((features, channels * high * wide), HIDDEN_GAIN, generator)

    def convolved(self, image: Tensor) -> Tensor:
        """[N, *O] uint8 to the flattened output of the convolutions."""
        x = numbers(image, self.leaf, self.pairs[0][0].dtype).mul_(1 / self.leaf.high)
        for section in range(0, len(self.pairs) - 1, 5):
            first, *blocks = self.pairs[section : section + 5]
            x = F.max_pool2d(F.conv2d(x, *first, padding=1), 3, 2, 1)
            for one, two in (blocks[:2], blocks[2:]):
                y = F.conv2d(torch.relu(x), *one, padding=1)
                x = x + F.conv2d(y.relu_(), *two, padding=1)
        return torch.relu(x).flatten(1)


CNNS: dict[str, Callable[..., NatureCNN | SmallCNN | ImpalaCNN]] = {"nature": NatureCNN, "impala": ImpalaCNN}


def channels_first(leaf: Leaf) -> tuple[int, int, int]:
    """Channels, height and width of an image."""
    if len(leaf.shape) == 2:
        return (1, *leaf.shape)
    one, two, three = leaf.shape
    return (three, one, two) if leaf.channels_last else (one, two, three)
