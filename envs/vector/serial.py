"""B streams of one environment, stepped one after the other, which write directly into the arrays of an unroll.

Next-step autoreset: after the end of an episode, the next row resets the environment and ignores the action.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from rltrain.envs.closing import close_all
from rltrain.envs.errors import EnvFault, InvalidValue, fault_of
from rltrain.envs.spaces import EPISODE_CONTINUES, MASK, action_reader, final_mask, mask_in_obs, mask_of, obs_writer
from rltrain.envs.spec import EnvSpec
from rltrain.envs.values import end_flag, plain_array, reset_result, reward_number, step_result
from rltrain.envs.vector.episode_info import EpisodeOptions, numbers_in, progress_method
from rltrain.envs.vector.restore import EpisodeLog
from rltrain.envs.vector.row_checks import InvalidRow, RowChecks
from rltrain.envs.vector.unroll_rows import UnrollBuffer

LATE_MASK = (
    f"info has {MASK!r} at this step, and at the reset it had none: return one from the reset on, all ones where all "
    "actions are legal"
)


class SerialVectorEnv:
    """One Gymnasium environment per stream.

    Args:
        make:           makes one environment.
        spec:           of an environment.
        streams:        of this actor.
        seeds:          of each stream, for its first reset.
        restore_method: how a stream is restored on resume, see `rltrain.envs.vector.restore`.
        options:        what the run asks of all streams.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        spec: EnvSpec,
        streams: Sequence[int],
        seeds: Sequence[int],
        restore_method: str = "rng",
        options: EpisodeOptions = EpisodeOptions(),  # noqa: B008, a tuple
    ) -> None:
        self.spec, self._options = spec, options
        self.streams = tuple(streams)
        self._seeds = tuple(seeds)
        self._column = 0  # of the stream that is reset or restored
        self.finals: dict[tuple[int, int], dict[str, float]] = {}
        self.made: np.ndarray | None = None
        self._newest: tuple[UnrollBuffer, int] | None = None  # buffer and row of the newest observations
        self.envs: list[gymnasium.Env[Any, Any]] = []
        self._logs = [EpisodeLog(restore_method) for _ in streams]
        with self._faults():
            for self._column in range(len(streams)):
                self.envs.append(_without_order_checks(make()))
            self._tell = [progress_method(env) for env in self.envs]  # `set_progress` of each
            self._told = [0.0] * len(self.envs)
        space = self.envs[0].observation_space
        self._write = obs_writer(space)
        self._actions = action_reader(spec.action, self.envs[0].action_space.dtype)
        self._plain = plain_array(space)
        self._mask_in_obs = mask_in_obs(space)
        self._no_mask = not spec.action_mask and spec.action.kind != "box"
        self._checks = RowChecks(spec, space if not spec.groups else dict(space.spaces))  # type: ignore[attr-defined]
        self._active = list(enumerate(self.envs))
        self._over = [False] * len(self.envs)
        self._zeros = [0.0] * len(self.envs)

    def reset(self, rows: UnrollBuffer) -> None:
        self._newest = rows, 0
        with self._faults():
            for b, env in enumerate(self.envs):
                self._column = b
                self._over[b] = False
                self._tell_progress(b, 0)
                obs, info = reset_result(self._logs[b].first_reset(env, self._seeds[b]))
                self._put(rows, 0, b, obs, info)
                rows.first[0, b] = True

    def step(self, action: np.ndarray, rows: UnrollBuffer, t: int) -> None:
        over, write, obs_rows, array = self._over, self._write, rows.obs, np.ndarray
        actions = self._actions(action)
        rewards = self._zeros.copy()
        masked, no_mask = rows.action_mask is not None, self._no_mask
        shape, one, other = self._plain
        row = None if shape is None else obs_rows[t + 1]
        if t == 0:
            self.finals.clear()
            rows.terminated[:] = rows.truncated[:] = rows.episode_continues[:] = rows.first[1:] = False
        b = 0
        try:
            for b, env in self._active:
                if over[b]:
                    self._tell_progress(b, t)
                    obs, info = reset_result(self._logs[b].next_reset(env))
                    rows.first[t + 1, b] = True
                    over[b] = False
                else:
                    result = env.step(actions[b])
                    if type(result) is not tuple or len(result) != 5:
                        result = step_result(result)
                    obs, reward, terminated, truncated, info = result
                    if type(info) is not dict:
                        step_result(result)
                    rewards[b] = reward if type(reward) is float else reward_number(reward)
                    if terminated is not False or truncated is not False:
                        rows.terminated[t, b] = terminated = end_flag(terminated, "terminated")
                        rows.truncated[t, b] = truncated = end_flag(truncated, "truncated")
                        if terminated or truncated:
                            over[b] = True
                            if info:
                                rows.episode_continues[t, b] = info.get(EPISODE_CONTINUES, False)
                                self.finals[t, b] = numbers_in(info, self._options.info_keys)
                if (
                    row is not None
                    and type(obs) is array
                    and obs.shape == shape
                    and (obs.dtype is one or obs.dtype is other)
                ):
                    row[b] = obs  # as `write` does, without a call
                else:
                    write(obs_rows, (t + 1, b), obs)
                if masked:
                    self._put_mask(rows, t + 1, b, obs, info, over[b])
                elif no_mask and info and MASK in info:
                    raise InvalidValue(LATE_MASK)
            rows.reward[t, : len(rewards)] = rewards
        except BaseException as error:
            raise fault_of(error, self.streams[b], self._seeds[b], t) from error

    def check(self, rows: UnrollBuffer, unroll: int) -> dict[int, int]:
        try:
            return self._checks(rows, unroll, len(self.streams))
        except InvalidRow as wrong:
            raise EnvFault(self.streams[wrong.b], self._seeds[wrong.b], wrong.t, wrong.text) from None

    def rest(self, ended: np.ndarray) -> None:
        """Stop stepping the streams for which `ended` [B] is True; their rows do not change any more."""
        self._active = [(b, env) for b, env in enumerate(self.envs) if not ended[b]]

    def end_unroll(self, action: np.ndarray, rows: UnrollBuffer) -> None:
        self._newest = rows, len(action)
        for b, log in enumerate(self._logs):
            log.extend(action[:, b], rows.first[1 : len(action) + 1, b])

    def state(self) -> list[dict[str, Any]]:
        assert self._newest is not None, "reset comes first"
        rows, t = self._newest
        return [
            self._logs[b].state(env)
            | {"over": self._over[b], "seen": _digest(rows.obs, t, b)}
            | ({} if self._tell[b] is None else {"progress": self._told[b]})
            for b, env in enumerate(self.envs)
        ]

    def load(self, state: list[dict[str, Any]], rows: UnrollBuffer) -> None:
        self._newest = rows, 0
        with self._faults():
            for b, (env, saved) in enumerate(zip(self.envs, state, strict=True)):
                self._column = b
                if (tell := self._tell[b]) is not None:
                    self._told[b] = float(saved.get("progress", 0.0))
                    tell(self._told[b])
                obs, info, exact = self._logs[b].load(env, saved, self._seeds[b], self._actions)
                self._put(rows, 0, b, obs, info, bool(saved["over"]) and exact)
                if exact and _digest(rows.obs, 0, b) != saved["seen"]:
                    exact = False
                    self._put(rows, 0, b, *self._logs[b].new_episode(env))
                self._over[b] = bool(saved["over"]) and exact
                rows.first[0, b] = not exact

    def close(self) -> None:
        close_all(self.envs)

    def _tell_progress(self, b: int, t: int) -> None:
        """Before a reset in row t: call `set_progress` of the environment of column b, if it has that.

        The progress follows from the steps of this stream alone, so that it does not depend on the number of workers:
        its rows without its resets.
        """
        tell = self._tell[b]
        if tell is not None:
            made = 0 if self.made is None else int(self.made[b])
            self._told[b] = self._options.progress(made + t - self._logs[b].episode)
            tell(self._told[b])

    def _put(self, rows: UnrollBuffer, t: int, b: int, obs: Any, info: dict[str, Any], over: bool = False) -> None:
        """Write an observation and its mask; `over`: it is the last one of an episode."""
        self._write(rows.obs, (t, b), obs)
        if rows.action_mask is not None:
            self._put_mask(rows, t, b, obs, info, over)

    def _put_mask(self, rows: UnrollBuffer, t: int, b: int, obs: Any, info: dict[str, Any], over: bool) -> None:
        assert rows.action_mask is not None
        if over:
            mask = final_mask(obs, info, self._mask_in_obs, self.spec.action.nvec)
        else:
            mask = mask_of(obs, info, self._mask_in_obs, self.spec.action.mask_size)
        rows.action_mask[t, b] = mask

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Turns exceptions of an environment outside `step` into an EnvFault of the current stream."""
        try:
            yield
        except BaseException as error:
            raise fault_of(error, self.streams[self._column], self._seeds[self._column], 0) from error


def _without_order_checks(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Take the wrapper OrderEnforcing out of the chain of wrappers, where `gymnasium.make` puts it.

    It refuses steps before the first reset, and there are none here. Its two calls take 7% of a step of CartPole.
    """
    if type(env) is OrderEnforcing:
        return env.env
    wrapper: Any = env
    while isinstance(wrapper, gymnasium.Wrapper):
        if type(wrapper) is TimeLimit and type(wrapper.env) is OrderEnforcing:
            wrapper.env = wrapper.env.env
        wrapper = wrapper.env
    return env


def _digest(obs: Any, t: int, b: int) -> str:
    """A hash of one stream's observation in row t of an unroll."""
    digest = hashlib.blake2b(digest_size=16)

    def add(tree: Any) -> None:
        if isinstance(tree, dict):
            for key in sorted(tree):
                add(tree[key])
        elif isinstance(tree, tuple):
            for child in tree:
                add(child)
        else:
            digest.update(np.ascontiguousarray(tree[t, b]).tobytes())

    add(obs)
    return digest.hexdigest()
