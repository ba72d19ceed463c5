"""Encoders with memory: features of an observation and of those before it, for algorithms that learn from a replay."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rltrain.algorithms.networks.encoder import Encoder, UserTorso, load_torso
from rltrain.algorithms.networks.recurrent import RecurrentCore
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree, tree_map


class History(NamedTuple):
    """Some observations of sequences together with all that a memory needs: the `obs` of a network with memory.

    The first `burn_in` rows only warm the memory up; no gradient passes through them.
    """

    obs: Tree  # [R, B, *O]
    first: Tensor  # [R, B]  bool, rows that begin an episode: the memory before them is empty
    core: Tensor  # [B, C]   the memory of the network that acted, before row 0
    burn_in: int
    at: Tensor  # [N]        int64, the observations: (row - burn_in) * B + column


class MemoryEncoder(nn.Module):
    """An encoder of observations, and a recurrent core on its features.

    Args:
        config: settings with `memory` and `memory_size`.
        acts:   this network acts, so that the replay holds its memory before each sequence (the stored state of R2D2).
                If not, its memory is empty before the first row: only the rows of `burn_in` warm it up.
    """

    def __init__(self, encoder: Encoder | UserTorso, config: Any, generator: torch.Generator, acts: bool) -> None:
        super().__init__()
        self.encoder, self.acts = encoder, acts
        self.memory = RecurrentCore(encoder.features, config.memory_size, generator, config.memory)
        self.features = config.memory_size

    def forward(self, history: History) -> Tensor:
        """The features [N, H] of the observations."""
        obs, first, core, burn_in, at = history
        memory = self.memory
        if not self.acts:
            core = torch.zeros_like(core)
        if burn_in:
            with torch.no_grad():
                warm = self.encoder.forward(tree_map(lambda x: x[:burn_in], obs))
                core = memory.cores(warm, core, first[:burn_in])[-1]
        x = self.encoder.forward(tree_map(lambda x: x[burn_in:], obs))  # [R - burn_in, B, F]
        return memory.unroll(x, core, first[burn_in:]).flatten(0, 1).index_select(0, at)

    def step(self, obs: Tree, core: Tensor) -> tuple[Tensor, Tensor]:
        """tree of [B, *O] and core [B, C] to features [B, H] and the next core, for actors."""
        core = self.memory.step(self.encoder.forward(obs), core)
        return self.memory.output(core), core


def make_encoder(
    spec: EnvSpec, config: Any, generator: torch.Generator, acts: bool
) -> Encoder | UserTorso | MemoryEncoder:
    """The torso of the settings, with a memory if they ask for one."""
    torso = load_torso(config.torso, spec, generator)
    return torso if getattr(config, "memory", "none") == "none" else MemoryEncoder(torso, config, generator, acts)
