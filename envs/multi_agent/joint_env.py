"""Shows an environment of several agents as one Gymnasium environment with a joint action.

The game is parallel or in turns (PettingZoo), or a Gymnasium environment with Tuple spaces. So the code that checks,
restores and steps environments handles one interface. What belongs to single agents is in the info, under `AGENTS`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import AECEnv, ParallelEnv

from rltrain.envs.errors import EnvError, InvalidValue
from rltrain.envs.multi_agent.joint_spaces import (
    Share,
    action_splitter,
    groups_of,
    joint_action,
    joint_obs,
    joint_space,
    joint_writer,
    zeros,
)
from rltrain.envs.multi_agent.tuple_env import TupleEnv
from rltrain.envs.spaces import MASK, final_mask, mask_of, split_mask, without_mask
from rltrain.envs.spec import EnvSpec, layout_of
from rltrain.envs.suites.pettingzoo_parallel import faster_view
from rltrain.envs.values import described, end_flag, reward_number

AGENTS = "agents"  # key of an info: the `AgentSteps` of this step
LAST_INFOS = "last_infos"  # key of the last info of an episode: the last info of each agent
STATELESS = ("multiwalker_v9",)  # games whose `state` raises after a walker has fallen


class AgentSteps(NamedTuple):
    """Result of a step for each agent, in the order of `EnvSpec.agents`."""

    reward: np.ndarray  # [N]
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    alive: np.ndarray  # [N] bool, present after the step
    acting: np.ndarray  # [N] bool, acts in the next step
    state: np.ndarray | None  # [*S] the global state after the step


def as_joint_env(made: Any, name: str, share: Share, action_bound: float | None = None) -> JointEnv:
    """The `JointEnv` of a PettingZoo or Tuple environment; EnvError if `made` is neither."""
    if isinstance(made, AECEnv):
        return JointEnv(AecAdapter(made), name, share, action_bound, turns=True)
    if isinstance(made, ParallelEnv):
        return JointEnv(faster_view(made), name, share, action_bound)
    if isinstance(made, gymnasium.Env) and isinstance(made.action_space, spaces.Tuple):
        return JointEnv(TupleEnv(made), name, share, action_bound)
    raise EnvError(
        f"{name} made a {type(made).__module__}.{type(made).__name__}, which is not a gymnasium.Env. Derive it from "
        "gymnasium.Env, or for several agents from pettingzoo.ParallelEnv or pettingzoo.AECEnv."
    )


class JointEnv(gymnasium.Env[Any, Any]):
    """All agents of a game as one agent with a joint action.

    An observation is {agent: its own}; absent agents observe zeros; an agent that leaves is observed once more, in its
    last state. Rewards and ends of agents that were absent before the step are ignored. An agent that disappears
    without an end counts as terminated. The reward is the sum over agents. The episode ends when no agent is left; it
    is truncated if one of the agents that left last was truncated. An agent that cannot act, because it is absent or
    it is not its turn, has one legal action, 0, which is not passed to the game.

    Args:
        game:  has the interface of PettingZoo's parallel environments.
        name:  of the environment.
        share, action_bound: see `rltrain.envs.multi_agent.joint_spaces.groups_of`.
        turns: whether the agents act one after the other.

    Raises:
        EnvError: `possible_agents` is missing, or a space is not supported.
    """

    def __init__(
        self, game: Any, name: str, share: Share, action_bound: float | None = None, turns: bool = False
    ) -> None:
        possible = getattr(game, "possible_agents", None)
        if not possible:
            raise EnvError(
                f"{name} has no `possible_agents`: list all agents that can ever be present, since arrays have a row "
                "for each"
            )
        twice = next((agent for agent in possible if list(possible).count(agent) > 1), None)
        if twice is not None:
            raise EnvError(f"{name} names the agent {twice!r} twice in `possible_agents`; names must differ")
        if not all(isinstance(agent, str) for agent in possible):
            raise EnvError(f"{name} has agents that are not strings: {list(possible)[:3]}")
        self.game, self.name, self.turns = game, name, turns
        self.render_mode = getattr(game, "render_mode", None)
        self.metadata = dict(getattr(game, "metadata", None) or {})
        full = {agent: _space_of(game, "observation_space", agent, name) for agent in possible}
        visible = {agent: without_mask(space) for agent, space in full.items()}
        actions = {agent: _space_of(game, "action_space", agent, name) for agent in possible}
        self.groups = groups_of(name, list(full), visible, actions, share, action_bound)
        layout = layout_of(self.groups)
        self.agents = tuple(agent for part in layout.agents for agent in part.names)
        self.joint = joint_action(self.groups)
        self.observation_space = spaces.Dict(visible)
        self.action_space = joint_space(self.joint)
        self.write = joint_writer(layout, visible)
        self._split = action_splitter(layout, actions)
        self._number = {agent: number for number, agent in enumerate(self.agents)}
        self._all = set(self.agents)
        self._all_flags = np.ones(len(self.agents), bool)
        self._absent = {agent: zeros(space) for agent, space in visible.items()}
        self._mask_in_obs = {agent: visible[agent] is not full[agent] for agent in self.agents}
        self._nvec = [part.group.action.nvec for part in layout.agents]
        self._idle_mask = [np.array([i == 0 for n in nvec for i in range(n)], bool) for nvec in self._nvec]
        self._masked = self.joint.kind != "box" and (turns or any(self._mask_in_obs.values()))
        self._last_infos: dict[str, Any] = {}  # of the agents that have left in this episode
        self._has_state: bool | None = None  # None: not known before the first reset
        self._state_shape: tuple[int, ...] | None = None
        if self.metadata.get("name") in STATELESS:
            self._has_state = False

    @property
    def np_random(self) -> np.random.Generator:
        """The game's own generator if it has one, so that it can be restored."""
        inner = getattr(getattr(self.game, "unwrapped", self.game), "np_random", None)
        return inner if isinstance(inner, np.random.Generator) else super().np_random

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._np_random = value

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        result = self.game.reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            raise InvalidValue(
                "reset() of several agents returns two dictionaries by agent, observations and infos; it returned "
                f"{_kind(result)}"
            )
        obs, infos = result
        _check_dicts(observations=obs, infos=infos)
        if not (agents := self._present()):
            raise InvalidValue("no agent is present after reset: `agents` must name those that begin the episode")
        if self.joint.kind != "box":
            self._masked |= bool(_agents_with_mask(infos))
        if self._has_state is None:
            inner = getattr(self.game, "unwrapped", self.game)
            callable_state = callable(getattr(inner, "state", self.reset))  # rps_v2 keeps data under that name
            self._has_state = callable_state and self._state() is not None
        no_end = np.zeros(len(self.agents), bool)
        self._last_infos = {}
        return self._result(obs, infos, set(agents), np.zeros(len(self.agents)), no_end, no_end.copy())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self._present()
        actions, present = self._split(action), self._flags(set(before))
        acting = [agent for agent in before if not self.turns or agent == self.game.turn]
        result = self.game.step({agent: actions[agent] for agent in acting})
        if not isinstance(result, tuple) or len(result) != 5:
            raise InvalidValue(
                "step() of several agents returns five dictionaries by agent, observations, rewards, terminations, "
                f"truncations and infos; it returned {_kind(result)}"
            )
        obs, rewards, terminations, truncations, infos = result
        _check_dicts(observations=obs, rewards=rewards, terminations=terminations, truncations=truncations, infos=infos)
        reward = self._numbers(rewards) * present  # agents that leave in this step still get their reward
        terminated, truncated = self._ends(terminations, "terminated"), self._ends(truncations, "truncated")
        terminated, truncated = terminated & present, truncated & present
        remaining = {agent for agent in self._present() if not (terminations.get(agent) or truncations.get(agent))}
        terminated |= present & ~self._flags(remaining) & ~truncated
        joint_obs, info = self._result(obs, infos, remaining, reward, terminated, truncated)
        if len(remaining) < len(before):
            self._last_infos |= {agent: infos.get(agent) for agent in before if agent not in remaining}
            info[LAST_INFOS] = self._last_infos
        out_of_time = bool((truncated & ~terminated).any())
        return joint_obs, float(reward.sum()), not remaining and not out_of_time, not remaining and out_of_time, info

    def spec_of(self) -> EnvSpec:
        """The spec of this environment; call `reset` first."""
        state, inner = self._state(), getattr(self.game, "unwrapped", None)
        of_gym = getattr(getattr(getattr(self.game, "env", None), "spec", None), "max_episode_steps", None)
        limits = (of_gym, getattr(inner, "max_cycles", None), getattr(inner, "_max_episode_steps", None))
        return EnvSpec(
            id=self.name,
            obs=joint_obs(self.groups),
            action=self.joint,
            action_mask=self._masked,
            max_steps=next((limit for limit in limits if isinstance(limit, int)), None),
            groups=self.groups,
            state_shape=None if state is None else state.shape,
            turns=self.turns,
        )

    def render(self) -> Any:
        return self.game.render()

    def close(self) -> None:
        self.game.close()

    def _present(self) -> list[str]:
        """The agents that are in the episode, as the game says."""
        agents: Any = self.game.agents
        try:
            return list(agents)
        except TypeError:
            what = described(agents)
            raise InvalidValue(f"`agents` is {what}; it must be the list of the agents in the episode") from None

    def _flags(self, agents: set[str]) -> np.ndarray:
        """[N] bool, True for `agents`."""
        if agents == self._all:
            return self._all_flags.copy()
        return self._values(dict.fromkeys(agents, True), bool)

    def _numbers(self, rewards: dict[str, Any]) -> np.ndarray:
        """The rewards by agent as an array [N]."""
        numbers = dict(rewards)
        for agent, reward in rewards.items():
            if type(reward) is not float and type(reward) is not np.float64:
                numbers[agent] = reward_number(reward, f"the reward of {agent}")
        return self._values(numbers, np.float64)

    def _ends(self, ends: dict[str, Any], name: str) -> np.ndarray:
        """Terminations or truncations by agent as an array [N]."""
        if ends.keys() <= self._all and not [end for end in ends.values() if end is not False]:
            return np.zeros(len(self.agents), bool)
        return self._values({a: end_flag(end, f"{name}[{a!r}]") for a, end in ends.items()}, bool)

    def _values(self, by_agent: dict[str, Any], dtype: type) -> np.ndarray:
        """{agent: value} as an array [N], 0 for agents without a value."""
        values: np.ndarray = np.zeros(len(self.agents), dtype)
        for agent, value in by_agent.items():
            number = self._number.get(agent)
            if number is None:
                raise InvalidValue(f"agent {agent!r} is not among `possible_agents`: {', '.join(self.agents)}")
            values[number] = value
        return values

    def _result(
        self,
        obs: dict[str, Any],
        infos: dict[str, Any],
        present: set[str],
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> tuple[Any, dict[str, Any]]:
        """The joint observation and info after a reset or a step."""
        alive = acting = self._flags(present)
        if self.turns:
            acting = np.array([agent == self.game.turn for agent in self.agents]) & alive
        if missing := present - set(obs):
            agent = min(missing, key=self.agents.index)
            raise InvalidValue(f"agent {agent!r} is in `agents` and has no observation; return one for each agent")
        joint = {
            agent: self._visible(agent, obs[agent]) if agent in obs else self._absent[agent] for agent in self.agents
        }
        info: dict[str, Any] = {AGENTS: AgentSteps(reward, terminated, truncated, alive, acting, self._state())}
        if not self._masked and self.joint.kind != "box" and (late := _agents_with_mask(infos)):
            raise InvalidValue(
                f"the info of agent {late[0]!r} has an action mask, and at the reset no info had one: return one from "
                "the first reset on, all ones if all actions are legal"
            )
        if self._masked:
            masks = [self._legal(n, obs, infos, bool(alive[n]), bool(acting[n])) for n in range(len(self.agents))]
            info[MASK] = np.concatenate(masks)
        return joint, info

    def _visible(self, agent: str, obs: Any) -> Any:
        """An agent's observation without the action mask in it."""
        if not self._mask_in_obs[agent]:
            return obs
        if not isinstance(obs, dict) or MASK not in obs:
            raise InvalidValue(f"the observation of {agent} is {described(obs)}; its space promises the key {MASK!r}")
        return split_mask(obs)[0]

    def _legal(self, n: int, obs: dict[str, Any], infos: dict[str, Any], alive: bool, acting: bool) -> np.ndarray:
        """The action mask of agent n. If the agent left in this step: of its last observation, for the bootstrap."""
        agent = self.agents[n]
        if agent not in obs or (alive and not acting):
            return self._idle_mask[n]
        info, in_obs = infos.get(agent, {}), self._mask_in_obs[agent]
        if not alive:
            return final_mask(obs[agent], info, in_obs, self._nvec[n])
        size = sum(self._nvec[n])
        if not in_obs and MASK not in info:
            return np.ones(size, bool)
        try:
            return mask_of(obs[agent], info, in_obs, size)
        except InvalidValue as error:
            raise InvalidValue(f"agent {agent!r}: {error}") from None

    def _state(self) -> np.ndarray | None:
        """The global state [*S] as float32, or None if the game has none."""
        if self._has_state is False or not callable(getattr(self.game, "state", None)):
            return None
        try:
            state = np.asarray(self.game.state())
        except NotImplementedError:
            if self._has_state:
                raise
            return None
        if state.dtype.kind not in "biuf":
            raise InvalidValue(f"state() returned {described(state)}; the global state is one array of numbers")
        state = state.astype(np.float32)
        promised = getattr(getattr(self.game, "unwrapped", self.game), "state_space", None)
        if isinstance(promised, spaces.Box) and promised.shape != state.shape:
            raise InvalidValue(
                f"state() returned an array of shape {state.shape}, and state_space promises {promised.shape}"
            )
        if self._state_shape not in (None, state.shape):
            raise InvalidValue(
                f"state() returned an array of shape {state.shape}, and at the reset one of {self._state_shape}: its "
                "shape must not depend on which agents are present"
            )
        self._state_shape = state.shape
        return state


class AecAdapter:
    """A PettingZoo environment whose agents act in turns, with the parallel interface: one step is one turn.

    Agents whose episode is over leave at once. All agents are observed after each turn; only `turn` acts.
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
        """The agent that acts next."""
        return self._selected() if self.env.agents else None

    def _selected(self) -> str:
        agent: str = self.env.agent_selection
        if agent not in self.env.terminations or agent not in self.env.truncations:
            raise InvalidValue(f"`agent_selection` is {agent!r}, which is not among `agents`: {self.env.agents}")
        return agent

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.env.reset(seed=seed)
        self._remove_dead_agents()
        return {agent: self.env.observe(agent) for agent in self.agents}, dict(self.env.infos)

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        env, before = self.env, self.agents
        counted = {**env._cumulative_rewards, env.agent_selection: 0.0}  # rewards accumulate since an agent's own turn
        env.step(actions[env.agent_selection])
        agents = dict.fromkeys([*before, *env.agents])
        obs = {agent: env.observe(agent) for agent in agents}
        rewards = {a: float(env._cumulative_rewards.get(a, 0.0)) - float(counted.get(a, 0.0)) for a in agents}
        terminations = {agent: bool(env.terminations.get(agent, agent not in env.agents)) for agent in agents}
        truncations = {agent: bool(env.truncations.get(agent, False)) for agent in agents}
        infos = {agent: env.infos.get(agent, {}) for agent in agents}
        self._remove_dead_agents()
        return obs, rewards, terminations, truncations, infos

    def _remove_dead_agents(self) -> None:
        env = self.env
        while env.agents and (env.terminations[agent := self._selected()] or env.truncations[agent]):
            env.step(None)

    def state(self) -> Any:
        return self.env.state()

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


def _space_of(game: Any, method: str, agent: str, name: str) -> spaces.Space[Any]:
    """The space of an agent; EnvError if the game has none."""
    try:
        space = getattr(game, method)(agent)
    except (KeyError, AttributeError, TypeError, NotImplementedError) as error:
        raise EnvError(
            f"{name}: {method}({agent!r}) raised {error!r}; define {method}(agent), which returns the space of an agent"
        ) from error
    if not isinstance(space, spaces.Space):
        raise EnvError(f"{name}: {method}({agent!r}) returned {described(space)}, which is not a space")
    return space


def _check_dicts(**values: Any) -> None:
    """Check that what several agents return are dictionaries by agent; else InvalidValue."""
    for name, value in values.items():
        if not isinstance(value, dict):
            raise InvalidValue(f"the {name} are {described(value)}; they must be a dictionary by agent")


def _agents_with_mask(infos: dict[str, Any]) -> list[str]:
    """The agents whose infos have an action mask."""
    return [agent for agent, info in infos.items() if isinstance(info, dict) and MASK in info]


def _kind(value: Any) -> str:
    """A returned value in a few words."""
    return f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"
