"""Converts between values by agent name and a policy's joint arrays; mean returns of agents and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rltrain.envs.spaces import action_caster, split_mask
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree, leaves
from rltrain.rollout.types import Episode


def write_observations(
    spec: EnvSpec, obs: Mapping[str, Any], masks: Mapping[str, Any], rows: Tree, joint_mask: np.ndarray
) -> None:
    """Write the observations of the agents into the first column of a row. Agents that are not named are absent.

    Args:
        obs:        {agent: observation of the environment}; an observation may contain its action mask.
        masks:      {agent: action mask [n]}, for masks that are not in the observations.
        rows:       {group: tree of [1, B, n, *O]}
        joint_mask: [B, n] of the joint action; all actions are legal before the call.

    Raises:
        ValueError: an agent is unknown, or its observation has the wrong shape.
    """
    unknown = sorted(set(obs) - set(spec.agents))
    if unknown:
        raise ValueError(f"{spec.id} has no agent {unknown[0]!r}; it has {', '.join(spec.agents)}")
    for part in spec.layout.agents:
        group, (agent,) = part.group, part.names
        if agent not in obs:
            continue
        own, mask = split_mask(obs[agent])
        mask = masks.get(agent) if masks.get(agent) is not None else mask
        group_leaves = spec.single_agent(group).leaves()
        for leaf, array, child in zip(group_leaves, leaves(rows[group.name]), leaves(own), strict=True):
            value = np.asarray(child)
            if value.shape != leaf.shape and value.size != int(np.prod(leaf.shape)):
                raise ValueError(f"{agent} of {spec.id} has observations of shape {leaf.shape}; got {value.shape}")
            start = np.array(leaf.start or 0)
            array[0, 0, part.members.start] = (value.reshape(-1) - start).reshape(leaf.shape)
        if mask is not None:
            joint_mask[0, part.mask] = np.asarray(mask, bool)


def split_actions(spec: EnvSpec, joint: np.ndarray, agents: Mapping[str, Any]) -> dict[str, Any]:
    """The actions of the named agents, for the environment.

    Args:
        joint: joint action [*A], with the values of the environment's action spaces.
    """
    flat, actions = joint.reshape(-1), {}
    for part in spec.layout.agents:
        shape, (agent,) = part.group.action.shape, part.names
        if agent in agents:
            action = flat[part.action].reshape(shape)
            if part.group.action.kind == "box":
                action = np.asarray(action_caster(part.group.action, part.group.action.takes)(action))
            actions[agent] = action if shape or part.group.action.kind == "box" else action.item()
    return actions


def mean_returns(spec: EnvSpec, episodes: Sequence[Episode]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean returns by agent and by group, the sum over its agents. Empty for a single agent, or without episodes."""
    returns = [episode.agents for episode in episodes if episode.agents]  # a recording has only their sum
    if not spec.groups or not returns:
        return {}, {}
    by_agent: dict[str, float] = dict(zip(spec.agents, np.mean(returns, 0).tolist(), strict=True))
    return by_agent, {group.name: sum(by_agent[agent] for agent in group.agents) for group in spec.groups}


def return_metrics(prefix: str, spec: EnvSpec, episodes: Sequence[Episode]) -> dict[str, float]:
    """`mean_returns` as metrics: `PREFIX_agents/NAME`, and `PREFIX_groups/NAME` if there are several groups."""
    by_agent, by_group = mean_returns(spec, episodes)
    metrics = {f"{prefix}_agents/{name}": value for name, value in by_agent.items()}
    if len(by_group) > 1:
        metrics |= {f"{prefix}_groups/{name}": value for name, value in by_group.items()}
    return metrics
