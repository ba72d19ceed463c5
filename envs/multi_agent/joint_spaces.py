"""Groups of agents with equal spaces, and the joint observation, action and mask of all agents."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from rltrain.envs.errors import EnvError
from rltrain.envs.spaces import Writer, action_caster, action_spec, obs_spec, obs_writer
from rltrain.envs.spec import ActionSpec, AgentGroup, Layout, Leaf, ObsSpec

Share = Literal["all", "type", "none"] | Mapping[str, str]


def groups_of(
    name: str,
    agents: Sequence[str],
    observation: Mapping[str, spaces.Space[Any]],
    action: Mapping[str, spaces.Space[Any]],
    share: Share,
    action_bound: float | None = None,
) -> tuple[AgentGroup, ...]:
    """The agents in groups that share a policy, in the order of the first agent of each group.

    Args:
        name:        of the environment, for error messages.
        observation: the space of each agent, without action masks.
        share:       "all": agents with equal spaces share a policy; "type": their names must also be equal except for
                     the number, as in adversary_0 and adversary_1; "none": one policy per agent; or a mapping from
                     agents to the names of policies, where the key `adversary_*` matches all agents whose names start
                     with adversary_ and that have no key of their own.
        action_bound: see `rltrain.envs.spaces.action_spec`.

    Raises:
        EnvError: a space is not supported; some actions are Box and others are not; or `share` does not fit the agents.
    """
    specs = {
        agent: (
            obs_spec(observation[agent], f"the observation space of {agent} of {name}"),
            action_spec(action[agent], f"the action space of {agent} of {name}", action_bound),
        )
        for agent in agents
    }
    policies = None if isinstance(share, str) else _policies(name, agents, share)
    members: dict[Any, list[str]] = {}
    for agent in agents:
        if policies is not None:
            key: Any = policies[agent]
        else:
            kind = repr(specs[agent])
            key = {"all": kind, "type": (kind, type_of(agent)), "none": agent}[str(share)]
        members.setdefault(key, []).append(agent)
    names = list(members) if policies is not None else _names(list(members.values()))
    groups = tuple(
        AgentGroup(policy, tuple(group), *specs[group[0]])
        for policy, group in zip(names, members.values(), strict=True)
    )
    for group in groups:
        first = group.agents[0]
        other = next((agent for agent in group.agents if specs[agent] != specs[first]), None)
        if other is not None:
            raise EnvError(
                f"{name}: {first} and {other} cannot share the policy {group.name!r}: their observation or action "
                "spaces differ"
            )
    if len({group.action.kind == "box" for group in groups}) > 1:
        boxes = [group.name for group in groups if group.action.kind == "box"]
        raise EnvError(
            f"{name}: the actions of {', '.join(boxes)} are Box and those of the others are not; not supported"
        )
    return groups


def _policies(name: str, agents: Sequence[str], share: Mapping[str, str]) -> dict[str, str]:
    """The name of each agent's policy, from a mapping whose keys are agents or patterns."""

    def matches(key: str, agent: str) -> bool:
        return agent.startswith(key[:-1]) if key.endswith("*") else agent == key

    unused = next((key for key in share if not any(matches(key, agent) for agent in agents)), None)
    if unused is not None:
        raise EnvError(f"{name}: share names {unused!r}, which is none of its agents: {', '.join(agents)}")
    policies: dict[str, str] = {}
    for agent in agents:
        keys = [agent] if agent in share else [key for key in share if matches(key, agent)]
        if len(keys) != 1:
            problem = f"{' and '.join(keys)} both match {agent}" if keys else f"{agent} has no policy in share"
            raise EnvError(
                f"{name}: {problem}; add an entry for it, for example {agent} = {next(iter(share.values()))!r}"
            )
        policies[agent] = share[keys[0]]
    return policies


def type_of(agent: str) -> str:
    """The name of an agent without its number: adversary_0 is of type adversary."""
    return re.sub(r"[_-]?\d+$", "", agent) or agent


def _names(groups: list[list[str]]) -> list[str]:
    """A name for each group: the type of its agents if only this group has it, else the name of its first agent."""
    types = [{type_of(agent) for agent in group} for group in groups]
    if len(groups) == 1 and len(types[0]) > 1:
        return ["agents"]
    return [
        type_of(group[0]) if len(kinds) == 1 and types.count(kinds) == 1 else group[0]
        for kinds, group in zip(types, groups, strict=True)
    ]


def joint_obs(groups: Sequence[AgentGroup]) -> ObsSpec:
    """{group: [n, *O]}: the observations of all agents."""

    def stacked(obs: ObsSpec, count: int) -> ObsSpec:
        if isinstance(obs, Leaf):
            kind = "multi_discrete" if obs.kind == "discrete" else obs.kind
            shape = (count, *obs.shape)
            return replace(obs, kind=kind, shape=shape, nvec=obs.nvec * count, start=obs.start * count, stack=0)
        if isinstance(obs, dict):
            return {key: stacked(child, count) for key, child in obs.items()}
        return tuple(stacked(child, count) for child in obs)

    return {group.name: stacked(group.obs, len(group.agents)) for group in groups}


