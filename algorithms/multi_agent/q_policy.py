"""The policy of QMIX, VDN and IQL: one Q-network per group of agents, and greedy actions by its values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import linear
from rltrain.algorithms.networks.distributions import Categorical
from rltrain.algorithms.networks.encoder import load_torso
from rltrain.algorithms.networks.mlp import MLP
from rltrain.algorithms.networks.recurrent import RecurrentCore, core_size
from rltrain.algorithms.off_policy.q_policy import epsilon_greedy, greedy
from rltrain.algorithms.protocol import Act, Noise
from rltrain.envs.spec import AgentGroup, EnvSpec
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Trajectory


class AgentNetwork(nn.Module):
    """Values Q(o, a) of the actions of each agent of a group; its agents share the parameters.

    Inputs in addition to the observation: if `config.agent_ids`, which agent of the group it is, as one-hot; if
    `config.last_action`, the agent's last action, as one-hot, or zeros if there is none.
    """

    one_hot: Tensor  # [n, n]
    codes: Tensor  # [actions] the code of each action in `last_action`

    def __init__(self, spec: EnvSpec, group: AgentGroup, config: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.agents = len(group.agents)
        (self.actions,) = group.action.nvec
        self.encoder = load_torso(config.torso, spec.single_agent(group), generator)
        self.ids = self.agents if config.agent_ids and self.agents > 1 else 0
        self.register_buffer("one_hot", torch.eye(self.ids), persistent=False)
        self.register_buffer("codes", torch.arange(1, self.actions + 1), persistent=False)
        inputs = self.encoder.features + self.ids + (self.actions if config.last_action else 0)
        self.trunk = MLP(inputs, config.widths, None, config.activation, generator=generator, init=config.init)
        features = self.trunk.features
        self.memory: RecurrentCore | None = None
        if config.memory != "none":
            self.memory = RecurrentCore(features, config.memory_size, generator, config.memory)
            features = config.memory_size
        self.head = MLP(features, (), self.actions, generator=generator, init=config.init)

    def features(self, obs: Tree, last_action: Tensor | None) -> Tensor:
        """tree of [..., n, *O], and codes [..., n] of last actions or None, to [..., n, F]"""
        parts = [self.encoder.forward(obs)]
        if self.ids:
            parts.append(self.one_hot.expand(*parts[0].shape[:-1], self.ids))
        if last_action is not None:
            parts.append((last_action.unsqueeze(-1) == self.codes).to(parts[0].dtype))
        return self.trunk.forward(parts[0] if len(parts) == 1 else torch.cat(parts, -1))

    def forward(self, obs: Tree, starts: Tensor, last_action: Tensor | None) -> Tensor:
        """tree of [T, B, n, *O], and [T, B, n] where the memory is reset, to [T, B, n, actions]"""
        x = self.features(obs, last_action)
        if self.memory is not None:
            rows = x.flatten(1, 2)  # [T, B * n, F]
            core = x.new_zeros(rows.shape[1], self.memory.core_size)
            x = self.memory.unroll(rows, core, starts.flatten(1, 2)).view(*x.shape[:-1], -1)
        return self.head.forward(x)

    def step(self, obs: Tree, core: Tensor | None, last_action: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """tree of [B, n, *O], [B, n * H] and [B, n] to [B, n, actions] and the next core."""
        x = self.features(obs, last_action)
        if self.memory is not None:
            assert core is not None
            after = self.memory.step(x.flatten(0, 1), core.reshape(-1, self.memory.core_size))  # [B * n, H]
            x, core = self.memory.output(after).view(*x.shape[:-1], -1), after.view(x.shape[0], -1)
        return self.head.forward(x), core


class MultiAgentQNetwork(nn.Module):
    """The networks of all groups. A = the largest number of actions; the actions that an agent lacks are illegal."""

    exists: Tensor  # [N, A] bool, the actions that each agent has
    column: Tensor  # [N, A] their indices in the joint action mask

    def __init__(self, spec: EnvSpec, config: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.groups = spec.groups
        self.nets = nn.ModuleList(AgentNetwork(spec, group, config, generator) for group in spec.groups)
        self.sizes = [len(group.agents) for group in spec.groups]
        self.core_sizes = [size * core_size(config.memory, config.memory_size) for size in self.sizes]
        self.agents = sum(self.sizes)
        self.actions = max(spec.action.nvec)
        exists = torch.arange(self.actions) < torch.tensor(spec.action.nvec)[:, None]
        begins = torch.tensor([part.mask.start for part in spec.layout.agents])[:, None]
        self.all_exist = bool(exists.all())
        self.register_buffer("exists", exists, persistent=False)
        self.register_buffer("column", (begins + torch.arange(self.actions)) * exists, persistent=False)

    def forward(self, obs: Tree, starts: Tensor, last_action: Tensor | None = None) -> Tensor:
        """Values [T, B, N, A] of sequences.

        Args:
            obs:         {group: tree of [T, B, n, *O]}
            starts:      [T, B, N] bool, where an agent's memory is reset.
            last_action: [T, B, N] codes, 1 + the agent's action in the row before, 0 for none; None if not an input.
        """
        parts = zip(self.groups, self.nets, torch.split(starts, self.sizes, -1), self._split(last_action), strict=True)
        return self._joint([net(obs[group.name], begins, last) for group, net, begins, last in parts])

    def step(self, obs: Tree, core: Tensor | None, last_action: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Values [B, N, A] of one row and the next core.

        Args:
            obs:         {group: tree of [B, n, *O]}
            core:        [B, C]
            last_action: [B, N] codes as in `forward`.
        """
        values, cores = [], []
        memories: list[Tensor | None] = [None] * len(self.sizes)
        if core is not None:
            memories = list(torch.split(core, self.core_sizes, -1))
        for group, net, memory, last in zip(self.groups, self.nets, memories, self._split(last_action), strict=True):
            assert isinstance(net, AgentNetwork)
            q, after = net.step(obs[group.name], memory, last)
            values.append(q)
            if after is not None:
                cores.append(after)
        return self._joint(values), None if core is None else torch.cat(cores, -1)

    def legal(self, action_mask: Tensor | None) -> Tensor | None:
        """[..., N, A] from a joint mask [..., n]; None if all agents have all actions."""
        if action_mask is not None:
            return action_mask[..., self.column] & self.exists
        return None if self.all_exist else self.exists

    def _split(self, x: Tensor | None) -> list[Tensor | None]:
        """[..., N] to [..., n] of each group."""
        return [None] * len(self.sizes) if x is None else list(torch.split(x, self.sizes, -1))

    def _joint(self, values: list[Tensor]) -> Tensor:
        """[..., n, a] of each group to [..., N, A]"""
        if len(values) == 1:
            return values[0]
        return torch.cat([F.pad(q, (0, self.actions - q.shape[-1])) for q in values], -2)


