"""What actors of MADDPG run: a network for each group, and for each agent what it puts out, with noise on it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import linear
from rltrain.algorithms.networks.batched_mlp import BatchedMLP
from rltrain.algorithms.networks.encoder import load_torso
from rltrain.algorithms.protocol import Act, Noise
from rltrain.envs.spec import ActionSpec, AgentGroup, EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory


class ActorNetwork(nn.Module):
    """What each agent of a group puts out for its action, of what it alone sees. They share the network.

    Agents that share see which of them they are, as one-hot, if `config.agent_ids`.
    """

    one_hot: Tensor  # [n, n]

    def __init__(self, spec: EnvSpec, group: AgentGroup, config: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.group = group.name
        self.encoder = load_torso(config.torso, spec.single_agent(group), generator)
        count = len(group.agents)
        self.ids = count if config.agent_ids and count > 1 else 0
        self.register_buffer("one_hot", torch.eye(self.ids), persistent=False)
        inputs = self.encoder.features + self.ids
        self.dense = BatchedMLP(inputs, config.widths, numbers(group.action), 1, config.activation, generator)

    def forward(self, obs: Tree) -> Tensor:
        """{group: tree of [..., n, *O]} to [..., n, a]: logits, or what the tanh is taken of."""
        x = self.features(obs)
        return self.dense.forward(x.flatten(0, -2))[0].view(*x.shape[:-1], -1)

    def rows(self, obs: Tree) -> Tensor:
        """The same where there is nothing to learn: what actors run."""
        return self.dense.rows(self.features(obs))

    def features(self, obs: Tree) -> Tensor:
        """[..., n, F]"""
        x = self.encoder.forward(obs[self.group])
        return torch.cat([x, self.one_hot.expand(*x.shape[:-1], self.ids)], -1) if self.ids else x


class MADDPGPolicy(nn.Module):
    """Each agent acts by what it alone sees.

    Discrete: the legal action of the highest logit, while exploring of the highest logit plus Gumbel noise, which is a
    sample of their softmax. Box: tanh of the network's, while exploring plus noise of deviation `sigma`, clipped to
    [-1, 1].

    Args:
        spec:      of several agents.
        config:    the settings of MADDPG.
        streams:   not used.
        generator: for the first weights.

    Raises:
        ValueError: there is one agent, or their actions are neither all Discrete nor all Box, or they act in turns.
    """

    sigma: Tensor  # [] a buffer, so that it travels with the weights

    def __init__(self, spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__()
        _check(spec)
        self.spec, self.config, self.sequence = spec, config, config.unroll
        self.core_size = 0
        self.discrete = spec.groups[0].action.kind == "discrete"
        self.shapes = [(len(group.agents), numbers(group.action)) for group in spec.groups]  # (n, a) of each group
        self.actors = nn.ModuleList(ActorNetwork(spec, group, config, generator) for group in spec.groups)
        self.noise = Noise("gumbel" if self.discrete else "normal", sum(n * a for n, a in self.shapes))
        self.register_buffer("sigma", torch.tensor(config.noise))

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """Everybody's action, [B, *A], from noise [B, K]: a number for each logit, or for each of an action's."""
        actions = []
        for x, legal, drawn in zip(self._rows(obs), self.split(action_mask), self.split(noise), strict=True):
            assert drawn is not None
            if self.discrete:
                actions.append(allowed(x + drawn if explore else x, legal).argmax(-1))  # [B, n]
            else:
                action = torch.tanh(x)
                action = (action + self.sigma * drawn).clamp(-1.0, 1.0) if explore else action
                actions.append(action.flatten(1))  # [B, n * a]
        return Act(torch.cat(actions, -1).view(-1, *self.spec.action.shape), {}, core)

    def score(self, obs: Tree, explore: bool = False) -> Tensor:
        """[B, K] what `act` chooses by."""
        return torch.cat([x.flatten(1) for x in self._rows(obs)], -1)

    def split(self, joint: Tensor | None) -> list[Tensor | None]:
        """[..., K] of all agents as [..., n, a] of each group; None as None of each."""
        if joint is None:
            return [None] * len(self.shapes)
        parts = torch.split(joint, [n * a for n, a in self.shapes], -1)
        return [part.view(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def schedule(self, progress: float) -> None:
        """Set sigma for the share of the run that is done."""
        if self.config.noise_end is not None:
            self.sigma.fill_(linear(self.config.noise, self.config.noise_end, progress))

    def observe(self, unrolls: Trajectory) -> None:
        """It keeps no running statistics."""

    def _rows(self, obs: Tree) -> list[Tensor]:
        """[B, n, a] of each group."""
        return [actor.rows(obs) for actor in self.actors]  # type: ignore[operator]


def numbers(action: ActionSpec) -> int:
    """How many numbers say one agent's action: a one-hot, or those of a Box."""
    return action.nvec[0] if action.kind == "discrete" else math.prod(action.shape)


def allowed(logits: Tensor, legal: Tensor | None) -> Tensor:
    """Logits [..., a], those that are not legal as small as they can be."""
    return logits if legal is None else logits.masked_fill(~legal, torch.finfo(logits.dtype).min)


def _check(spec: EnvSpec) -> None:
    """ValueError with one line where agents are not such as these."""
    kinds = sorted({group.action.kind for group in spec.groups})
    if not kinds:
        raise ValueError(f"maddpg is for several agents; {spec.id} has one agent. Use ddpg, sac or ppo")
    if kinds not in (["box"], ["discrete"]):
        raise ValueError(
            f"maddpg needs agents whose actions are all Discrete or all Box; those of {spec.id} are "
            f"{' and '.join(kinds)}. Use ppo"
        )
    if spec.turns:
        raise ValueError(f"the agents of {spec.id} act in turns, which maddpg cannot learn from. Use iql, vdn or qmix")
