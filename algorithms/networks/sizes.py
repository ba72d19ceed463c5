"""Estimates how many weights the networks of an algorithm have, before they are made."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from rltrain.algorithms.networks.cnn import NATURE_SIDE, channels_first
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf, leaf_names


class Part(NamedTuple):
    """A part of an environment that makes a network large."""

    name: str  # such as observation['camera']
    kind: str  # of an observation's Leaf, or "action"
    weights: int  # of one network that belong to it


def largest_parts(spec: EnvSpec, config: Any) -> list[Part]:
    """The weights that each array of the observation and the action need in one network, the largest part first.

    Only the layers next to them are counted, those whose size depends on the environment. A torso of the user's own has
    no estimate.
    """
    torso = getattr(config, "torso", "auto")
    widths = tuple(getattr(config, "widths", ())) or (1,)
    groups = [spec.single_agent(group) for group in spec.groups] or [spec]
    parts: list[Part] = []
    for group in groups:
        if ":" not in torso:
            names = zip(group.leaves(), leaf_names(group.obs), strict=True)
            parts += [Part(name, leaf.kind, _weights(leaf, torso, widths[0])) for leaf, name in names]
        parts.append(Part("the action", "action", _outputs(group.action) * widths[-1]))
    return sorted(parts, key=lambda part: -part.weights)


def _outputs(action: ActionSpec) -> int:
    return max(sum(action.nvec), action.size)


def _weights(leaf: Leaf, torso: str, width: int) -> int:
    """Weights of the encoder of one array, and of the next layer of `width` units."""
    if leaf.kind != "image":
        return (sum(leaf.nvec) or math.prod(leaf.shape)) * width
    _, height, wide = channels_first(leaf)
    if torso == "impala":
        for _ in range(3):
            height, wide = (height + 1) // 2, (wide + 1) // 2
        channels, features = 32, 256
    elif torso == "nature" or min(height, wide) >= NATURE_SIDE:
        for kernel, stride in ((8, 4), (4, 2), (3, 1)):
            height, wide = (height - kernel) // stride + 1, (wide - kernel) // stride + 1
        channels, features = 64, 512
    else:
        height, wide, channels, features = (height + 1) // 2, (wide + 1) // 2, 32, 128
    return max(height, 0) * max(wide, 0) * channels * features + features * width