def network_inputs(batch: Trajectory, last_action: bool) -> tuple[Any, ...]:
    """The arguments of `MultiAgentQNetwork.forward` for a batch: observations, starts, and last actions if asked for.

    An agent's memory is reset where the episode begins and where the agent was absent in the row before.
    """
    assert batch.alive is not None
    starts = batch.first.unsqueeze(-1).expand_as(batch.alive).clone()  # [T+1, B, N]
    starts[1:] |= ~batch.alive[:-1]
    if not last_action:
        return batch.obs, starts
    codes = torch.zeros_like(starts, dtype=batch.action.dtype)
    codes[1:] = batch.action + 1
    return batch.obs, starts, codes.masked_fill_(starts, 0)


def values(net: Any, inputs: tuple[Any, ...], recurrent: bool, rows: slice) -> Tensor:
    """The values [rows, B, N, A] at some rows of the inputs; a network with memory computes all of them."""
    q: Tensor = net(*inputs)[rows] if recurrent else net(*tree_map(lambda x: x[rows], inputs))
    return q


def online_values(net: Any, inputs: tuple[Any, ...], recurrent: bool, double: bool) -> tuple[Tensor, Tensor | None]:
    """The values [T, B, N, A] of the observations, with gradients, and of the next observations, without gradients.

    The latter are None without double Q-learning, which alone needs them.
    """
    if recurrent:
        q = net(*inputs)  # [T+1, B, N, A]
        return q[:-1], q.detach()[1:] if double else None
    q = values(net, inputs, False, slice(None, -1))
    if not double:
        return q, None
    with torch.no_grad():
        last = values(net, inputs, False, slice(-1, None))
    return q, torch.cat([q.detach()[1:], last])


