"""Several agents as one: groups of those with equal spaces, their joint observation, action and mask."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from rltrain.envs.errors import EnvError
from rltrain.envs.spaces import MASK, action_spec, obs_spec, obs_writer
from rltrain.envs.spec import ActionSpec, AgentGroup, Leaf, ObsSpec

Share = Literal["all", "type", "none"] | Mapping[str, str]


def groups_of(
    name: str,
    agents: Sequence[str],
    observation: Mapping[str, spaces.Space[Any]],
    action: Mapping[str, spaces.Space[Any]],
    share: Share,
) -> tuple[AgentGroup, ...]:
    """Agents in groups, in the order in which the environment lists the first of each.

    Args:
        name:        of the environment, for errors.
        observation: by agent, without masks.
        share:       "all": whoever has equal spaces shares a policy; "type": and whose names differ in their number
                     only, as adversary_0 and adversary_1; "none": nobody shares; or by agent the name of its policy,
                     where `adversary_*` stands for all that begin so and are not named themselves.

    Raises:
        EnvError: a space is not supported, the actions of some are Box and those of others are not, or a policy that is
            named cannot be shared as asked.
    """
    policies = None if isinstance(share, str) else _policies(name, agents, share)
    members: dict[Any, list[str]] = {}
    kinds: dict[str, str] = {}
    for agent in agents:
        obs = obs_spec(observation[agent], f"the observation space of {agent} of {name}")
        act = action_spec(action[agent], f"the action space of {agent} of {name}")
        kinds[agent] = repr((obs, act))
        if policies is not None:
            key: Any = policies[agent]
        else:
            key = {"all": kinds[agent], "type": (kinds[agent], type_of(agent)), "none": agent}[str(share)]
        members.setdefault(key, []).append(agent)
    names = list(members) if policies is not None else _names(list(members.values()))
    for policy, group in zip(names, members.values(), strict=True):
        other = next((agent for agent in group if kinds[agent] != kinds[group[0]]), None)
        if other is not None:
            raise EnvError(
                f"{name}: {group[0]} and {other} cannot share the policy {policy!r}: their spaces of observations or "
                "actions differ"
            )
    found = tuple(
        AgentGroup(
            names[number],
            tuple(group),
            obs_spec(observation[group[0]], f"the observation space of {group[0]} of {name}"),
            action_spec(action[group[0]], f"the action space of {group[0]} of {name}"),
        )
        for number, group in enumerate(members.values())
    )
    if len({group.action.kind == "box" for group in found}) > 1:
        boxes = [group.name for group in found if group.action.kind == "box"]
        raise EnvError(
            f"{name}: the actions of {', '.join(boxes)} are Box and those of the others are not; not supported"
        )
    return found


def _policies(name: str, agents: Sequence[str], share: Mapping[str, str]) -> dict[str, str]:
    """The name of each agent's policy."""
    fitting = {key: [agent for agent in agents if _fits(key, agent)] for key in share}
    for key, found in fitting.items():
        if not found:
            raise EnvError(f"{name}: share names {key!r}, which is none of its agents: {', '.join(agents)}")
    named: dict[str, str] = {}
    for agent in agents:
        keys = [agent] if agent in share else [key for key, found in fitting.items() if agent in found]
        if len(keys) != 1:
            what = f"{' and '.join(keys)} both stand for {agent}" if keys else f"{agent} has no policy in share"
            raise EnvError(
                f"{name}: {what}; give it one by its own name, as in {agent} = {next(iter(share.values()))!r}"
            )
        named[agent] = share[keys[0]]
    return named


def _fits(key: str, agent: str) -> bool:
    return agent.startswith(key[:-1]) if key.endswith("*") else agent == key


def type_of(agent: str) -> str:
    """An agent's name without its number: adversary_0 is an adversary."""
    return re.sub(r"[_-]?\d+$", "", agent) or agent


def _names(groups: list[list[str]]) -> list[str]:
    """One for each group: the type of its agents if they have one and no other group has it, else its first agent."""
    types = [sorted({type_of(agent) for agent in group}) for group in groups]
    known = [kinds[0] for kinds in types if len(kinds) == 1]
    if len(groups) == 1 and len(types[0]) > 1:
        return ["agents"]
    return [
        kinds[0] if len(kinds) == 1 and known.count(kinds[0]) == 1 else group[0]
        for kinds, group in zip(types, groups, strict=True)
    ]


