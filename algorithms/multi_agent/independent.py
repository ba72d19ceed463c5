"""Algorithms for one agent on several: each group of agents that share a policy learns as if it were alone.

An agent of a stream is a stream of its own to them. IPPO (de Witt et al. 2020, arXiv:2011.09533) is PPO so; MAPPO (Yu
et al. 2022, arXiv:2103.01955) is the same with a value that sees the global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rltrain.algorithms.multi_agent.global_state import _width, global_state
from rltrain.algorithms.multi_agent.settings import MAPPOConfig
from rltrain.algorithms.multi_agent.turns import own_turns
from rltrain.algorithms.on_policy.ppo import PPO
from rltrain.algorithms.protocol import Act, Noise, Stateful, Update, observes
from rltrain.envs.spec import AgentGroup, EnvSpec, Leaf, ObsSpec
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.tree import Tree, leaves, tree_map
from rltrain.rollout.types import Trajectory, hooks_of

OWN, ID = "obs", "agent"  # keys of what an agent sees that shares its policy: its own, and which of them it is
STATE = "state"  # and of what only its value sees, if its policy is called
CENTRAL = "central"


@dataclass(frozen=True)
class AgentSlice:
    """Where a group lies in what all agents have together."""

    group: AgentGroup
    agents: slice  # of the axis N
    action: slice  # of the joint action, flat
    mask: slice  # of its mask
    state: int = 0  # numbers of the global state, where the value sees it; else 0
    everything: tuple[Leaf, ...] = ()  # what all agents see, which the state is made of where none is told

    @property
    def count(self) -> int:
        return len(self.group.agents)

    def seen(self, obs: Tree, lead: int, state: Tensor | None = None) -> Tree:
        """{group: tree of [..., n, *O]} to what single agents see, [..., * n, *O], behind `lead` - 1 dimensions.

        Agents that share a policy see which of them they are too. The state [..., S] is zeros where it is not told, as
        when they act.
        """

        def flat(x: Tensor) -> Tensor:
            return x.flatten(lead - 1, lead)

        own = obs[self.group.name]
        first: Tensor = leaves(own)[0]
        rows, device = first.shape[: lead + 1], first.device  # [..., n]
        if self.count == 1 and not self.state:
            return tree_map(flat, own)
        found = {OWN: tree_map(flat, own)}
        if self.count > 1:
            found[ID] = flat(torch.arange(self.count, device=device).expand(rows))
        if self.state:
            known = torch.zeros(*rows[:-1], self.state, device=device) if state is None else state
            found[STATE] = flat(known.unsqueeze(-2).expand(*rows, self.state))
        return found

    def alone(self, unrolls: Trajectory, core: slice, prefix: str) -> Trajectory:
        """Unrolls [T, B] of all agents as [T, B * n] of these, as if each were a stream of its own.

        A row does not count where the agent was not there; it begins anew where it was not there before. Where agents
        act in turns there are only the rows of its own: see `rltrain.algorithms.multi_agent.turns`.

        Args:
            core:   its columns of the memory.
            prefix: of the names of its extras.
        """
        group, count = self.group, self.count
        assert unrolls.alive is not None
        there = unrolls.valid.unsqueeze(-1) & unrolls.alive[:-1, :, self.agents]  # [T, B, n]
        fresh = unrolls.first[:1].unsqueeze(-1) | ~unrolls.alive[:1, :, self.agents]
        action = unrolls.action.flatten(2)[..., self.action]
        mask = None if unrolls.action_mask is None else unrolls.action_mask[..., self.mask]
        cores = None if unrolls.core is None else unrolls.core[..., core]

        def flat(x: Tensor) -> Tensor:  # [T, B, n, ...]
            return x.flatten(1, 2)

        def each(x: Tensor) -> Tensor:  # [T, B, n * ...]
            return x.reshape(*x.shape[:1], x.shape[1] * count, -1)

        own = Trajectory(
            obs=self.seen(unrolls.obs, 2, global_state(unrolls, self.everything) if self.state else None),
            action=each(action).reshape(len(action), -1, *group.action.shape),
            reward=flat(unrolls.reward[..., self.agents]),
            terminated=flat(unrolls.terminated[..., self.agents]),
            truncated=flat(unrolls.truncated[..., self.agents]),
            first=flat(torch.cat([fresh, ~there])),
            version=unrolls.version.repeat_interleave(count),
            stream=(unrolls.stream.unsqueeze(-1) * count + torch.arange(count, device=unrolls.stream.device)).flatten(),
            row=unrolls.row.repeat_interleave(count),
            extras={name[len(prefix) :]: flat(x) for name, x in unrolls.extras.items() if name.startswith(prefix)},
            action_mask=None if mask is None else each(mask),
            core=None if cores is None else each(cores),
            num_rows=None if unrolls.num_rows is None else unrolls.num_rows.repeat_interleave(count),
        )
        if unrolls.acting is None:
            return own
        return own_turns(own, flat(unrolls.acting[..., self.agents]), unrolls.acting.shape[-1])


def seats(spec: EnvSpec, central: bool = False) -> list[AgentSlice]:
    """The places of all groups; with `central` each value sees the global state."""
    found: list[AgentSlice] = []
    everything = tuple(spec.leaves())
    state = 0
    if central:
        state = sum(map(_width, everything)) if spec.state_shape is None else math.prod(spec.state_shape)
    agent = action = mask = 0
    for group in spec.groups:
        n = len(group.agents)
        actions, masks = n * math.prod(group.action.shape), n * group.action.mask_size
        places = slice(agent, agent + n), slice(action, action + actions), slice(mask, mask + masks)
        found.append(AgentSlice(group, *places, state, everything))
        agent, action, mask = agent + n, action + actions, mask + masks
    return found


def alone_spec(spec: EnvSpec, seat: AgentSlice) -> EnvSpec:
    """What one agent of a group sees and does, as an algorithm for one agent wants it."""
    one = spec.single_agent(seat.group)
    obs: dict[str, ObsSpec] = {OWN: one.obs}
    if seat.count > 1:
        obs[ID] = Leaf("discrete", (), "int64", (seat.count,))
    if seat.state:
        obs[STATE] = Leaf("box", (seat.state,), "float32")
    return replace(one, obs=obs) if len(obs) > 1 else one


class Together(nn.Module):
    """The policies of all groups, each for one agent, as one that acts for all agents."""

    def __init__(self, spec: EnvSpec, places: Sequence[AgentSlice], policies: Sequence[Any]) -> None:
        super().__init__()
        self.spec, self.seats = spec, places
        self.policies = nn.ModuleList(policies)
        self._each: list[Any] = list(policies)
        self.sequence = policies[0].sequence
        kinds = {policy.noise.kind for policy in policies}
        if len(kinds) > 1:
            raise ValueError(f"the actions of the groups of {spec.id} need noise of several kinds: {', '.join(kinds)}")
        self._noise = _columns([s.count * p.noise.columns for s, p in zip(self.seats, policies, strict=True)])
        self.cores = _columns([s.count * p.core_size for s, p in zip(self.seats, policies, strict=True)])
        self.noise = Noise(kinds.pop(), self._noise[-1].stop)
        self.core_size = self.cores[-1].stop

    def prefix(self, number: int) -> str:
        """Of the names of a group's extras."""
        return "" if len(self.seats) == 1 else f"{number}/"

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision of all agents for B streams: a joint action [B, *A]."""
        actions, cores, extras, width = [], [], dict[str, Tensor](), len(noise)
        for number, (seat, policy) in enumerate(zip(self.seats, self._each, strict=True)):
            rows = width * seat.count
            act = policy.act(
                seat.seen(obs, 1),
                None if core is None else core[:, self.cores[number]].reshape(rows, -1),
                None if action_mask is None else action_mask[:, seat.mask].reshape(rows, -1),
                noise[:, self._noise[number]].reshape(rows, -1),
                explore,
            )
            actions.append(act.action.reshape(width, -1))
            cores.append(None if act.core is None else act.core.reshape(width, -1))
            for name, value in act.extras.items():
                extras[self.prefix(number) + name] = value.unflatten(0, (width, seat.count))
        joint = torch.cat(actions, -1).view(width, *self.spec.action.shape)
        return Act(joint, extras, None if core is None else torch.cat([one for one in cores if one is not None], -1))

    def summarize_unroll(
        self, extras: dict[str, Tensor], action: Tensor, action_mask: Tensor | None
    ) -> dict[str, Tensor]:
        """See `PolicyHooks`: [T, B, n, ...] of each group."""
        summary: dict[str, Tensor] = {}
        for number, (seat, policy) in enumerate(zip(self.seats, self._each, strict=True)):
            lead, prefix = action.shape[:2], self.prefix(number)
            own = {name[len(prefix) :]: x.flatten(1, 2) for name, x in extras.items() if name.startswith(prefix)}
            taken = action.flatten(2)[..., seat.action].reshape(lead[0], -1, *seat.group.action.shape)
            mask = None if action_mask is None else action_mask[..., seat.mask].reshape(*taken.shape[:2], -1)
            for name, x in hooks_of(policy).summarize_unroll(own, taken, mask).items() if own else ():
                summary[prefix + name] = x.reshape(*lead, seat.count, *x.shape[2:])
        return summary


def together(
    factory: Callable[..., Any], spec: EnvSpec, config: Any, streams: int, generator: torch.Generator
) -> Together:
    """What `policy_factory` makes for one agent, for all: what actors build."""
    places = seats(spec, config.policy == CENTRAL)
    each = [factory(alone_spec(spec, seat), config, streams * seat.count, generator) for seat in places]
    return Together(spec, places, each)


class Independent:
    """One algorithm for each group of agents; what it learns from is its agents' own.

    Args:
        make: the algorithm, as `algorithms.algorithm_class` gives it; it must learn from unrolls as they come.

    Raises:
        ValueError: it learns from a replay, or of gradients, or cannot learn from agents that act in turns as asked.
    """

    def __init__(
        self, make: Callable[..., Any], spec: EnvSpec, config: Any, device: torch.device, seed: int, streams: int
    ) -> None:
        self.seats = seats(spec, config.policy == CENTRAL)
        self.inner = [
            make(alone_spec(spec, seat), config, device, seed + number, streams * seat.count)
            for number, seat in enumerate(self.seats)
        ]
        self.plan = self.inner[0].plan
        if not isinstance(self.plan, StreamPlan):
            raise ValueError(
                f"this algorithm is for environments of one agent, and {spec.id} is one of several "
                f"({len(spec.agents)}). Use ppo, iql, qmix, vdn or maddpg"
            )
        if self.plan.wait != "all":  # they were told of more streams than there are
            self.plan = replace(self.plan, wait=min(self.plan.wait, streams))
        if spec.turns:
            _can_take_turns(spec, config)
        self.policy = Together(spec, self.seats, [one.policy for one in self.inner])
        self.observes = any(map(observes, self.inner))

    def update(self, unrolls: Trajectory, progress: float) -> Update:
        """One update of each; metrics are means over the groups."""
        told = [one.update(own, progress).metrics for one, own in zip(self.inner, self._own(unrolls), strict=True)]
        names = dict.fromkeys(name for metrics in told for name in metrics)
        values = {name: [metrics[name] for metrics in told if name in metrics] for name in names}
        return Update({name: sum(found[1:], found[0]) / len(found) for name, found in values.items()})

    def observe(self, unrolls: Trajectory) -> None:
        """Running statistics of each."""
        for one, own in zip(self.inner, self._own(unrolls), strict=True):
            one.observe(own)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold: all policies, and the rest of each by the number of its group."""
        rest = {
            f"{number}.{name}": part
            for number, one in enumerate(self.inner)
            for name, part in one.parts().items()
            if name != "policy"
        }
        return {"policy": self.policy, **rest}

    def _own(self, unrolls: Trajectory) -> list[Trajectory]:
        """What each group learns from."""
        policy = self.policy
        return [
            seat.alone(unrolls, policy.cores[number], policy.prefix(number)) for number, seat in enumerate(self.seats)
        ]


def mappo(spec: EnvSpec, config: MAPPOConfig, device: torch.device, seed: int, streams: int) -> Independent:
    """MAPPO, Yu et al. 2022 (arXiv:2103.01955): PPO of each agent, with a value that sees the global state."""
    return Independent(PPO, spec, config, device, seed, streams)


def _can_take_turns(spec: EnvSpec, config: Any) -> None:
    """ValueError where agents that act in turns cannot be learnt from so."""
    if config.memory != "none":
        raise ValueError(f"the agents of {spec.id} act in turns, which needs memory none here; iql can remember")
    if config.unroll <= len(spec.agents):
        raise ValueError(
            f"the agents of {spec.id} act in turns: unroll must be above their number {len(spec.agents)}, "
            f"got {config.unroll}"
        )


def _columns(sizes: Sequence[int]) -> list[slice]:
    """Consecutive slices of these sizes."""
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
