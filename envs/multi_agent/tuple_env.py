"""Gymnasium environments of several agents, whose actions, observations and rewards are tuples."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from rltrain.envs.errors import EnvError, InvalidValue
from rltrain.envs.multi_agent.joint_spaces import zeros
from rltrain.envs.spaces import MASK
from rltrain.envs.values import described, end_flag, reset_result, step_result


class TupleEnv:
    """A Gymnasium environment with Tuple spaces, such as lbforaging and rware, with PettingZoo's parallel interface.

    An `action_mask` in its info is a sequence of one mask per agent, or None for an agent without illegal actions.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.unwrapped = env, env.unwrapped
        self.possible_agents = [f"agent_{number}" for number in range(len(env.action_space.spaces))]
        count = len(self.possible_agents)
        if not isinstance(env.observation_space, spaces.Tuple) or len(env.observation_space) != count:
            raise EnvError(
                "a Tuple action space means several agents, each with its own observation: the observation space must "
                f"be a Tuple of {count} too. For one agent make the actions a MultiDiscrete or a Box"
            )
        self.agents: list[str] = []
        self._masked = not all(isinstance(space, spaces.Box) for space in env.action_space)
        self._idle = {agent: zeros(self.action_space(agent)) for agent in self.possible_agents}
        self.render_mode, self.metadata = getattr(env, "render_mode", None), env.metadata

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        space: spaces.Space[Any] = self.env.observation_space[self.possible_agents.index(agent)]
        return space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        space: spaces.Space[Any] = self.env.action_space[self.possible_agents.index(agent)]
        return space

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        obs, info = reset_result(self.env.reset(seed=seed))
        self.agents = list(self.possible_agents)
        return self._by_name(obs, "the observations"), self._infos(info)

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        joint = tuple({**self._idle, **actions}[agent] for agent in self.possible_agents)
        obs, rewards, terminated, truncated, info = step_result(self.env.step(joint))
        ends = [self._ends(terminated, "terminated"), self._ends(truncated, "truncated")]
        if _out_of_time(self.unwrapped):
            ends = [dict.fromkeys(ends[0], False), {agent: ends[0][agent] or ends[1][agent] for agent in ends[0]}]
        before = self.agents
        self.agents = [agent for agent in before if not (ends[0][agent] or ends[1][agent])]
        observations = self._by_name(obs, "the observations")
        return (
            {agent: own for agent, own in observations.items() if agent in before},
            self._by_name(rewards, "the rewards"),
            *ends,
            self._infos(info) if len(self.agents) == len(before) else self._last_infos(info),
        )

    def _ends(self, flags: Any, name: str) -> dict[str, bool]:
        """The flags of all agents: one for each, or one for all of them."""
        if not (isinstance(flags, tuple | list) or np.ndim(flags)):
            return dict.fromkeys(self.possible_agents, end_flag(flags, name))
        return {agent: end_flag(flag, f"{name} of {agent}") for agent, flag in self._by_name(flags, name).items()}

    def _infos(self, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The info of each agent: its mask."""
        masks, count = info.get(MASK), len(self.possible_agents)
        if masks is None or not self._masked:
            return {}
        listed = isinstance(masks, tuple | list) or (isinstance(masks, np.ndarray) and masks.ndim > 0)
        if not listed or len(masks) != count:
            if not self.agents:
                return {}  # after the end of the episode masks may be missing
            raise InvalidValue(
                f"info[{MASK!r}] is {described(masks)}; it must hold a mask for each of {count} agents, in their order"
            )
        by_name = self._by_name(masks, f"info[{MASK!r}]")
        return {agent: {MASK: mask} for agent, mask in by_name.items() if mask is not None}

    def _last_infos(self, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The info of each agent in a step in which agents leave: also what does not concern masks."""
        count, masks = len(self.possible_agents), self._infos(info)
        shared = {key: value for key, value in info.items() if key != MASK}

        def of_agent(value: Any, number: int) -> Any:
            listed = isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.ndim == 1)
            return value[number] if listed and len(value) == count else value

        return {
            agent: {key: of_agent(value, number) for key, value in shared.items()} | masks.get(agent, {})
            for number, agent in enumerate(self.possible_agents)
        }

    def _by_name(self, parts: Any, name: str) -> dict[str, Any]:
        count = len(self.possible_agents)
        listed = isinstance(parts, tuple | list) or (isinstance(parts, np.ndarray) and parts.ndim > 0)
        if not listed or len(parts) != count:
            raise InvalidValue(f"{name} are {described(parts)}; they must be one for each of {count} agents")
        return dict(zip(self.possible_agents, parts, strict=True))

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


# Attributes with the steps of an episode and their limit, of environments that report the limit as a termination.
LIMITS = (("current_step", "_max_episode_steps"), ("_cur_steps", "max_steps"))  # lbforaging, rware


def _out_of_time(env: Any) -> bool:
    """Whether an episode of lbforaging or rware ended only by its time limit; in lbforaging, food must be left."""
    for steps, limit in LIMITS:
        count, most = getattr(env, steps, None), getattr(env, limit, None)
        if isinstance(count, int) and isinstance(most, int) and most and count >= most:
            return bool(np.any(getattr(env, "field", True)))
    return False
