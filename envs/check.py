"""Checks whether an environment behaves as its spaces say; each problem is one line with a hint."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import NormalizeObservation, NormalizeReward

from rltrain.envs.closing import close
from rltrain.envs.errors import EnvFault, InvalidValue, Watch, unwatched, user_traceback
from rltrain.envs.lookup import EnvSource
from rltrain.envs.spaces import MASK, action_reader, mask_in_obs, mask_of, random_action, text_keys
from rltrain.envs.spec import EnvSpec
from rltrain.envs.values import array_of, described, end_flag, reset_result, reward_number
from rltrain.envs.vector.episode_info import begin_progress
from rltrain.envs.vector.plain_data import same
from rltrain.envs.vector.serial import LATE_MASK

Spaces = tuple[spaces.Space[Any], spaces.Space[Any]]  # of observations and of actions

STATISTICS = {NormalizeObservation: "--normalize-obs", NormalizeReward: "--normalize-return"}  # of Gymnasium


class Problem(NamedTuple):
    """One line about an environment. Fatal: it cannot be trained on."""

    text: str
    fatal: bool


def check_env(
    source: EnvSource, spec: EnvSpec, seed: int, steps: int = 20, seconds: float = 1.0, watch: Watch = unwatched
) -> list[Problem]:
    """Reset twice with the same seed, take random steps for at most `seconds`, and return the problems, each once.

    Raises:
        EnvFault: the environment's own code raised; stream -1, and its traceback.
    """
    problems: dict[str, Problem] = {}

    def add(problem: Problem | None) -> None:
        if problem is not None:
            problems.setdefault(problem.text, Problem(f"{spec.id}: {problem.text}", problem.fatal))

    def fatal() -> bool:
        return any(problem.fatal for problem in problems.values())

    watch("constructor")
    env = begin_progress(source.make())
    row = 0
    try:
        made_with = env.observation_space, env.action_space
        add(_wrapper_problem(env))
        end = time.monotonic() + seconds
        watch("reset")
        first = env.reset(seed=seed)
        add(_reset_problem(first))
        if fatal():
            return list(problems.values())
        before, info = first
        add(_obs_problem(env.observation_space, before, "reset returned an observation"))
        add(_mask_problem(spec, env.observation_space, before, info))
        before = _copy(before)
        if time.monotonic() < end:
            watch("reset")
            again = env.reset(seed=seed)
            add(_reset_problem(again))
            if fatal():
                return list(problems.values())
            add(_seed_problem(before, again[0]))
            before, info = again
        add(_change_problem(spec.id, made_with, (env.observation_space, env.action_space)))
        if fatal():
            return list(problems.values())
        rng, reader = np.random.default_rng(seed), action_reader(spec.action, env.action_space.dtype)
        in_obs = mask_in_obs(env.observation_space)
        for row in range(steps):  # noqa: B007  used in the EnvFault
            if time.monotonic() > end:
                break
            mask = mask_of(before, info, in_obs, spec.action.mask_size) if spec.action_mask else None
            watch("step")
            result = env.step(reader(random_action(rng, spec.action, mask)[None])[0])
            add(_step_problem(result))
            if fatal():
                break
            obs, reward, terminated, truncated, info = result
            add(_reward_problem(reward))
            add(_obs_problem(env.observation_space, obs, "step returned an observation"))
            if not (terminated or truncated):  # board games have no legal action in a final observation
                add(_mask_problem(spec, env.observation_space, obs, info))
            if fatal():
                break
            before = obs
            if terminated or truncated:
                watch("reset")
                before, info = reset_result(env.reset())
                add(_obs_problem(env.observation_space, before, "reset returned an observation"))
                add(_mask_problem(spec, env.observation_space, before, info))
        return list(problems.values())
    except InvalidValue as error:
        add(Problem(str(error), True))
        return list(problems.values())
    except Exception as error:
        raise EnvFault(-1, seed, row, user_traceback(error)) from None
    finally:
        watch("close")
        close(env)


def _wrapper_problem(env: Any) -> Problem | None:
    while isinstance(env, gymnasium.Wrapper):
        for kind, flag in STATISTICS.items():
            if isinstance(env, kind):
                return Problem(
                    f"the wrapper {type(env).__name__} has statistics of its own in each stream, which are in no "
                    f"checkpoint: evaluations and resumed runs begin with others. Remove it and use {flag}",
                    False,
                )
        env = env.env
    return None


def _change_problem(name: str, before: Spaces, after: Spaces) -> Problem | None:
    """Streams read the spaces before the first reset."""
    for what, old, new in zip(("observation_space", "action_space"), before, after, strict=True):
        if new is not old and str(new) != str(old):
            return Problem(
                f"its {what} is {new} after reset, and was {old} before: a run needs spaces that do not change. Set "
                "them in the constructor",
                True,
            )
    return None


def _reset_problem(result: Any) -> Problem | None:
    if not (isinstance(result, tuple) and len(result) == 2):
        return Problem(f"reset returned {described(result)}; it must return (observation, info), two values", True)
    if not isinstance(result[1], dict):
        return Problem(f"reset returned {described(result[1])} as info; it must be a dict, {{}} if there is none", True)
    return None


def _step_problem(result: Any) -> Problem | None:
    values = "(observation, reward, terminated, truncated, info)"
    if not isinstance(result, tuple):
        return Problem(f"step returned {described(result)}; it must return {values}", True)
    if len(result) == 4:
        return Problem(f"step returned 4 values as the old gym did; it must return 5: {values}", True)
    if len(result) != 5:
        return Problem(f"step returned {len(result)} values; it must return 5: {values}", True)
    for name, flag in zip(("terminated", "truncated"), result[2:4], strict=True):
        try:
            end_flag(flag, name)
        except InvalidValue as error:
            return Problem(str(error), True)
        if not isinstance(flag, bool | np.bool_):
            return Problem(f"{name} is of type {type(flag).__name__}; it must be a bool: wrap it in bool()", False)
    if not isinstance(result[4], dict):
        return Problem(f"step returned {described(result[4])} as info; it must be a dict, {{}} if there is none", True)
    return None


def _reward_problem(reward: Any) -> Problem | None:
    try:
        number = reward_number(reward)
    except InvalidValue as error:
        return Problem(str(error), True)
    if not np.isfinite(number):
        return Problem(f"the reward is {number}; it must be finite: look for divisions by 0 and logs of 0", True)
    return None


def _seed_problem(first: Any, second: Any) -> Problem | None:
    if same(first, second):
        return None
    return Problem(
        "two resets with the same seed differ, so runs cannot be repeated; "
        "call super().reset(seed=seed) and draw from self.np_random only",
        False,
    )


def _mask_problem(spec: EnvSpec, space: spaces.Space[Any], obs: Any, info: dict[str, Any]) -> Problem | None:
    if not spec.action_mask:
        return Problem(LATE_MASK, True) if MASK in info and spec.action.kind != "box" else None
    try:
        legal = mask_of(obs, info, mask_in_obs(space), spec.action.mask_size)
    except InvalidValue as error:
        return Problem(str(error), True)
    for head in np.split(legal, np.cumsum(spec.action.nvec)[:-1]):
        if not head.any():
            return Problem(f"{MASK} allows no action at all; at least one must be legal until the episode ends", True)
    return None


def _obs_problem(space: spaces.Space[Any], obs: Any, event: str, where: str = "") -> Problem | None:
    """The first problem of an observation or, in nested spaces, of a part of it."""
    what = f"{event}{where} that is"
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, dict):
            return Problem(f"{what} {described(obs)}, but its space is a Dict", True)
        if set(obs) != set(space.spaces):
            return Problem(f"{what} a dict of {sorted(obs)}, but its space has {sorted(space.spaces)}", True)
        text = text_keys(space)
        visible = {key: child for key, child in space.spaces.items() if key not in text}
        parts = [_obs_problem(child, obs[key], event, f"{where}[{key!r}]") for key, child in visible.items()]
        if text and not any(parts):
            left_out = f"observation{where}[{text[0]!r}] is text, which networks cannot read; it is left out"
            parts.append(Problem(left_out, False))
        return next((part for part in parts if part), None)
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple) or len(obs) != len(space.spaces):
            return Problem(f"{what} {described(obs)}, but its space is a Tuple of {len(space.spaces)}", True)
        parts = [_obs_problem(child, obs[i], event, f"{where}[{i}]") for i, child in enumerate(space.spaces)]
        return next((part for part in parts if part), None)
    array = array_of(obs)
    if isinstance(obs, list | tuple) and not array.shape:
        return Problem(f"{what} {described(obs)} of ragged shape, but its space is {space}", True)
    if array.dtype.kind not in "biuf":
        return Problem(f"{what} {described(obs)}, but its space is {space}", True)
    shape = space.shape or ()
    if array.shape != shape:
        return Problem(f"{what} of shape {array.shape}, but its space says {shape}: change the one or the other", True)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return Problem(f"{what} not finite (nan or inf); look for divisions by 0", True)
    if not isinstance(space, spaces.Box) and array.dtype.kind not in "biu":
        return Problem(f"{what} {array.dtype}, but its space is {space}, which holds whole numbers", True)
    if isinstance(space, spaces.Box):
        outside = (array < space.low) | (array > space.high)
        if outside.any():
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            low, high = space.low[at], space.high[at]
            found = f"{what} {array[at]} at {list(at)}, outside its space's [{low}, {high}]"
            return Problem(found, space.dtype.kind != "f")
        if array.dtype != space.dtype:
            fatal = array.dtype.kind == "f" != space.dtype.kind
            return Problem(f"{what} {array.dtype}, but its space says {space.dtype}: add .astype({space.dtype})", fatal)
        return None
    start = np.asarray(getattr(space, "start", 0))
    ends = getattr(space, "n", None) if isinstance(space, spaces.Discrete) else getattr(space, "nvec", 2)
    if ((array < start) | (array >= start + np.asarray(ends))).any():
        return Problem(f"{what} {array.tolist()}, which is not in its space {space}", True)
    return None


def _copy(obs: Any) -> Any:
    if isinstance(obs, dict):
        return {key: _copy(child) for key, child in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_copy(child) for child in obs)
    return np.array(obs)
