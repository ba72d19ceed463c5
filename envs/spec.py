"""What an algorithm may know about an environment before the first step. Imports neither torch nor gymnasium."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

ObsKind = Literal["box", "image", "discrete", "multi_discrete", "multi_binary"]
Padding = Literal["reset", "zero"]
ActionKind = Literal["discrete", "multi_discrete", "multi_binary", "box"]
COSMETIC = ("id", "stack", "padding")  # parts of a spec that do not change what the policy observes and does


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of an observation, as an unroll stores it.

    dtype is "float32" (box, multi_binary), "uint8" (image) or "int64" (discrete, multi_discrete; counted from 0).
    """

    kind: ObsKind
    shape: tuple[int, ...]
    dtype: str
    nvec: tuple[int, ...] = ()  # discrete: the number of values; multi_discrete: one number per element
    channels_last: bool = False  # images only
    start: tuple[int, ...] = ()  # discrete and multi_discrete: the environment's smallest values; (): all 0
    stack: int = 0  # images only: k > 0 if the image is the newest k frames [k, H, W], the oldest first
    padding: Padding = "reset"  # the frames before an episode's first frame: copies of the first frame, or zeros
    high: int = 255  # images only: the largest pixel value, which networks see as 1


ObsSpec = Leaf | dict[str, "ObsSpec"] | tuple["ObsSpec", ...]


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """The action that a policy returns and an unroll stores: int64 counted from 0, or float32."""

    kind: ActionKind
    shape: tuple[int, ...]  # discrete: (); box: the shape of its space; others: (n,)
    nvec: tuple[int, ...] = ()  # discrete: (n,); multi_discrete: one size per head; multi_binary: 2s
    low: tuple[float, ...] = ()  # box, flattened; -inf and inf: no bound
    high: tuple[float, ...] = ()
    start: tuple[int, ...] = ()  # the environment's smallest values; (): all 0
    takes: str = "float32"  # dtype of the environment's own actions; other kinds than box: "float32" is the default one

    @property
    def dtype(self) -> str:
        return "float32" if self.kind == "box" else "int64"

    @property
    def size(self) -> int:
        """Number of values of one action."""
        return math.prod(self.shape)

    @property
    def unbounded(self) -> bool:
        """Whether a number of a Box action lacks a bound."""
        return not all(map(math.isfinite, (*self.low, *self.high)))

    @property
    def mask_size(self) -> int:
        """Width of an action mask: the masks of all heads concatenated, sum(nvec). 0 for Box."""
        return sum(self.nvec)


@dataclass(frozen=True, slots=True)
class AgentGroup:
    """Agents with equal spaces that share one policy. They are adjacent on the axis of agents."""

    name: str
    agents: tuple[str, ...]
    obs: ObsSpec  # of one agent
    action: ActionSpec  # of one agent


@dataclass(frozen=True, slots=True)
class AgentSlice:
    """The index ranges of one agent, or of a whole group, in arrays that hold all agents."""

    group: AgentGroup
    names: tuple[str, ...]
    agents: slice  # of the axis N
    members: slice  # of the group's own axis n, in observations {group: [n, *O]}
    action: slice  # of the joint action, flattened
    mask: slice  # of the joint action mask

    @property
    def count(self) -> int:
        return len(self.names)


