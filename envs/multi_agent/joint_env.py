"""Environments of several agents behind one interface: PettingZoo's, in parallel or in turns, and Gymnasium's tuples.

`JointEnv` shows each as a Gymnasium environment with a joint action, so that what restores environments, looks at them
and steps them knows one kind. What belongs to single agents is in its info, under `AGENTS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import AECEnv, ParallelEnv

from rltrain.envs.errors import EnvError
from rltrain.envs.multi_agent.joint_spaces import (
    Share,
    groups_of,
    joint_action,
    joint_obs,
    joint_space,
    joint_writer,
    taker,
    without_mask,
    zeros,
)
from rltrain.envs.multi_agent.tuple_env import TupleEnv
from rltrain.envs.spaces import MASK, final_mask, mask_of
from rltrain.envs.spec import EnvSpec
from rltrain.envs.suites.pettingzoo_parallel import quicker

AGENTS = "agents"  # key of an info: the `Told` of this step
STATELESS = ("multiwalker_v9",)  # whose `state` raises once a walker has fallen


class Told(NamedTuple):
    """What a step was to each agent, and what is so after it; in the order of `EnvSpec.agents`."""

    reward: np.ndarray  # [N]
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    alive: np.ndarray  # [N] bool, takes part from here on
    acting: np.ndarray  # [N] bool, acts next
    state: np.ndarray | None  # [*S]


def as_joint_env(made: Any, name: str, share: Share) -> JointEnv:
    """What was made, as an environment of several agents; EnvError if it is nothing of the kind."""
    if isinstance(made, AECEnv):
        return JointEnv(AecAdapter(made), name, share, turns=True)
    if isinstance(made, ParallelEnv):
        return JointEnv(quicker(made), name, share)
    if isinstance(made, gymnasium.Env) and isinstance(made.action_space, spaces.Tuple):
        return JointEnv(TupleEnv(made), name, share)
    raise EnvError(
        f"{name} made a {type(made).__module__}.{type(made).__name__}, which is not a gymnasium.Env. Derive it from "
        "gymnasium.Env, or for several agents from pettingzoo.ParallelEnv or pettingzoo.AECEnv."
    )


class JointEnv(gymnasium.Env[Any, Any]):
    """All agents of a game as one, with a joint action.

    An observation is {agent: its own}, zeros for one that is not there; an agent that leaves is shown once more as it
    left. What a step says of agents that were not there before it, rewards and ends, is not theirs and left out; one
    that is gone without an end has died. The reward is the sum over agents. The episode ends when no agent is left:
    truncated if for one of those that left last it was. An agent that cannot act, since it is not there or it is not
    its turn, has one legal action, 0, which the game is not given.

    Args:
        game:  as PettingZoo's parallel environments are.
        name:  of the environment.
        share: see `rltrain.envs.multi_agent.joint_spaces.groups_of`.
        turns: whether the agents act one after the other.

    Raises:
        EnvError: it does not say which agents there may be, or its spaces are not supported.
    """

    def __init__(self, game: Any, name: str, share: Share, turns: bool = False) -> None:
        possible = getattr(game, "possible_agents", None)
        if not possible:
            raise EnvError(
                f"{name} has no `possible_agents`: name all agents there may ever be, so that arrays have room"
            )
        if not all(isinstance(agent, str) for agent in possible):
            raise EnvError(f"{name} has agents that are no strings: {list(possible)[:3]}")
        self.game, self.name, self.turns = game, name, turns
        self.render_mode = getattr(game, "render_mode", None)
        self.metadata = dict(getattr(game, "metadata", None) or {})
        full = {agent: game.observation_space(agent) for agent in possible}
        seen = {agent: without_mask(space) for agent, space in full.items()}
        does = {agent: game.action_space(agent) for agent in possible}
        self.groups = groups_of(name, list(full), seen, does, share)
        self.agents = tuple(agent for group in self.groups for agent in group.agents)
        self.joint = joint_action(self.groups)
        self.observation_space = spaces.Dict(seen)
        self.action_space = joint_space(self.joint)
        self.write = joint_writer(self.groups, seen)
        self._take = taker(self.groups, does)
        self._place = {agent: number for number, agent in enumerate(self.agents)}
        self._absent = {agent: zeros(space) for agent, space in seen.items()}
        self._in_obs = {agent: seen[agent] is not full[agent] for agent in self.agents}
        self._nvec = [group.action.nvec for group in self.groups for _ in group.agents]
        self._idle = [
            np.concatenate([np.arange(n) == 0 for n in nvec]) if nvec else np.ones(0, bool) for nvec in self._nvec
        ]
        self._masked = self.joint.kind != "box" and (turns or any(self._in_obs.values()))
        self._has_state: bool | None = None  # not known before the first reset
        self._state_shape: tuple[int, ...] | None = None
        if self.metadata.get("name") in STATELESS:
            self._has_state = False

    @property
    def np_random(self) -> np.random.Generator:
        """The game's own generator where it shows one, so that it can be brought back."""
        inner = getattr(getattr(self.game, "unwrapped", self.game), "np_random", None)
        return inner if isinstance(inner, np.random.Generator) else super().np_random

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._np_random = value

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        found = self.game.reset(seed=seed)
        if not isinstance(found, tuple) or len(found) != 2:
            raise EnvError(
                f"{self.name}: reset() of several agents returns two dictionaries by agent, observations and infos; it "
                f"returned {_told(found)}"
            )
        obs, infos = found
        if self.joint.kind != "box":
            self._masked |= bool(_masks(infos))
        if self._has_state is None:
            inner = getattr(self.game, "unwrapped", self.game)
            own = callable(getattr(inner, "state", self.reset))  # rps_v2 keeps data under that name
            self._has_state = own and self._state() is not None
        nobody = np.zeros(len(self.agents), bool)
        return self._shown(obs, infos, set(self.game.agents), np.zeros(len(self.agents)), nobody, nobody.copy())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        mine, before = self._take(action), self._there(self.game.agents)
        found = self.game.step({agent: mine[agent] for agent in self._acts()})
        if not isinstance(found, tuple) or len(found) != 5:
            raise ValueError(
                "step() of several agents returns five dictionaries by agent, observations, rewards, terminations, "
                f"truncations and infos; it returned {_told(found)}"
            )
        obs, rewards, terminations, truncations, infos = found
        reward = self._of_each(rewards, np.float64) * before  # not `game.agents`: who has left got its last reward too
        terminated, truncated = (self._of_each(ends, bool) & before for ends in (terminations, truncations))
        left = {agent for agent in self.game.agents if not (terminations.get(agent) or truncations.get(agent))}
        terminated |= before & ~self._there(left) & ~truncated
        shown, info = self._shown(obs, infos, left, reward, terminated, truncated)
        out_of_time = bool((truncated & ~terminated).any())
        return shown, float(reward.sum()), not left and not out_of_time, not left and out_of_time, info

    def spec_of(self) -> EnvSpec:
        """What an algorithm may know of it, once it was reset."""
        state, inner = self._state(), getattr(self.game, "unwrapped", None)
        of_gym = getattr(getattr(getattr(self.game, "env", None), "spec", None), "max_episode_steps", None)
        limits = (of_gym, getattr(inner, "max_cycles", None), getattr(inner, "_max_episode_steps", None))
        max_steps = next((limit for limit in limits if isinstance(limit, int)), None)
        return EnvSpec(
            self.name,
            joint_obs(self.groups),
            self.joint,
            self._masked,
            max_steps,
            self.groups,
            None if state is None else state.shape,
            self.turns,
        )

    def render(self) -> Any:
        return self.game.render()

    def close(self) -> None:
        self.game.close()

    def _acts(self) -> list[str]:
        return [agent for agent in self.game.agents if not self.turns or agent == self.game.turn]

    def _there(self, agents: Iterable[str]) -> np.ndarray:
        """[N] bool, who is among `agents`."""
        found = np.zeros(len(self.agents), bool)
        for agent in agents:
            found[self._at(agent)] = True
        return found

    def _of_each(self, told: dict[str, Any], dtype: type) -> np.ndarray:
        """[N] what a step told, 0 where it told nothing."""
        found: np.ndarray = np.zeros(len(self.agents), dtype)
        for agent, value in told.items():
            found[self._at(agent)] = value
        return found

    def _at(self, agent: Any) -> int:
        place = self._place.get(agent)
        if place is None:
            raise ValueError(f"agent {agent!r} came in, which is not among `possible_agents`: {', '.join(self.agents)}")
        return place

    def _shown(
        self,
        obs: dict[str, Any],
        infos: dict[str, Any],
        there: set[str],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> tuple[Any, dict[str, Any]]:
        alive = acting = self._there(there)
        if self.turns:
            acting = np.array([agent == self.game.turn for agent in self.agents]) & alive
        shown = {agent: self._own(agent, obs[agent]) if agent in obs else self._absent[agent] for agent in self.agents}
        info: dict[str, Any] = {AGENTS: Told(reward, terminated, truncated, alive, acting, self._state())}
        if not self._masked and self.joint.kind != "box" and (late := _masks(infos)):
            raise ValueError(
                f"agent {late[0]!r} came with a mask of actions in its info, and at the reset nobody had one: give one "
                "from the first reset on, all ones where all is legal"
            )
        if self._masked:
            info[MASK] = np.concatenate([self._legal(n, obs, infos, alive, acting) for n in range(len(self.agents))])
        return shown, info

    def _own(self, agent: str, obs: Any) -> Any:
        """An agent's observation without the mask in it."""
        if not self._in_obs[agent]:
            return obs
        rest = {key: value for key, value in obs.items() if key != MASK}
        return next(iter(rest.values())) if len(rest) == 1 else rest

    def _legal(
        self, n: int, obs: dict[str, Any], infos: dict[str, Any], alive: np.ndarray, acting: np.ndarray
    ) -> np.ndarray:
        """What agent n may do; of one that was seen off just now what it could have done, for a bootstrap."""
        agent = self.agents[n]
        if agent not in obs or (alive[n] and not acting[n]):
            return self._idle[n]
        info, in_obs = infos.get(agent, {}), self._in_obs[agent]
        if not alive[n]:
            return final_mask(obs[agent], info, in_obs, self._nvec[n])
        size = sum(self._nvec[n])
        if not in_obs and MASK not in info:
            return np.ones(size, bool)
        legal = mask_of(obs[agent], info, in_obs)
        if legal.shape != (size,):
            raise ValueError(f"agent {agent!r} has {size} actions, and its mask the shape {legal.shape}")
        return legal

    def _state(self) -> np.ndarray | None:
        if self._has_state is False or not callable(getattr(self.game, "state", None)):
            return None
        try:
            state = np.asarray(self.game.state(), np.float32)
        except NotImplementedError:
            if self._has_state:
                raise
            return None
        if self._state_shape not in (None, state.shape):
            raise ValueError(
                f"state() returned an array of shape {state.shape}, and at the reset one of {self._state_shape}: it "
                "has one shape, whoever is there"
            )
        self._state_shape = state.shape
        return state


class AecAdapter:
    """A PettingZoo environment whose agents act one after the other, as a parallel one: a step is one turn.

    Who is dead is seen off at once. Everybody is observed after each turn; only `turn` acts.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.unwrapped = env, env.unwrapped
        self.possible_agents = getattr(env, "possible_agents", None)
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.render_mode, self.metadata = getattr(env, "render_mode", None), env.metadata

    @property
    def agents(self) -> list[str]:
        env = self.env
        return [agent for agent in env.agents if not (env.terminations[agent] or env.truncations[agent])]

    @property
    def turn(self) -> Any:
        """Who acts next."""
        return self.env.agent_selection if self.env.agents else None

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.env.reset(seed=seed)
        self._see_off()
        return {agent: self.env.observe(agent) for agent in self.agents}, dict(self.env.infos)

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        env, before = self.env, self.agents
        earned = {**env._cumulative_rewards, env.agent_selection: 0.0}  # since each one's own turn, as `last()` says
        env.step(actions[env.agent_selection])
        there = dict.fromkeys([*before, *env.agents])
        obs = {agent: env.observe(agent) for agent in there}
        rewards = {a: float(env._cumulative_rewards.get(a, 0.0)) - float(earned.get(a, 0.0)) for a in there}
        terminations = {agent: bool(env.terminations.get(agent, agent not in env.agents)) for agent in there}
        truncations = {agent: bool(env.truncations.get(agent, False)) for agent in there}
        infos = {agent: env.infos.get(agent, {}) for agent in there}
        self._see_off()
        return obs, rewards, terminations, truncations, infos

    def _see_off(self) -> None:
        env = self.env
        while env.agents and (env.terminations[env.agent_selection] or env.truncations[env.agent_selection]):
            env.step(None)

    def state(self) -> Any:
        return self.env.state()

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def _masks(infos: dict[str, Any]) -> list[str]:
    """The agents whose infos have a mask of actions."""
    return [agent for agent, info in infos.items() if isinstance(info, dict) and MASK in info]


def _told(found: Any) -> str:
    """What was returned, in a few words."""
    return f"{len(found)} values" if isinstance(found, tuple) else f"a {type(found).__name__}"
