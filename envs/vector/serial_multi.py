"""B streams of an environment of several agents: the serial vector environment with an axis of agents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rltrain.envs.errors import fault_of
from rltrain.envs.multi_agent.joint_env import AGENTS, LAST_INFOS, JointEnv
from rltrain.envs.spaces import MASK
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.episode_info import EpisodeOptions, numbers_of_agents
from rltrain.envs.vector.serial import SerialVectorEnv
from rltrain.envs.vector.unroll_rows import UnrollBuffer


class SerialMultiVectorEnv(SerialVectorEnv):
    """Streams of `JointEnv`s; start, restore and errors as for one agent."""

    def __init__(
        self,
        make: Callable[[], Any],
        spec: EnvSpec,
        streams: Sequence[int],
        seeds: Sequence[int],
        restore_method: str = "rng",
        options: EpisodeOptions = EpisodeOptions(),  # noqa: B008, a tuple
    ) -> None:
        super().__init__(make, spec, streams, seeds, restore_method, options)
        first = self.envs[0]
        assert isinstance(first, JointEnv)
        self._write = first.write

    def step(self, action: np.ndarray, rows: UnrollBuffer, t: int) -> None:
        over = self._over
        actions = self._actions(action)
        for array in (rows.reward, rows.terminated, rows.truncated, rows.episode_continues):
            array[t] = 0
        rows.first[t + 1] = False
        if t == 0:
            self.finals.clear()
        b = 0
        try:
            for b, env in self._active:
                if over[b]:
                    self._tell_progress(b, t)
                    obs, info = self._logs[b].next_reset(env)
                    rows.first[t + 1, b] = True
                    over[b] = False
                else:
                    obs, _, terminated, truncated, info = env.step(actions[b])
                    agents = info[AGENTS]
                    rows.reward[t, b] = agents.reward
                    rows.terminated[t, b] = agents.terminated
                    rows.truncated[t, b] = agents.truncated
                    over[b] = terminated or truncated
                    if over[b]:
                        self.finals[t, b] = numbers_of_agents(info[LAST_INFOS], self._options.info_keys)
                self._put(rows, t + 1, b, obs, info)
        except BaseException as error:
            raise fault_of(error, self.streams[b], self._seeds[b], t) from error

    def _put(self, rows: UnrollBuffer, t: int, b: int, obs: Any, info: dict[str, Any], over: bool = False) -> None:
        self._write(rows.obs, (t, b), obs)
        agents = info[AGENTS]
        if rows.action_mask is not None:
            rows.action_mask[t, b] = info[MASK]
        for array, value in ((rows.alive, agents.alive), (rows.acting, agents.acting), (rows.state, agents.state)):
            if array is not None:
                array[t, b] = value
