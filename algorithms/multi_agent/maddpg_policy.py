"""The policy of MADDPG: one network per group of agents, and noise for exploration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import linear
from rltrain.algorithms.networks.batched_mlp import BatchedMLP
from rltrain.algorithms.networks.encoder import load_torso
from rltrain.algorithms.protocol import Act, Noise, check_bounded
from rltrain.envs.spec import ActionSpec, AgentGroup, EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory


class ActorNetwork(nn.Module):
    """Logits, or Box actions before the tanh, of each agent of a group, from its own observation; agents share it.

    If `config.agent_ids`, the number of the agent in the group is an additional input, as one-hot.
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
        self.dense = BatchedMLP(inputs, config.widths, action_size(group.action), 1, config.activation, generator)

    def forward(self, obs: Tree) -> Tensor:
        """{group: tree of [..., n, *O]} to [..., n, a]: logits, or actions before the tanh."""
        x = self.features(obs)
        return self.dense.forward(x.flatten(0, -2))[0].view(*x.shape[:-1], -1)

    def rows(self, obs: Tree) -> Tensor:
        """`forward` without gradients, for actors."""
        return self.dense.rows(self.features(obs))

    def features(self, obs: Tree) -> Tensor:
        """[..., n, F]"""
        x = self.encoder.forward(obs[self.group])
        return torch.cat([x, self.one_hot.expand(*x.shape[:-1], self.ids)], -1) if self.ids else x


class MADDPGPolicy(nn.Module):
    """Each agent acts on its own observation.

    Discrete: the legal action of the highest logit; exploring, of the highest logit plus Gumbel noise, a sample of the
    softmax. Box: tanh of the network's output; exploring, plus normal noise of deviation `sigma`, clipped to [-1, 1].

    Args:
        spec:      of several agents.
        config:    the settings of MADDPG.
        streams:   unused.
        generator: for the first weights.

    Raises:
        ValueError: there is a single agent; the actions are neither all Discrete nor all Box; or agents act in turns.
    """

    sigma: Tensor  # [] a buffer, so that it is published with the weights

    def __init__(self, spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__()
        _check(spec)
        self.spec, self.config, self.sequence = spec, config, config.unroll
        self.core_size = 0
        self.discrete = spec.groups[0].action.kind == "discrete"
        self.shapes = [
            (len(group.agents), action_size(group.action)) for group in spec.groups
        ]  # (n, a) of each group: agents, and numbers of an agent's action
        self.actors = nn.ModuleList(ActorNetwork(spec, group, config, generator) for group in spec.groups)
        self.noise = Noise("gumbel" if self.discrete else "normal", sum(n * a for n, a in self.shapes))
        self.register_buffer("sigma", torch.tensor(config.noise))

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """The actions of all agents, [B, *A]. Noise [B, K]: one number per logit or element of a Box action."""
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
        """[B, K] the logits by which `act` chooses."""
        return torch.cat([x.flatten(1) for x in self._rows(obs)], -1)

    def split(self, joint: Tensor | None) -> list[Tensor | None]:
        """[..., K] of all agents to [..., n, a] of each group; None to None of each."""
        if joint is None:
            return [None] * len(self.shapes)
        parts = torch.split(joint, [n * a for n, a in self.shapes], -1)
        return [part.view(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def schedule(self, progress: float) -> None:
        """Set sigma for this share of the run."""
        self.sigma.fill_(linear(self.config.noise, self.config.noise_end, progress))

    def observe(self, unrolls: Trajectory) -> None:
        """No running statistics."""

    def _rows(self, obs: Tree) -> list[Tensor]:
        """[B, n, a] of each group."""
        return [actor.rows(obs) for actor in self.actors]  # type: ignore[operator]


def action_size(action: ActionSpec) -> int:
    """Numbers of one agent's action: of a one-hot, or of a Box."""
    return action.nvec[0] if action.kind == "discrete" else action.size


def allowed(logits: Tensor, legal: Tensor | None) -> Tensor:
    """Logits [..., a] with the smallest finite value for illegal actions."""
    return logits if legal is None else logits.masked_fill(~legal, torch.finfo(logits.dtype).min)


def _check(spec: EnvSpec) -> None:
    """Raises ValueError if MADDPG cannot train these agents."""
    kinds = sorted({group.action.kind for group in spec.groups})
    if not kinds:
        raise ValueError(f"maddpg is for several agents; {spec.id} has one agent. Use ddpg, sac or ppo")
    if kinds not in (["box"], ["discrete"]):
        raise ValueError(
            f"maddpg needs agents whose actions are all Discrete or all Box; those of {spec.id} are "
            f"{' and '.join(kinds)}. Use ppo"
        )
    check_bounded(spec)
    if spec.turns:
        raise ValueError(f"the agents of {spec.id} act in turns, which maddpg cannot learn from. Use iql, vdn or qmix")
