"""Several agents as a person has them: what each sees into a policy's arrays, its action back to each, returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree, leaves
from rltrain.rollout.types import Episode

MASK = "action_mask"


def put(spec: EnvSpec, obs: Mapping[str, Any], masks: Mapping[str, Any], rows: Tree, mask: np.ndarray) -> None:
    """Write what the agents see, by name, into the first column of a row; who is not named is not there.

    Args:
        obs:   of each agent, as the environment gives it; a mask may be in it.
        masks: of each agent, where they are not in the observations.
        rows:  {group: tree of [1, B, n, *O]}
        mask:  [B, n] of the joint action, all legal before.

    Raises:
        ValueError: an agent is unknown, or sees something of another shape than the environment's.
    """
    unknown = sorted(set(obs) - set(spec.agents))
    if unknown:
        raise ValueError(f"{spec.id} has no agent {unknown[0]!r}; it has {', '.join(spec.agents)}")
    for part in spec.layout.agents:
        group, (agent,) = part.group, part.names
        if agent not in obs:
            continue
        own, legal = obs[agent], masks.get(agent)
        if isinstance(own, dict) and MASK in own:
            legal = own[MASK] if legal is None else legal
            rest = {key: value for key, value in own.items() if key != MASK}
            own = rest if isinstance(group.obs, dict) else next(iter(rest.values()))
        for leaf, array, value in zip(
            spec.single_agent(group).leaves(), leaves(rows[group.name]), leaves(own), strict=True
        ):
            seen = np.asarray(value)
            if seen.shape != leaf.shape and seen.size != int(np.prod(leaf.shape)):
                raise ValueError(f"{agent} of {spec.id} has observations of shape {leaf.shape}; got {seen.shape}")
            start = np.array(leaf.start or 0)
            array[0, 0, part.members.start] = (seen.reshape(-1) - start).reshape(leaf.shape)
        if legal is not None:
            mask[0, part.mask] = np.asarray(legal, bool)


def actions(spec: EnvSpec, joint: np.ndarray, agents: Mapping[str, Any]) -> dict[str, Any]:
    """The actions of those agents that are named, as the environment takes them.

    Args:
        joint: [*A] as the environment's joint action space has it.
    """
    flat, found = joint.reshape(-1), {}
    for part in spec.layout.agents:
        shape, (agent,) = part.group.action.shape, part.names
        if agent in agents:
            action = flat[part.action].reshape(shape)
            found[agent] = action if shape else int(action)
    return found


def mean_returns(spec: EnvSpec, episodes: Sequence[Episode]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean returns by agent, and by group: the sum over its agents. Empty for one agent, or without episodes."""
    each = [episode.agents for episode in episodes if episode.agents]  # a recording keeps their sum
    if not spec.groups or not each:
        return {}, {}
    means = np.mean(each, 0).tolist()
    by_agent: dict[str, float] = dict(zip(spec.agents, means, strict=True))
    return by_agent, {group.name: sum(by_agent[agent] for agent in group.agents) for group in spec.groups}


def return_metrics(who: str, spec: EnvSpec, episodes: Sequence[Episode]) -> dict[str, float]:
    """The same as metrics: `eval_agents/NAME`, and `eval_groups/NAME` where there are several groups."""
    by_agent, by_group = mean_returns(spec, episodes)
    told = {f"{who}_agents/{name}": value for name, value in by_agent.items()}
    if len(by_group) > 1:
        told |= {f"{who}_groups/{name}": value for name, value in by_group.items()}
    return told
