"""Converts Gymnasium spaces to specs, and values of an environment from and to the arrays of an unroll."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import DTypeLike

from rltrain.envs.errors import EnvError
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf, ObsSpec, Padding

OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"
ACTIONS = "Discrete, MultiDiscrete, MultiBinary and Box with finite bounds"
MASK = "action_mask"
EPISODE_CONTINUES = "goes_on"  # key of an info: the episode ended for learning only, the reported episode continues

Writer = Callable[[Any, tuple[int, ...], Any], None]


def obs_spec(space: spaces.Space[Any], where: str) -> ObsSpec:
    """The spec of an observation space.

    Raises:
        EnvError: the space is not supported; the message names it by `where`.
    """
    if isinstance(space, spaces.Dict):
        return {key: obs_spec(space.spaces[key], f"{where}[{key!r}]") for key in _visible_keys(space)}
    if isinstance(space, spaces.Tuple):
        return tuple(obs_spec(child, f"{where}[{i}]") for i, child in enumerate(space.spaces))
    if isinstance(space, spaces.Discrete):
        return Leaf("discrete", (), "int64", (int(space.n),), start=_start(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        nvec = tuple(int(n) for n in space.nvec.flatten())
        return Leaf("multi_discrete", (space.nvec.size,), "int64", nvec, start=_start(space.start))
    if isinstance(space, spaces.MultiBinary):
        return Leaf("multi_binary", tuple(space.shape), "float32")
    if isinstance(space, spaces.Box):
        shape = tuple(space.shape)
        if space.dtype in (np.uint8, np.bool_) and len(shape) in (2, 3):
            last = len(shape) == 3 and shape[2] <= 16 and (shape[0] > shape[2] or len(set(shape)) == 1)
            return Leaf("image", shape, "uint8", channels_last=last, high=max(1, int(space.high.max())))
        return Leaf("box", shape, "float32")
    raise EnvError(f"{where} is {type(space).__name__}, which is not supported. Supported: {OBSERVATIONS}.")


def text_keys(space: spaces.Dict) -> list[str]:
    """The keys of a Dict that hold text, such as a mission, and are left out; [] if all keys hold text."""
    keys = [key for key, child in space.spaces.items() if child.dtype is not None and child.dtype.kind == "U"]
    return keys if len(keys) < len(set(space.spaces) - {MASK}) else []


def _visible_keys(space: spaces.Dict) -> list[str]:
    """The keys that networks see, sorted."""
    dropped = text_keys(space)
    return sorted(key for key in space.spaces if key not in dropped)


def mask_in_obs(space: spaces.Space[Any]) -> bool:
    """Whether the action mask is a key of the observation."""
    return isinstance(space, spaces.Dict) and MASK in space.spaces


def without_mask(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """An observation space without the key `action_mask`; a single remaining key is replaced by its space."""
    if not (isinstance(space, spaces.Dict) and MASK in space.spaces):
        return space
    rest = {key: child for key, child in space.spaces.items() if key != MASK}
    return next(iter(rest.values())) if len(rest) == 1 else spaces.Dict(rest)


def stacked(obs: ObsSpec, count: int, padding: Padding) -> ObsSpec:
    """`obs`, where images [count, ...] are marked as stacks of the newest `count` frames."""
    if isinstance(obs, dict):
        return {key: stacked(child, count, padding) for key, child in obs.items()}
    if isinstance(obs, tuple):
        return tuple(stacked(child, count, padding) for child in obs)
    frames = count > 1 and obs.kind == "image" and len(obs.shape) == 3 and obs.shape[0] == count
    return replace(obs, stack=count, padding=padding) if frames and not obs.channels_last else obs


def _start(start: Any) -> tuple[int, ...]:
    """The smallest values of a space; () if all are 0."""
    counts = tuple(int(n) for n in np.ravel(start))
    return counts if any(counts) else ()


def action_spec(space: spaces.Space[Any], where: str) -> ActionSpec:
    """The spec of an action space.

    Raises:
        EnvError: the space is not supported, or a Box has infinite bounds; the message names it by `where`.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", (), (int(space.n),), start=_start(space.start))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        nvec = tuple(int(n) for n in space.nvec)
        return ActionSpec("multi_discrete", (space.nvec.size,), nvec, start=_start(space.start))
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return ActionSpec("multi_binary", tuple(space.shape), (2,) * int(space.shape[0]))
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64).flatten(), space.high.astype(np.float64).flatten()
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise EnvError(
                f"{where} is Box with infinite bounds, so actions cannot be scaled to it. "
                "Wrap the environment in gymnasium.wrappers.RescaleAction or give it finite bounds."
            )
        bounds = tuple(map(float, low)), tuple(map(float, high))
        return ActionSpec("box", tuple(space.shape), (), *bounds, takes=str(space.dtype))
    raise EnvError(f"{where} is {space}, which is not supported. Supported: {ACTIONS}.")


def env_spec(
    name: str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    max_steps: int | None,
    mask_in_info: bool = False,
) -> EnvSpec:
    """The spec of an environment. Networks do not see a key `action_mask` of a Dict observation."""
    action = action_spec(action_space, f"the action space of {name}")
    masked = (mask_in_obs(observation_space) or mask_in_info) and action.kind != "box"
    obs = obs_spec(without_mask(observation_space), f"the observation space of {name}")
    return EnvSpec(name, obs, action, masked, max_steps)


