"""Single-agent algorithms for several agents: each group of agents that share a policy learns as if it were alone.

Each agent of a stream is a stream of its own to the algorithm. With PPO this is IPPO (de Witt et al. 2020,
arXiv:2011.09533); with a value function of the global state it is MAPPO (Yu et al. 2022, arXiv:2103.01955).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rltrain.algorithms.multi_agent.global_state import GlobalState
from rltrain.algorithms.multi_agent.settings import MAPPOConfig
from rltrain.algorithms.multi_agent.turns import own_turns
from rltrain.algorithms.on_policy.ppo import PPO
from rltrain.algorithms.protocol import Act, Noise, Stateful, Update, observes
from rltrain.envs.spec import AgentSlice, EnvSpec, Leaf, ObsSpec
from rltrain.rollout.specs import ReplayPlan, StreamPlan
from rltrain.rollout.tree import Tree, leaves, tree_map
from rltrain.rollout.types import Trajectory, Transition, hooks_of

OWN, ID, STATE = "obs", "agent", "state"  # keys of an agent's observation: its own, its number, and the global state
CENTRAL = "central"  # the policy whose value function sees the global state


class GroupView:
    """Data of all agents as data of the agents of one group, each agent as a stream of its own.

    Args:
        spec:  of all agents.
        part:  the group.
        state: the global state, if the value function sees it.

    Attributes:
        spec: of one agent. If the group has several agents, they observe their number too, so that their shared policy
              can tell them apart.
    """

    def __init__(self, spec: EnvSpec, part: AgentSlice, state: GlobalState | None = None) -> None:
        self.part, self.group, self.count, self.state = part, part.group, part.count, state
        self.turns = spec.turns
        self.spec = spec.single_agent(part.group)
        obs: dict[str, ObsSpec] = {OWN: self.spec.obs}
        if self.count > 1:
            obs[ID] = Leaf("discrete", (), "int64", (self.count,))
        if state is not None:
            obs[STATE] = Leaf("box", (state.features,), "float32")
        if len(obs) > 1:
            self.spec = replace(self.spec, obs=obs)

    def obs(self, obs: Tree, axis: int, state: Tensor | None = None) -> Tree:
        """{group: tree of [..., B, n, *O]} to observations of single agents [..., B * n, *O].

        Args:
            axis:  the index of the axis B.
            state: [..., B, S] the global state; None: zeros, for acting.
        """

        def flat(x: Tensor) -> Tensor:
            return x.flatten(axis, axis + 1)

        own = obs[self.group.name]
        first: Tensor = leaves(own)[0]
        shape, device = first.shape[: axis + 2], first.device  # [..., B, n]
        parts = {OWN: tree_map(flat, own)}
        if self.count > 1:
            parts[ID] = flat(torch.arange(self.count, device=device).expand(shape))
        if self.state is not None:
            size = self.state.features
            state = torch.zeros(*shape[:-1], size, device=device) if state is None else state
            parts[STATE] = flat(state.unsqueeze(-2).expand(*shape, size))
        return parts if len(parts) > 1 else parts[OWN]

    def unrolls(self, unrolls: Trajectory, core: slice, prefix: str) -> Trajectory:
        """Unrolls [T, B] of all agents to unrolls [T, B * n] of single agents.

        Rows without the agent are reset rows, and its episode begins where it was absent in the row before. Rows in
        which an opponent of a pool acts for it are rows without it. If agents act in turns, only an agent's own turns
        remain: see `rltrain.algorithms.multi_agent.turns`.

        Args:
            core:   the group's columns of the recurrent state.
            prefix: of the names of the group's extras.
        """
        own = self.columns(unrolls, core, prefix)
        if own.acting is None:
            return own
        assert unrolls.acting is not None
        return own_turns(replace(own, acting=None), own.acting.squeeze(-1), unrolls.acting.shape[-1])

    def steps(self, unrolls: Trajectory, core: slice) -> Trajectory:
        """As `columns`; in games in turns the rows in which others act are reset rows."""
        own = self.columns(unrolls, core)
        if own.acting is None:
            return own
        turn = own.acting[:-1].squeeze(-1) & own.valid
        return replace(own, acting=None, first=torch.cat([own.first[:1], ~turn]))

    def columns(self, unrolls: Trajectory, core: slice, prefix: str = "") -> Trajectory:
        """As `unrolls`; of games in turns all rows, and `acting` [T+1, B * n, 1] says which are the agent's turns."""
        part, count = self.part, self.count
        assert unrolls.alive is not None
        there = unrolls.alive if self.turns or unrolls.acting is None else unrolls.alive & unrolls.acting
        present = unrolls.valid.unsqueeze(-1) & there[:-1, :, part.agents]  # [T, B, n]
        begins = unrolls.first[:1].unsqueeze(-1) | ~there[:1, :, part.agents]
        action = unrolls.action.flatten(2)[..., part.action]

        def flat(x: Tensor) -> Tensor:  # [T, B, n, ...] to [T, B * n, ...]
            return x.flatten(1, 2)

        def split(x: Tensor) -> Tensor:  # [T, B, n * k] to [T, B * n, k]
            return x.reshape(len(x), x.shape[1] * count, -1)

        numbers = torch.arange(count, device=unrolls.stream.device)
        acting = unrolls.acting if self.turns else None
        return Trajectory(
            obs=self.obs(unrolls.obs, 1, None if self.state is None else self.state(unrolls)),
            action=split(action).reshape(len(action), -1, *self.group.action.shape),
            reward=flat(unrolls.reward[..., part.agents]),
            terminated=flat(unrolls.terminated[..., part.agents]),
            truncated=flat(unrolls.truncated[..., part.agents]),
            first=flat(torch.cat([begins, ~present])),
            version=unrolls.version.repeat_interleave(count),
            stream=(unrolls.stream.unsqueeze(-1) * count + numbers).flatten(),
            row=unrolls.row.repeat_interleave(count),
            extras={name: flat(x) for name, x in _with_prefix(unrolls.extras, prefix).items()},
            action_mask=None if unrolls.action_mask is None else split(unrolls.action_mask[..., part.mask]),
            core=None if unrolls.core is None else split(unrolls.core[..., core]),
            num_rows=None if unrolls.num_rows is None else unrolls.num_rows.repeat_interleave(count),
            acting=None if acting is None else flat(acting[..., part.agents]).unsqueeze(-1),
        )


