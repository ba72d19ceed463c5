"""Gymnasium spaces to specs, and the adapter between an environment's values and an unroll's arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from rltrain.envs.errors import EnvError
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf, ObsSpec, Padding

OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"
ACTIONS = "Discrete, MultiDiscrete, MultiBinary and Box with finite bounds"
MASK = "action_mask"
GOES_ON = "goes_on"  # key of an info: the episode ended for learning only, and what is reported goes on


def obs_spec(space: spaces.Space[Any], where: str) -> ObsSpec:
    """The spec of an observation space; raises EnvError naming the space where it is not supported."""
    if isinstance(space, spaces.Dict):
        dropped = text_keys(space)
        kept = {key: child for key, child in sorted(space.spaces.items()) if key not in dropped}
        return {key: obs_spec(child, f"{where}[{key!r}]") for key, child in kept.items()}
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
    """The keys of a Dict that hold text, such as a mission: networks do not see them. None where all do."""
    keys = [key for key, child in space.spaces.items() if child.dtype is not None and child.dtype.kind == "U"]
    return keys if len(keys) < len(set(space.spaces) - {MASK}) else []


def stacked(obs: ObsSpec, count: int, padding: Padding) -> ObsSpec:
    """The spec of an environment whose observations are the newest `count` frames [count, ...]: its images say so."""
    if isinstance(obs, dict):
        return {key: stacked(child, count, padding) for key, child in obs.items()}
    if isinstance(obs, tuple):
        return tuple(stacked(child, count, padding) for child in obs)
    frames = count > 1 and obs.kind == "image" and len(obs.shape) == 3 and obs.shape[0] == count
    return replace(obs, stack=count, padding=padding) if frames and not obs.channels_last else obs


def _start(start: Any) -> tuple[int, ...]:
    """What a space counts from; () for 0."""
    counts = tuple(int(n) for n in np.ravel(start))
    return counts if any(counts) else ()


def action_spec(space: spaces.Space[Any], where: str) -> ActionSpec:
    """The spec of an action space; raises EnvError naming the space where it is not supported."""
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
                f"{where} is Box with infinite bounds, which cannot be scaled to. "
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
    """The spec of an environment. A key `action_mask` of a Dict observation is taken out of what networks see."""
    in_obs = isinstance(observation_space, spaces.Dict) and MASK in observation_space.spaces
    if isinstance(observation_space, spaces.Dict) and in_obs:
        rest = {key: space for key, space in observation_space.spaces.items() if key != MASK}
        observation_space = next(iter(rest.values())) if len(rest) == 1 else spaces.Dict(rest)
    action = action_spec(action_space, f"the action space of {name}")
    masked = (in_obs or mask_in_info) and action.kind != "box"
    return EnvSpec(name, obs_spec(observation_space, f"the observation space of {name}"), action, masked, max_steps)


Writer = Callable[[Any, tuple[int, ...], Any], None]


def obs_writer(space: spaces.Space[Any]) -> Writer:
    """A function `write(arrays, (t, b), obs)`, or (t, b, agent), that puts an observation of `space` into an unroll."""
    if isinstance(space, spaces.Dict):
        dropped = text_keys(space)
        if MASK in space.spaces:
            keys = [key for key in sorted(space.spaces) if key != MASK and key not in dropped]
            if len(keys) == 1 and not dropped:
                inner, only = obs_writer(space.spaces[keys[0]]), keys[0]
                return lambda arrays, at, obs: inner(arrays, at, obs[only])
        else:
            keys = [key for key in sorted(space.spaces) if key not in dropped]
        writers = [(key, obs_writer(space.spaces[key])) for key in keys]

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


def action_reader(space: spaces.Space[Any], spec: ActionSpec) -> Callable[[np.ndarray], Any]:
    """A function from the policy's actions [B, *A] to something indexable by stream that `env.step` takes.

    Box actions of a policy live in [-1, 1]: they are clipped there and scaled to the bounds, which may be asymmetric.
    """
    if spec.kind == "box":
        low = np.asarray(spec.low, np.float32).reshape(spec.shape)
        high = np.asarray(spec.high, np.float32).reshape(spec.shape)
        dtype = space.dtype if space.dtype is not None else np.dtype(np.float32)
        if (low == -1).all() and (high == 1).all() and dtype == np.float32:
            return lambda action: np.clip(action, -1.0, 1.0)
        half, middle = (high - low) / 2, (high + low) / 2
        if np.issubdtype(dtype, np.integer):
            return lambda action: np.rint(np.clip(action, -1.0, 1.0) * half + middle).astype(dtype)
        return lambda action: np.clip(np.clip(action, -1.0, 1.0) * half + middle, low, high).astype(dtype, copy=False)
    start = np.asarray(getattr(space, "start", 0))
    if spec.kind == "discrete":
        first = int(start)
        if first:
            return lambda action: list(action + first)
        return list  # numpy integers: what `action_space.sample` gives
    dtype = np.dtype(space.dtype) if space.dtype is not None else np.dtype(np.int64)
    return lambda action: (action + start).astype(dtype)


def mask_of(obs: Any, info: dict[str, Any], in_obs: bool) -> np.ndarray:
    """The legal actions [mask_size] of one environment; a tuple of masks, one per head, is joined."""
    mask = obs[MASK] if in_obs else info[MASK]
    if isinstance(mask, tuple | list):
        mask = np.concatenate([np.ravel(head) for head in mask])
    return np.asarray(mask, bool)


def final_mask(obs: Any, info: dict[str, Any], in_obs: bool, nvec: tuple[int, ...]) -> np.ndarray:
    """The same where the episode is over and nothing need be legal: a head without a legal action has all of them.

    After a time limit it counts: targets look at the best legal action of the final observation.
    """
    try:
        mask = mask_of(obs, info, in_obs).copy()
    except (KeyError, TypeError, ValueError):  # not told any more
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
    """A uniformly random legal action [*A] as a policy would make it; mask is [mask_size]."""
    if spec.kind == "box":
        return rng.uniform(-1.0, 1.0, spec.shape).astype(np.float32)
    if mask is None:
        return rng.integers(spec.nvec).reshape(spec.shape)
    heads = np.split(mask, np.cumsum(spec.nvec)[:-1])
    return np.array([rng.choice(np.flatnonzero(head)) for head in heads], np.int64).reshape(spec.shape)