def joint_action(groups: Sequence[AgentGroup]) -> ActionSpec:
    """The actions of all agents: [N, *A] if all have the same shape, else flat."""
    actions = [group.action for group in groups for _ in group.agents]
    shapes = {action.shape for action in actions}
    shape = (len(actions), *shapes.pop()) if len(shapes) == 1 else (sum(action.size for action in actions),)
    if actions[0].kind == "box":
        low = tuple(value for action in actions for value in action.low)
        high = tuple(value for action in actions for value in action.high)
        takes = {action.takes for action in actions}
        return ActionSpec("box", shape, (), low, high, takes=takes.pop() if len(takes) == 1 else "float64")
    nvec = tuple(n for action in actions for n in action.nvec)
    start = tuple(n for action in actions for n in action.start or (0,) * len(action.nvec))
    return ActionSpec("multi_discrete", shape, nvec, start=start if any(start) else ())


def joint_dtype(action: ActionSpec) -> Any:
    """The dtype of a joint action before it is split: one that holds the actions of each agent."""
    if action.kind != "box":
        return np.int64
    return np.float32 if action.takes == "float32" else np.float64


def joint_space(action: ActionSpec) -> spaces.Space[Any]:
    """The space of a joint action; only its dtype is used, by `rltrain.envs.spaces.action_reader`."""
    if action.kind == "box":
        dtype = joint_dtype(action)
        return spaces.Box(np.full(action.shape, -np.inf, dtype), np.full(action.shape, np.inf, dtype), dtype=dtype)
    nvec = np.array(action.nvec, np.int64).reshape(action.shape)
    start = np.array(action.start or (0,) * len(action.nvec), np.int64).reshape(action.shape)
    return spaces.MultiDiscrete(nvec, start=start)


def joint_writer(layout: Layout, observation: Mapping[str, spaces.Space[Any]]) -> Writer:
    """A function `write(arrays, (t, b), obs)` that writes the observations {agent: its own} into an unroll."""
    writers = [
        (part.group.name, part.members.start, agent, obs_writer(observation[agent], f"the observation of {agent}"))
        for part in layout.agents
        for agent in part.names
    ]

    def write(arrays: Any, at: tuple[int, ...], obs: Any) -> None:
        for group, member, agent, write_one in writers:
            write_one(arrays[group], (*at, member), obs[agent])

    return write


def action_splitter(layout: Layout, action: Mapping[str, spaces.Space[Any]]) -> Callable[[np.ndarray], dict[str, Any]]:
    """A function from a joint action, as `action_reader` of the joint space returns it, to the action of each agent."""
    parts: list[tuple[str, slice, tuple[int, ...], Callable[[np.ndarray], Any]]] = []
    for part in layout.agents:
        (agent,) = part.names
        own, dtype = part.group.action, np.dtype(action[agent].dtype)
        cast = _box_caster(own, dtype) if own.kind == "box" else dtype.type if own.shape == () else _astype(dtype)
        parts.append((agent, part.action, own.shape, cast))

    if all(part.group.action.shape == () and part.group.action.kind != "box" for part in layout.agents):
        numbers = [(agent, columns.start, cast) for agent, columns, _, cast in parts]

        def split_numbers(joint: np.ndarray) -> dict[str, Any]:
            flat = joint.reshape(-1)
            return {agent: cast(flat[column]) for agent, column, cast in numbers}

        return split_numbers

    def split(joint: np.ndarray) -> dict[str, Any]:
        flat = joint.reshape(-1)
        return {agent: cast(flat[columns].reshape(shape)) for agent, columns, shape, cast in parts}

    return split


def _box_caster(action: ActionSpec, dtype: np.dtype[Any]) -> Callable[[np.ndarray], np.ndarray]:
    cast = action_caster(action, dtype)
    return (lambda values: np.asarray(cast(values))) if action.shape == () else cast  # see `action_reader`


def _astype(dtype: np.dtype[Any]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values.astype(dtype)


def zeros(space: spaces.Space[Any]) -> Any:
    """An observation of `space` for an agent that is absent: zeros, or the nearest values that the space contains."""
    if isinstance(space, spaces.Dict):
        return {key: zeros(child) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(zeros(child) for child in space.spaces)
    if isinstance(space, spaces.Discrete):
        return np.dtype(space.dtype).type(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return np.array(space.start, space.dtype)
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape), space.low, space.high).astype(space.dtype)
    return np.zeros(space.shape or (), space.dtype)