class LastActions(NamedTuple):
    """Stores last actions in the core [B, C]: for each agent its memory, then the code of its last action."""

    agents: int
    memory: int  # numbers of one agent's memory

    def split(self, core: Tensor) -> tuple[Tensor | None, Tensor]:
        """Memories [B, N * memory], None if agents have none, and codes [B, N]"""
        each = core.view(core.shape[0], self.agents, self.memory + 1)
        return (each[..., :-1].flatten(1) if self.memory else None), each[..., -1]

    def join(self, memory: Tensor | None, action: Tensor) -> Tensor:
        """Memories [B, N * memory] and the actions [B, N] of this step to the next core."""
        codes = (action + 1).to(torch.float32)
        if memory is None:
            return codes
        return torch.cat([memory.view(memory.shape[0], self.agents, -1), codes.unsqueeze(-1)], -1).flatten(1)

    def core_with_action(self, core: Tensor, action: Tensor) -> Tensor:
        """See `PolicyHooks`: the core that holds the actions [B, N]."""
        return self.join(self.split(core)[0], action)


class MultiAgentQPolicy(nn.Module):
    """Each agent takes its legal action of highest value; exploring, with probability epsilon, a random legal one.

    Epsilon is a buffer, so that it is published with the weights.

    Args:
        spec:      of several agents.
        config:    the settings of VDN or QMIX.
        streams:   unused.
        generator: for the first weights.

    Raises:
        ValueError: there is a single agent, or some actions are not Discrete.
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
        self.last_actions = LastActions(self.net.agents, core_size(config.memory, config.memory_size))
        self.core_size = self.net.agents * (self.last_actions.memory + config.last_action)
        if config.last_action:
            self.core_with_action = self.last_actions.core_with_action
        self.noise = Noise("uniform", self.net.agents * (1 + self.net.actions))
        self.register_buffer("epsilon", torch.empty(1))
        self.explore(0.0)
        if not self.core_size:
            self.score = self.q

    def explore(self, progress: float) -> float:
        """Set epsilon for this share of the run, and return it."""
        config = self.config
        epsilon = linear(config.epsilon, config.epsilon_end, progress / config.epsilon_share)
        self.epsilon.fill_(epsilon)
        return epsilon

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """The actions of all agents, [B, N]. Noise of an agent: whether it explores, then a score of each action."""
        memory, last = core, None
        if self.config.last_action and core is not None:
            memory, last = self.last_actions.split(core)
        score, memory = self.net.step(obs, memory, last)  # [B, N, A]
        if explore:
            drawn = noise.view(-1, self.net.agents, 1 + self.net.actions)
            score = torch.where(drawn[..., :1] < self.epsilon, drawn[..., 1:], score)
        action = greedy(score, self.net.legal(action_mask))
        return Act(action, {}, self.last_actions.join(memory, action) if self.config.last_action else memory)

    def action_distribution(
        self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor
    ) -> Categorical:
        """See `PolicyHooks`; log probabilities are [B, N], one for each agent."""
        memory, last = core, None
        if self.config.last_action and core is not None:
            memory, last = self.last_actions.split(core)
        return epsilon_greedy(self.net.step(obs, memory, last)[0], self.net.legal(action_mask), self.epsilon)

    def q(self, obs: Tree, explore: bool = False) -> Tensor:
        """[B, N, A] the values at obs {group: [B, n, *O]} by which `act` chooses, without memory."""
        return self.net.step(obs, None)[0]

    def observe(self, unrolls: Trajectory) -> None:
        """No running statistics."""