def joint_obs(groups: Sequence[AgentGroup]) -> ObsSpec:
    """{group: [n, *O]}: what all agents see."""

    def several(obs: ObsSpec, count: int) -> ObsSpec:
        if isinstance(obs, Leaf):
            kind = "multi_discrete" if obs.kind == "discrete" else obs.kind
            shape = (count, *obs.shape)
            return replace(obs, kind=kind, shape=shape, nvec=obs.nvec * count, start=obs.start * count, stack=0)
        if isinstance(obs, dict):
            return {key: several(child, count) for key, child in obs.items()}
        return tuple(several(child, count) for child in obs)

    return {group.name: several(group.obs, len(group.agents)) for group in groups}


def joint_action(groups: Sequence[AgentGroup]) -> ActionSpec:
    """The actions of all agents side by side: [N, *A] where all have the same shape, else flat."""
    each = [group.action for group in groups for _ in group.agents]
    shapes = {action.shape for action in each}
    size = sum(int(np.prod(action.shape, dtype=int)) for action in each)
    shape = (len(each), *shapes.pop()) if len(shapes) == 1 else (size,)
    start: tuple[int, ...] = ()
    if any(action.start for action in each):
        start = tuple(n for action in each for n in action.start or (0,) * len(action.nvec))

    def along(name: str) -> tuple[Any, ...]:
        return tuple(value for action in each for value in getattr(action, name))

    if each[0].kind == "box":
        return ActionSpec("box", shape, (), along("low"), along("high"), takes=each[0].takes)
    return ActionSpec("multi_discrete", shape, along("nvec"), start=start)


def joint_space(action: ActionSpec) -> spaces.Space[Any]:
    """The space of a joint action, as `rltrain.envs.spaces.action_reader` wants it."""
    if action.kind == "box":
        low, high = (np.array(bound, np.float32).reshape(action.shape) for bound in (action.low, action.high))
        return spaces.Box(low, high, dtype=np.float32)
    nvec = np.array(action.nvec, np.int64).reshape(action.shape)
    start = np.array(action.start or (0,) * len(action.nvec), np.int64).reshape(action.shape)
    return spaces.MultiDiscrete(nvec, start=start)


def joint_writer(
    groups: Sequence[AgentGroup], observation: Mapping[str, spaces.Space[Any]]
) -> Callable[[Any, tuple[int, ...], Any], None]:
    """A function `write(arrays, (t, b), obs)` that puts the observations of all agents, by name, into an unroll."""
    writers = [
        (group.name, number, agent, obs_writer(observation[agent]))
        for group in groups
        for number, agent in enumerate(group.agents)
    ]

    def write(arrays: Any, at: tuple[int, ...], obs: Any) -> None:
        for name, number, agent, put in writers:
            put(arrays[name], (*at, number), obs[agent])

    return write


def taker(
    groups: Sequence[AgentGroup], action: Mapping[str, spaces.Space[Any]]
) -> Callable[[np.ndarray], dict[str, Any]]:
    """A function from a joint action, as `action_reader` of the joint space gives it, to each agent's own."""
    parts: list[tuple[str, slice, tuple[int, ...], np.dtype[Any], bool]] = []
    begin = 0
    for group in groups:
        for agent in group.agents:
            shape = group.action.shape
            size = int(np.prod(shape, dtype=int))
            dtype = np.dtype(action[agent].dtype or np.float32)
            parts.append((agent, slice(begin, begin + size), shape, dtype, np.issubdtype(dtype, np.integer)))
            begin += size

    def take(joint: np.ndarray) -> dict[str, Any]:
        flat = joint.reshape(-1)
        found: dict[str, Any] = {}
        for agent, columns, shape, dtype, whole in parts:
            if shape == ():
                found[agent] = dtype.type(flat[columns.start])
            else:
                values = np.rint(flat[columns]) if whole else flat[columns]
                found[agent] = values.reshape(shape).astype(dtype)
        return found

    return take


def without_mask(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """An agent's observation space without the mask in it; what is alone then stands for itself."""
    if not (isinstance(space, spaces.Dict) and MASK in space.spaces):
        return space
    rest = {key: child for key, child in space.spaces.items() if key != MASK}
    return next(iter(rest.values())) if len(rest) == 1 else spaces.Dict(rest)


def zeros(space: spaces.Space[Any]) -> Any:
    """An observation of `space` that says nothing: what stands for an agent that is not there."""
    if isinstance(space, spaces.Dict):
        return {key: zeros(child) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(zeros(child) for child in space.spaces)
    if isinstance(space, spaces.Discrete):
        return int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return np.array(space.start, space.dtype)
    if isinstance(space, spaces.Box):  # within its bounds, which may leave 0 out
        return np.clip(np.zeros(space.shape), space.low, space.high).astype(space.dtype)
    return np.zeros(space.shape or (), space.dtype)
