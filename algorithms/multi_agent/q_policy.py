"""What actors of several agents run: a network for each group, and for each agent a choice by its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import linear
from rltrain.algorithms.networks.encoder import load_torso
from rltrain.algorithms.networks.mlp import MLP
from rltrain.algorithms.networks.recurrent import RecurrentCore, core_size
from rltrain.algorithms.off_policy.q_policy import greedy
from rltrain.algorithms.protocol import Act, Noise
from rltrain.envs.spec import AgentGroup, EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory


class AgentNetwork(nn.Module):
    """Values Q(o, a) of the actions of each agent of a group, which share it.

    Agents that share see which of them they are, as one-hot, if `config.agent_ids`; and all see their last action, if
    `config.last_action`: zeros where they have none yet.
    """

    one_hot: Tensor  # [n, n]
    places: Tensor  # [actions] what `last` is for each of them

    def __init__(self, spec: EnvSpec, group: AgentGroup, config: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.agents = len(group.agents)
        (self.actions,) = group.action.nvec
        self.encoder = load_torso(config.torso, spec.single_agent(group), generator)
        self.ids = self.agents if config.agent_ids and self.agents > 1 else 0
        self.register_buffer("one_hot", torch.eye(self.ids), persistent=False)
        self.register_buffer("places", torch.arange(1, self.actions + 1), persistent=False)
        inputs = self.encoder.features + self.ids + (self.actions if config.last_action else 0)
        self.trunk = MLP(inputs, config.widths, None, config.activation, generator=generator, init=config.init)
        features = self.trunk.features
        self.memory: RecurrentCore | None = None
        if config.memory != "none":
            self.memory = RecurrentCore(features, config.memory_size, generator, config.memory)
            features = config.memory_size
        self.head = MLP(features, (), self.actions, generator=generator, init=config.init)

    def features(self, obs: Tree, last: Tensor | None) -> Tensor:
        """tree of [..., n, *O], and last actions [..., n] if they are seen, to [..., n, F]"""
        parts = [self.encoder.forward(obs)]
        if self.ids:
            parts.append(self.one_hot.expand(*parts[0].shape[:-1], self.ids))
        if last is not None:
            parts.append((last.unsqueeze(-1) == self.places).to(parts[0].dtype))
        return self.trunk.forward(parts[0] if len(parts) == 1 else torch.cat(parts, -1))

    def forward(self, obs: Tree, fresh: Tensor, last: Tensor | None) -> Tensor:
        """tree of [T, B, n, *O], and [T, B, n] where memory begins, to [T, B, n, actions]; before it is empty."""
        x = self.features(obs, last)
        if self.memory is not None:
            rows = x.flatten(1, 2)  # [T, B * n, F]
            core = x.new_zeros(rows.shape[1], self.memory.core_size)
            x = self.memory.unroll(rows, core, fresh.flatten(1, 2)).view(*x.shape[:-1], -1)
        return self.head.forward(x)

    def step(self, obs: Tree, core: Tensor | None, last: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """tree of [B, n, *O], [B, n * H] and [B, n] to [B, n, actions] and the next core."""
        x = self.features(obs, last)
        if self.memory is not None:
            assert core is not None
            after = self.memory.step(x.flatten(0, 1), core.reshape(-1, self.memory.core_size))  # [B * n, H]
            x, core = self.memory.output(after).view(*x.shape[:-1], -1), after.view(len(x), -1)
        return self.head.forward(x), core


class MultiAgentQNetwork(nn.Module):
    """The networks of all groups. Groups may have fewer actions than others; what they lack is not legal."""

    exists: Tensor  # [N, A] bool, which actions an agent has
    column: Tensor  # [N, A] where they stand in the mask of the joint action

    def __init__(self, spec: EnvSpec, config: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.groups = spec.groups
        self.nets = nn.ModuleList(AgentNetwork(spec, group, config, generator) for group in spec.groups)
        self.sizes = [len(group.agents) for group in spec.groups]
        self.agents = sum(self.sizes)
        self.actions = max(spec.action.nvec)
        sizes = torch.tensor(spec.action.nvec)
        exists = torch.arange(self.actions) < sizes[:, None]
        self.alike = bool(exists.all())  # all agents have as many actions
        begins = (sizes.cumsum(0) - sizes)[:, None]
        self.register_buffer("exists", exists, persistent=False)
        self.register_buffer("column", (begins + torch.arange(self.actions)) * exists, persistent=False)

    def forward(self, obs: Tree, fresh: Tensor, last: Tensor | None = None) -> Tensor:
        """{group: tree of [T, B, n, *O]}, [T, B, N] where memory begins, and last actions as `step`, to [T, B, N, A]"""
        parts = zip(self.named(), torch.split(fresh, self.sizes, -1), self.apart(last), strict=True)
        return self.together([net.forward(obs[name], begins, did) for (name, net), begins, did in parts])

    def step(self, obs: Tree, core: Tensor | None, last: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """{group: tree of [B, n, *O]} and [B, C] to [B, N, A] and the next core.

        Args:
            last: [B, N] 1 + what each agent did in the step before, or 0 where it did nothing yet; if they see it.
        """
        found, cores, begin, last_of = [], [], 0, self.apart(last)
        for n, (name, net) in enumerate(self.named()):
            size = 0 if net.memory is None else net.agents * net.memory.core_size
            q, after = net.step(obs[name], None if core is None else core[:, begin : begin + size], last_of[n])
            begin += size
            found.append(q)
            if after is not None:
                cores.append(after)
        return self.together(found), None if core is None else torch.cat(cores, -1)

    def named(self) -> Iterator[tuple[str, AgentNetwork]]:
        """The network of each group, by the group's name."""
        for group, net in zip(self.groups, self.nets, strict=True):
            assert isinstance(net, AgentNetwork)
            yield group.name, net

    def apart(self, x: Tensor | None) -> Sequence[Tensor | None]:
        """[..., N] as [..., n] of each group."""
        return [None] * len(self.sizes) if x is None else torch.split(x, self.sizes, -1)

    def together(self, q: list[Tensor]) -> Tensor:
        """[..., n, a] of each group side by side: [..., N, A]"""
        if len(q) == 1:
            return q[0]
        return torch.cat([F.pad(one, (0, self.actions - one.shape[-1])) for one in q], -2)

    def legal(self, action_mask: Tensor | None) -> Tensor | None:
        """[..., N, A] of a joint mask [..., n]; None where all agents have all actions."""
        if action_mask is not None:
            return action_mask[..., self.column] & self.exists
        return None if self.alike else self.exists