def group_views(spec: EnvSpec, central: bool = False) -> list[GroupView]:
    """The views of all groups. With `central` each value function sees the global state."""
    state = GlobalState(spec) if central else None
    return [GroupView(spec, part, state) for part in spec.layout.groups]


class JointPolicy(nn.Module):
    """The single-agent policies of all groups as one policy that acts for all agents."""

    def __init__(self, spec: EnvSpec, views: Sequence[GroupView], policies: Sequence[Any]) -> None:
        super().__init__()
        self.spec, self.views = spec, views
        self.policies = nn.ModuleList(policies)
        self._policies: list[Any] = list(policies)
        self.sequence = policies[0].sequence
        kinds = {policy.noise.kind for policy in policies}
        if len(kinds) > 1:
            raise ValueError(f"the actions of the groups of {spec.id} need noise of several kinds: {', '.join(kinds)}")
        pairs = list(zip(views, policies, strict=True))
        self._noise = column_slices([view.count * policy.noise.columns for view, policy in pairs])
        self.cores = column_slices([view.count * policy.core_size for view, policy in pairs])
        hold = policies[0].noise.hold  # of the settings, so that of all
        self.noise = Noise(kinds.pop(), self._noise[-1].stop, hold=hold)
        self.core_size = self.cores[-1].stop

    def prefix(self, number: int) -> str:
        """Of the names of a group's extras."""
        return "" if len(self.views) == 1 else f"{number}/"

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        """One decision of all agents for B streams: a joint action [B, *A]."""
        actions, cores, extras, width = (
            [],
            [],
            dict[str, Tensor](),
            noise.shape[0],
        )  # len() would fix the size in a graph
        for number, (view, policy) in enumerate(zip(self.views, self._policies, strict=True)):
            rows = width * view.count
            act = policy.act(
                view.obs(obs, 0),
                None if core is None else core[:, self.cores[number]].reshape(rows, -1),
                None if action_mask is None else action_mask[:, view.part.mask].reshape(rows, -1),
                noise[:, self._noise[number]].reshape(rows, -1),
                explore,
            )
            actions.append(act.action.reshape(width, -1))
            cores.append(None if act.core is None else act.core.reshape(width, -1))
            for name, value in act.extras.items():
                extras[self.prefix(number) + name] = value.unflatten(0, (width, view.count))
        joint = torch.cat(actions, -1).view(width, *self.spec.action.shape)
        return Act(joint, extras, None if core is None else torch.cat([one for one in cores if one is not None], -1))

    def summarize_unroll(
        self, extras: dict[str, Tensor], action: Tensor, action_mask: Tensor | None
    ) -> dict[str, Tensor]:
        """See `PolicyHooks`: [T, B, n, ...] of each group."""
        summary: dict[str, Tensor] = {}
        (rows, streams), flat_action = action.shape[:2], action.flatten(2)
        for number, (view, policy) in enumerate(zip(self.views, self._policies, strict=True)):
            prefix, part = self.prefix(number), view.part
            own = {name: x.flatten(1, 2) for name, x in _with_prefix(extras, prefix).items()}
            actions = flat_action[..., part.action].reshape(rows, -1, *view.group.action.shape)
            mask = None if action_mask is None else action_mask[..., part.mask].reshape(*actions.shape[:2], -1)
            for name, x in hooks_of(policy).summarize_unroll(own, actions, mask).items() if own else ():
                summary[prefix + name] = x.reshape(rows, streams, view.count, *x.shape[2:])
        return summary