class Layout(NamedTuple):
    """The index ranges of all groups and of all agents."""

    groups: tuple[AgentSlice, ...]
    agents: tuple[AgentSlice, ...]  # in the order of the axis N


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """What one stream observes and does.

    Several agents act as one agent with a joint action. Rewards, ends and observations then have an axis of agents:
    `obs` is {group: [n, *O]} with the n agents of each group; `action` holds the actions of all agents in the order of
    the groups, [N] if they are Discrete; the action mask is the concatenation over agents. `layout` has the index
    ranges.
    """

    id: str
    obs: ObsSpec
    action: ActionSpec
    action_mask: bool = False
    max_steps: int | None = None
    groups: tuple[AgentGroup, ...] = ()  # (): a single agent, no axis N
    state_shape: tuple[int, ...] | None = None  # of the global state for training; None: the environment has none
    turns: bool = False  # agents act one after the other, one per step

    def leaves(self) -> list[Leaf]:
        """All arrays of the observation, in the order of the tree."""
        return list(iter_leaves(self.obs))

    @property
    def agents(self) -> tuple[str, ...]:
        """The names of several agents, in the order of the axis N; () for a single agent."""
        return tuple(agent for group in self.groups for agent in group.agents)

    @property
    def agents_shape(self) -> tuple[int, ...]:
        """The axes that rewards and ends have after B: (N,), or () for a single agent."""
        return (len(self.agents),) if self.groups else ()

    @property
    def layout(self) -> Layout:
        """The index ranges of groups and agents in arrays that hold all agents."""
        return layout_of(self.groups)

    def optional_fields(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of those `OPTIONAL_FIELDS` that this environment has."""
        fields: dict[str, tuple[tuple[int, ...], str]] = {}
        if self.action_mask:
            fields["action_mask"] = (self.action.mask_size,), "bool"
        if self.groups:
            fields["alive"] = self.agents_shape, "bool"
        if self.turns:
            fields["acting"] = self.agents_shape, "bool"
        if self.state_shape is not None:
            fields["state"] = self.state_shape, "float32"
        return fields

    def single_agent(self, group: AgentGroup) -> EnvSpec:
        """What one agent of a group observes and does."""
        return replace(self, obs=group.obs, action=group.action, groups=(), state_shape=None, turns=False)


OPTIONAL_FIELDS = ("action_mask", "alive", "acting", "state")  # an unroll has one row per observation, or None


def layout_of(groups: Sequence[AgentGroup]) -> Layout:
    """The index ranges of these groups and of their agents, in the order of the axis N."""
    of_groups: list[AgentSlice] = []
    of_agents: list[AgentSlice] = []
    agent = action = mask = 0

    def part(group: AgentGroup, first: int, count: int) -> AgentSlice:
        """`count` agents of a group from number `first` on."""
        size, masks, begin = group.action.size, group.action.mask_size, agent + first
        return AgentSlice(
            group,
            group.agents[first : first + count],
            slice(begin, begin + count),
            slice(first, first + count),
            slice(action + first * size, action + (first + count) * size),
            slice(mask + first * masks, mask + (first + count) * masks),
        )

    for group in groups:
        of_groups.append(part(group, 0, len(group.agents)))
        of_agents += [part(group, number, 1) for number in range(len(group.agents))]
        agent, action, mask = of_groups[-1].agents.stop, of_groups[-1].action.stop, of_groups[-1].mask.stop
    return Layout(tuple(of_groups), tuple(of_agents))


def iter_leaves(obs: ObsSpec) -> Iterator[Leaf]:
    """The leaves of an observation spec: a dict in the order of its sorted keys, a tuple in its own order."""
    if isinstance(obs, Leaf):
        yield obs
    elif isinstance(obs, dict):
        for key in sorted(obs):
            yield from iter_leaves(obs[key])
    else:
        for child in obs:
            yield from iter_leaves(child)


def leaf_names(obs: ObsSpec, name: str = "observation") -> list[str]:
    """The names of the leaves for messages, such as observation['pos'][0], in the order of `iter_leaves`."""
    if isinstance(obs, Leaf):
        return [name]
    keys: Sequence[Any] = sorted(obs) if isinstance(obs, dict) else range(len(obs))
    return [leaf for key in keys for leaf in leaf_names(obs[key], f"{name}[{key!r}]")]


def to_json(spec: EnvSpec) -> dict[str, Any]:
    """Plain data for the meta.json of a checkpoint; `from_json` is the inverse."""

    def obs(node: ObsSpec) -> Any:
        if isinstance(node, Leaf):
            return {"leaf": asdict(node)}
        if isinstance(node, dict):
            return {"dict": {key: obs(node[key]) for key in sorted(node)}}
        return {"tuple": [obs(child) for child in node]}

    plain = {
        "id": spec.id,
        "obs": obs(spec.obs),
        "action": asdict(spec.action),
        "action_mask": spec.action_mask,
        "max_steps": spec.max_steps,
    }
    if spec.groups:
        plain["groups"] = [
            {"name": group.name, "agents": list(group.agents), "obs": obs(group.obs), "action": asdict(group.action)}
            for group in spec.groups
        ]
        plain |= {"state_shape": spec.state_shape, "turns": spec.turns}
    return plain


def from_json(data: dict[str, Any]) -> EnvSpec:
    """The inverse of `to_json`."""

    def fields(plain: dict[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}

    def obs(node: dict[str, Any]) -> ObsSpec:
        if "leaf" in node:
            return Leaf(**fields(node["leaf"]))
        if "dict" in node:
            return {key: obs(child) for key, child in node["dict"].items()}
        return tuple(obs(child) for child in node["tuple"])

    return EnvSpec(
        id=data["id"],
        obs=obs(data["obs"]),
        action=ActionSpec(**fields(data["action"])),
        action_mask=data["action_mask"],
        max_steps=data["max_steps"],
        groups=tuple(
            AgentGroup(group["name"], tuple(group["agents"]), obs(group["obs"]), ActionSpec(**fields(group["action"])))
            for group in data.get("groups", ())
        ),
        state_shape=None if data.get("state_shape") is None else tuple(data["state_shape"]),
        turns=data.get("turns", False),
    )


def spec_differences(old: EnvSpec, new: EnvSpec, ignored: Collection[str]) -> str:
    """The first differences of two specs, for a message: "" if there are none. Keys in `ignored` are not compared."""
    before, after = _flat_spec(to_json(old)), _flat_spec(to_json(new))
    changed = [
        key
        for key in {**before, **after}
        if before.get(key) != after.get(key) and key.rpartition(".")[2] not in ignored
    ]
    return "; ".join(f"{key} was {before.get(key)}, is {after.get(key)}" for key in changed[:3])


def _flat_spec(node: Any, name: str = "") -> dict[str, Any]:
    """A spec's JSON by path: {"obs.shape": (4,), ...}."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return {name: node}
    flat: dict[str, Any] = {}
    for key, child in node.items():
        flat |= _flat_spec(child, name if key in ("leaf", "dict", "tuple") else f"{name}.{key}".lstrip("."))
    return flat