class Carried(NamedTuple):
    """Where last actions lie in a core [B, C]: each agent's memory, and behind it 1 + its action, 0 for none yet."""

    agents: int
    memory: int  # numbers of one agent's

    def apart(self, core: Tensor) -> tuple[Tensor | None, Tensor]:
        """[B, N * memory], None where there is none, and last actions [B, N]"""
        each = core.view(len(core), self.agents, self.memory + 1)
        return (each[..., :-1].flatten(1) if self.memory else None), each[..., -1]

    def together(self, memory: Tensor | None, action: Tensor) -> Tensor:
        """[B, N * memory] and the actions [B, N] of this step to the next core."""
        last = (action + 1).to(torch.float32)
        if memory is None:
            return last
        return torch.cat([memory.view(len(memory), self.agents, -1), last.unsqueeze(-1)], -1).flatten(1)

    def core_with_action(self, core: Tensor, action: Tensor) -> Tensor:
        """See `PolicyHooks`: the core that holds the actions [B, N]."""
        return self.together(self.apart(core)[0], action)


class MultiAgentQPolicy(nn.Module):
    """Each agent takes its legal action of highest value; exploring, any legal one with probability epsilon.

    Epsilon is a buffer, so it travels with the weights.

    Args:
        spec:      of several agents.
        config:    the settings of VDN or QMIX.
        streams:   not used.
        generator: for the first weights.

    Raises:
        ValueError: there is one agent, or the actions of some are not Discrete.
    """

    epsilon: Tensor  # [1]

    def __init__(self, spec: EnvSpec, config: Any, streams: int, generator: torch.Generator) -> None:
        super().__init__()
        wrong = [group.name for group in spec.groups if group.action.kind != "discrete"]
        if wrong or not spec.groups:
            what = f"the actions of {', '.join(wrong)} are not" if wrong else "it has one agent"
            raise ValueError(f"this algorithm needs several agents with Discrete actions, and of {spec.id} {what}")
        self.spec, self.config = spec, config
        self.sequence = config.unroll
        self.net = MultiAgentQNetwork(spec, config, generator)
        self.carried = Carried(self.net.agents, core_size(config.memory, config.memory_size))
        self.core_size = self.net.agents * (self.carried.memory + config.last_action)
        if config.last_action:
            self.core_with_action = self.carried.core_with_action
        self.noise = Noise("uniform", self.net.agents * (1 + self.net.actions))
        self.register_buffer("epsilon", torch.empty(1))
        self.explore(0.0)
        if not self.core_size:
            self.score = self.q

    def explore(self, progress: float) -> float:
        """Set epsilon for the share of the run that is done, and return it."""
        config = self.config
        epsilon = linear(config.epsilon, config.epsilon_end, progress / config.epsilon_share)
        self.epsilon.fill_(epsilon)
        return epsilon

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """Everybody's action, [B, N]. Noise, for each agent: whether to explore, then a score of each action."""
        seen, memory = self.config.last_action, core
        last: Tensor | None = None
        if seen and core is not None:
            memory, last = self.carried.apart(core)
        score, memory = self.net.step(obs, memory, last)  # [B, N, A]
        if explore:
            drawn = noise.view(-1, self.net.agents, 1 + self.net.actions)
            score = torch.where(drawn[..., :1] < self.epsilon, drawn[..., 1:], score)
        action = greedy(score, self.net.legal(action_mask))
        return Act(action, {}, self.carried.together(memory, action) if seen else memory)

    def q(self, obs: Tree, explore: bool = False) -> Tensor:
        """[B, N, A] values of the actions at obs {group: [B, n, *O]}, without memory: what `act` chooses by."""
        return self.net.step(obs, None)[0]

    def observe(self, unrolls: Trajectory) -> None:
        """It keeps no running statistics."""