def joint_policy(
    factory: Callable[..., Any], spec: EnvSpec, config: Any, streams: int, generator: torch.Generator
) -> JointPolicy:
    """The policy of all agents, where `factory` makes the policy of one agent: a `PolicyFactory` for actors."""
    views = group_views(spec, config.policy == CENTRAL)
    return JointPolicy(spec, views, [factory(view.spec, config, streams * view.count, generator) for view in views])


class Independent:
    """One single-agent algorithm for each group of agents.

    An algorithm that learns from recorded data gets a batch for each group: see `rltrain.learner.agent_replays`.

    Args:
        make: the algorithm, as `algorithms.algorithm_class` returns it; it must learn from unrolls in order, or from
              recorded data.

    Raises:
        ValueError: the algorithm keeps its actors' steps in a replay, or its actors compute gradients; or these
            settings do not allow agents that act in turns.
    """

    def __init__(
        self, make: Callable[..., Any], spec: EnvSpec, config: Any, device: torch.device, seed: int, streams: int
    ) -> None:
        self.views = group_views(spec, config.policy == CENTRAL)
        self.inner = [
            make(view.spec, config, device, seed + number, streams * view.count)
            for number, view in enumerate(self.views)
        ]
        self.policy = JointPolicy(spec, self.views, [algorithm.policy for algorithm in self.inner])
        self.plan = self.inner[0].plan
        if isinstance(self.plan, StreamPlan):
            if self.plan.wait != "all":  # the inner algorithms count each agent as a stream
                self.plan = replace(self.plan, wait=min(self.plan.wait, streams))
        elif not (isinstance(self.plan, ReplayPlan) and self.plan.data_only):
            raise ValueError(
                f"this algorithm is for environments of one agent, and {spec.id} is one of several "
                f"({len(spec.agents)}). Use ppo, iql, qmix, vdn or maddpg; with recorded data also bc, cql, "
                "implicit_q, awac or marwil"
            )
        if spec.turns:
            _check_turns(spec, config, self.plan)
        self.observes = any(map(observes, self.inner))
        self._frozen: frozenset[str] = frozenset()

    def freeze(self, names: Sequence[str]) -> None:
        """The policies of these groups act, and neither learn nor update their statistics from now on.

        Raises:
            ValueError: there is no such policy, or none is left that learns; one line.
        """
        known = [view.group.name for view in self.views]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"--freeze {unknown[0]}: there is no such policy; the policies are {', '.join(known)}")
        if set(names) == set(known):
            raise ValueError(f"--freeze {','.join(names)}: no policy is left that learns")
        self._frozen = frozenset(names)

    @property
    def members(self) -> list[Any]:
        """The algorithm of each group that learns."""
        return [self.inner[i] for i in self._learning]

    def member_batches(self, batch: Trajectory | Sequence[Transition | Trajectory]) -> list[Trajectory | Transition]:
        """The unrolls, or samples, of each group that learns: see `MultiMember`."""
        return self._own_unrolls(batch) if isinstance(batch, Trajectory) else [batch[i] for i in self._learning]

    def update(self, batch: Trajectory | Sequence[Transition | Trajectory], progress: float) -> Update:
        """One update of each algorithm that learns; metrics are means over these groups.

        Args:
            batch: unrolls of all agents; or samples of recorded data, a batch for each group.
        """
        return self.update_members(self.member_batches(batch), progress)

    def update_members(self, batches: Sequence[Trajectory | Transition], progress: float) -> Update:
        """The same, of batches as `member_batches` returns them, or of a learner's part of them."""
        pairs = zip(self.members, batches, strict=True)
        updates = [algorithm.update(own, progress).metrics for algorithm, own in pairs]
        names = dict.fromkeys(name for metrics in updates for name in metrics)
        values = {name: [metrics[name] for metrics in updates if name in metrics] for name in names}
        return Update({name: sum(of_groups[1:], of_groups[0]) / len(of_groups) for name, of_groups in values.items()})

    def observe(self, unrolls: Trajectory) -> None:
        """Running statistics of each algorithm that learns."""
        if isinstance(self.plan, StreamPlan):
            each = self._own_unrolls(unrolls)
        else:  # each step that is learned from is seen once, however unrolls are cut
            each = [self.views[i].steps(unrolls, self.policy.cores[i]) for i in self._learning]
        for algorithm, own in zip(self.members, each, strict=True):
            algorithm.observe(own)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold: all policies, and the other parts by the number of their group."""
        rest = {
            f"{number}.{name}": part
            for number, algorithm in enumerate(self.inner)
            for name, part in algorithm.parts().items()
            if name != "policy"
        }
        return {"policy": self.policy, **rest}

    def _own_unrolls(self, unrolls: Trajectory) -> list[Any]:
        """The unrolls of each group that learns."""
        policy = self.policy
        return [self.views[i].unrolls(unrolls, policy.cores[i], policy.prefix(i)) for i in self._learning]

    @property
    def _learning(self) -> list[int]:
        """The numbers of the groups that learn."""
        return [i for i, view in enumerate(self.views) if view.group.name not in self._frozen]


def mappo(spec: EnvSpec, config: MAPPOConfig, device: torch.device, seed: int, streams: int) -> Independent:
    """MAPPO, Yu et al. 2022 (arXiv:2103.01955): PPO for each agent, with a value function of the global state."""
    return Independent(PPO, spec, config, device, seed, streams)


def _check_turns(spec: EnvSpec, config: Any, plan: ReplayPlan | StreamPlan) -> None:
    """Raises ValueError if these settings do not allow agents that act in turns."""
    if config.memory != "none":
        raise ValueError(f"the agents of {spec.id} act in turns, which needs memory none here; iql can use memory")
    if isinstance(plan, StreamPlan) and config.unroll <= len(spec.agents):
        raise ValueError(
            f"the agents of {spec.id} act in turns: unroll must be above their number {len(spec.agents)}, "
            f"got {config.unroll}"
        )


def _with_prefix(extras: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The extras whose names start with `prefix`, without it."""
    return {name[len(prefix) :]: x for name, x in extras.items() if name.startswith(prefix)}


def column_slices(sizes: Sequence[int]) -> list[slice]:
    """Consecutive slices of these sizes."""
    return [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