def obs_writer(space: spaces.Space[Any]) -> Writer:
    """A function `write(arrays, at, obs)` that writes an observation of `space` into an unroll at index (t, b).

    With several agents the index is (t, b, agent). Action masks in the observation are not written.
    """
    if isinstance(space, spaces.Dict) and MASK in space.spaces:
        keys = [key for key in space.spaces if key != MASK]
        write_rest = obs_writer(without_mask(space))
        return write_rest if len(keys) != 1 else lambda arrays, at, obs: write_rest(arrays, at, obs[keys[0]])
    if isinstance(space, spaces.Dict):
        writers = [(key, obs_writer(space.spaces[key])) for key in _visible_keys(space)]

        def write_dict(arrays: Any, at: tuple[int, ...], obs: Any) -> None:
            for key, write in writers:
                write(arrays[key], at, obs[key])

        return write_dict
    if isinstance(space, spaces.Tuple):
        parts = [obs_writer(child) for child in space.spaces]

        def write_tuple(arrays: Any, at: tuple[int, ...], obs: Any) -> None:
            for write, array, child in zip(parts, arrays, obs, strict=True):
                write(array, at, child)

        return write_tuple
    start = getattr(space, "start", 0)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(np.asarray(start) != 0):
        shape: Any = () if isinstance(space, spaces.Discrete) else -1

        def write_counted(array: Any, at: tuple[int, ...], obs: Any) -> None:
            array[at] = np.asarray(obs).reshape(shape) - np.asarray(start).reshape(shape)

        return write_counted
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1:

        def write_flat(array: Any, at: tuple[int, ...], obs: Any) -> None:
            array[at] = np.asarray(obs).reshape(-1)

        return write_flat

    def write(array: Any, at: tuple[int, ...], obs: Any) -> None:
        array[at] = obs

    return write


def action_reader(spec: ActionSpec, dtype: DTypeLike | None = None) -> Callable[[np.ndarray], Any]:
    """A function from the policy's actions [B, *A] to a sequence of B actions for `env.step`.

    A policy's Box actions are in [-1, 1]: they are clipped to that range and scaled to the bounds of the space.

    Args:
        dtype: of the environment's action space; default: `spec.takes` for Box, else int64.
    """
    if spec.kind == "box":
        low = np.asarray(spec.low, np.float32).reshape(spec.shape)
        high = np.asarray(spec.high, np.float32).reshape(spec.shape)
        kind = np.dtype(spec.takes if dtype is None else dtype)
        if (low == -1).all() and (high == 1).all() and kind == np.float32:
            return lambda action: np.clip(action, -1.0, 1.0)
        half, middle = (high - low) / 2, (high + low) / 2
        if np.issubdtype(kind, np.integer):
            return lambda action: np.rint(np.clip(action, -1.0, 1.0) * half + middle).astype(kind)
        return lambda action: np.clip(np.clip(action, -1.0, 1.0) * half + middle, low, high).astype(kind, copy=False)
    start = np.array(spec.start, np.int64).reshape(spec.shape) if spec.start else np.int64(0)
    if spec.kind == "discrete":
        return lambda action: list(action + start)  # numpy integers, as `action_space.sample` returns them
    integer = np.dtype(np.int64 if dtype is None else dtype)
    return lambda action: (action + start).astype(integer)


def split_mask(obs: Any) -> tuple[Any, Any]:
    """An observation without the key `action_mask`, as `without_mask` has its space; and that mask, or None."""
    if not (isinstance(obs, dict) and MASK in obs):
        return obs, None
    rest = {key: value for key, value in obs.items() if key != MASK}
    return next(iter(rest.values())) if len(rest) == 1 else rest, obs[MASK]


def mask_of(obs: Any, info: dict[str, Any], in_obs: bool) -> np.ndarray:
    """The mask of legal actions [mask_size] of one environment; a tuple of masks, one per head, is concatenated."""
    mask = obs[MASK] if in_obs else info[MASK]
    if isinstance(mask, tuple | list):
        mask = np.concatenate([np.ravel(head) for head in mask])
    return np.asarray(mask, bool)


def final_mask(obs: Any, info: dict[str, Any], in_obs: bool, nvec: tuple[int, ...]) -> np.ndarray:
    """`mask_of` for the last observation of an episode, whose mask may be missing or empty.

    A head without a legal action gets all of them. After a time limit this mask matters: targets use the best legal
    action of the last observation.
    """
    try:
        mask = mask_of(obs, info, in_obs).copy()
    except (KeyError, TypeError, ValueError):  # the environment returned no mask
        return np.ones(sum(nvec), bool)
    if len(mask) != sum(nvec):
        return np.ones(sum(nvec), bool)
    begin = 0
    for size in nvec:
        if not mask[begin : begin + size].any():
            mask[begin : begin + size] = True
        begin += size
    return mask


def random_action(rng: np.random.Generator, spec: ActionSpec, mask: np.ndarray | None) -> np.ndarray:
    """A uniformly random legal action [*A], as a policy would return it; mask is [mask_size]."""
    if spec.kind == "box":
        return rng.uniform(-1.0, 1.0, spec.shape).astype(np.float32)
    if mask is None:
        return rng.integers(spec.nvec).reshape(spec.shape)
    heads = np.split(mask, np.cumsum(spec.nvec)[:-1])
    return np.array([rng.choice(np.flatnonzero(head)) for head in heads], np.int64).reshape(spec.shape)
