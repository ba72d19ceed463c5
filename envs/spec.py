"""What an algorithm may know about an environment before the first step. No torch, no gymnasium."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

ObsKind = Literal["box", "image", "discrete", "multi_discrete", "multi_binary"]
Padding = Literal["reset", "zero"]
ActionKind = Literal["discrete", "multi_discrete", "multi_binary", "box"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of an observation, as it lies in an unroll.

    dtype is "float32" (box, multi_binary), "uint8" (image) or "int64" (discrete, multi_discrete, counted from 0).
    """

    kind: ObsKind
    shape: tuple[int, ...]
    dtype: str
    nvec: tuple[int, ...] = ()  # sizes, for discrete (one of them) and multi_discrete
    channels_last: bool = False  # images only
    start: tuple[int, ...] = ()  # what the environment counts from, for discrete and multi_discrete; (): from 0
    stack: int = 0  # images only: k, where they are the newest k frames [k, H, W] of the episode, oldest first; else 0
    padding: Padding = "reset"  # what stands for frames before an episode's first: that frame again, or zeros
    high: int = 255  # images only: the largest number in them, which networks see as 1


ObsSpec = Leaf | dict[str, "ObsSpec"] | tuple["ObsSpec", ...]


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """The action as the policy makes it and the unroll holds it: int64 counted from 0, or float32."""

    kind: ActionKind
    shape: tuple[int, ...]  # (): discrete; (n,): the others; Box keeps its own shape
    nvec: tuple[int, ...] = ()  # discrete: (n,); multi_discrete: sizes; multi_binary: 2s
    low: tuple[float, ...] = ()  # box, flattened
    high: tuple[float, ...] = ()
    start: tuple[int, ...] = ()  # what the environment counts from; (): from 0
    takes: str = "float32"  # box: what the environment's own actions are; whole numbers are rounded to

    @property
    def dtype(self) -> str:
        return "float32" if self.kind == "box" else "int64"

    @property
    def mask_size(self) -> int:
        """Width of an action mask: the concatenation over heads, sum(nvec). 0 for Box."""
        return sum(self.nvec)


@dataclass(frozen=True, slots=True)
class AgentGroup:
    """Agents with equal spaces that share a policy. They lie side by side on the axis of agents."""

    name: str
    agents: tuple[str, ...]
    obs: ObsSpec  # of one of them
    action: ActionSpec  # of one of them


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """A stream's view of its environment.

    Several agents are one with a joint action, and an axis N in what each of them gets: `obs` is {group: [n, *O]}, n
    agents of each group; `action` holds the actions of all agents side by side, in the order of the groups, [N] where
    they are Discrete, and its mask is the concatenation over them.
    """

    id: str
    obs: ObsSpec
    action: ActionSpec
    action_mask: bool = False
    max_steps: int | None = None
    groups: tuple[AgentGroup, ...] = ()  # of several agents; (): there is one agent, and no axis N
    state_shape: tuple[int, ...] | None = None  # of what only training sees; None: the environment tells no such thing
    turns: bool = False  # agents act one after the other, a step each

    def leaves(self) -> list[Leaf]:
        """All arrays of the observation, in the order of the tree."""
        return list(walk(self.obs))

    @property
    def agents(self) -> tuple[str, ...]:
        """The names of several agents, in the order of the axis N; () for one agent."""
        return tuple(agent for group in self.groups for agent in group.agents)

    @property
    def each(self) -> tuple[int, ...]:
        """The axes that rewards and ends have behind B: (N,), or () for one agent."""
        return (len(self.agents),) if self.groups else ()

    def optional_fields(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of what lies beside each observation of a stream, those of `BESIDE` that there are."""
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        if self.action_mask:
            found["action_mask"] = (self.action.mask_size,), "bool"
        if self.groups:
            found["alive"] = self.each, "bool"
        if self.turns:
            found["acting"] = self.each, "bool"
        if self.state_shape is not None:
            found["state"] = self.state_shape, "float32"
        return found

    def alone(self, group: AgentGroup) -> EnvSpec:
        """What one agent of a group sees and does."""
        return replace(self, obs=group.obs, action=group.action, groups=(), state_shape=None, turns=False)


BESIDE = ("action_mask", "alive", "acting", "state")  # fields of an unroll with a row for each observation, or None


def walk(obs: ObsSpec) -> Iterator[Leaf]:
    """The leaves of an observation spec: dicts in the order of their sorted keys, tuples in theirs."""
    if isinstance(obs, Leaf):
        yield obs
    elif isinstance(obs, dict):
        for key in sorted(obs):
            yield from walk(obs[key])
    else:
        for child in obs:
            yield from walk(child)


def to_json(spec: EnvSpec) -> dict[str, Any]:
    """Plain data for a checkpoint's meta.json; `from_json` reads it back."""

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
            {
                "name": group.name,
                "agents": list(group.agents),
                "obs": obs(group.obs),
                "action": asdict(group.action),
            }
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
            AgentGroup(one["name"], tuple(one["agents"]), obs(one["obs"]), ActionSpec(**fields(one["action"])))
            for one in data.get("groups", ())
        ),
        state_shape=None if data.get("state_shape") is None else tuple(data["state_shape"]),
        turns=data.get("turns", False),
    )
