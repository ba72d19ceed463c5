"""Converts Gymnasium spaces to specs, and values of an environment from and to the arrays of an unroll."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import DTypeLike

from rltrain.envs.errors import EnvError, InvalidValue
from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf, ObsSpec, Padding
from rltrain.envs.values import described, is_image, leaf_writer, legal_actions

OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"
ACTIONS = "Discrete, MultiDiscrete, MultiBinary and Box"
MASK = "action_mask"
# Key of an info: the episode ended for learning only, the reported episode continues.
EPISODE_CONTINUES = "rltrain.episode_continues"

Writer = Callable[[Any, tuple[int, ...], Any], None]


def obs_spec(space: spaces.Space[Any], where: str) -> ObsSpec:
    """The spec of an observation space.

    Raises:
        EnvError: the space is not supported; the message names it by `where`.
    """
    if isinstance(space, spaces.Dict):
        _check_keys(space, where)
        return {key: obs_spec(space.spaces[key], f"{where}[{key!r}]") for key in visible_keys(space)}
    if isinstance(space, spaces.Tuple):
        _check_not_empty(len(space.spaces), space, where)
        return tuple(obs_spec(child, f"{where}[{i}]") for i, child in enumerate(space.spaces))
    check_space(space, where)
    if isinstance(space, spaces.Discrete):
        return Leaf("discrete", (), "int64", (int(space.n),), start=_start(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        nvec = tuple(int(n) for n in space.nvec.flatten())
        return Leaf("multi_discrete", (space.nvec.size,), "int64", nvec, start=_start(space.start))
    if isinstance(space, spaces.MultiBinary):
        return Leaf("multi_binary", tuple(space.shape), "float32")
    if isinstance(space, spaces.Box):
        shape = tuple(space.shape)
        if is_image(space):
            last = len(shape) == 3 and shape[2] <= 16 and (shape[0] > shape[2] or len(set(shape)) == 1)
            return Leaf("image", shape, "uint8", channels_last=last, high=max(1, int(space.high.max())))
        return Leaf("box", shape, "float32")
    raise EnvError(f"{where} is {_kind(space)}, which is not supported. Supported: {OBSERVATIONS}.")


def check_space(space: Any, where: str) -> None:
    """Check that a space holds numbers, at least one of them, between bounds that are in order.

    Raises:
        EnvError: one line that names the space by `where`.
    """
    if isinstance(space, spaces.Discrete):
        if space.n < 1:
            raise EnvError(f"{where} is {space}, which has no values")
    elif isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        _check_not_empty(math.prod(space.shape), space, where)
        if isinstance(space, spaces.MultiDiscrete) and (space.nvec < 1).any():
            raise EnvError(f"{where} is {space}, of which one number has no values")
        if isinstance(space, spaces.Box):
            if space.dtype.kind not in "biuf":
                raise EnvError(f"{where} holds {space.dtype}, which are not real numbers")
            if not (space.low <= space.high).all():  # also where one of them is nan
                at = tuple(int(i) for i in np.argwhere(~(space.low <= space.high))[0])
                raise EnvError(
                    f"{where} has the bounds low {space.low[at]} and high {space.high[at]} at {list(at)}; low must not "
                    "be above high, and neither may be nan"
                )


def _check_not_empty(size: int, space: spaces.Space[Any], where: str) -> None:
    if size == 0:
        raise EnvError(f"{where} is {space}, which is empty: it holds no numbers. Leave it out, or give it a shape")


def _check_keys(space: spaces.Dict, where: str) -> None:
    """Check that a Dict has keys, and that all of them are strings; else EnvError."""
    _check_not_empty(len(space.spaces), space, where)
    wrong = next((key for key in space.spaces if not isinstance(key, str)), None)
    if wrong is not None:
        raise EnvError(f"{where} has the key {wrong!r} of type {type(wrong).__name__}; keys of a Dict must be strings")


def _kind(space: Any) -> str:
    """The kind of a space for messages: its class."""
    return type(space).__name__ if isinstance(space, spaces.Space) else f"{described(space)} and not a Space"


def text_keys(space: spaces.Dict) -> list[str]:
    """The keys of a Dict that hold text, such as a mission, and are left out; [] if all keys hold text."""
    keys = [key for key, child in space.spaces.items() if child.dtype is not None and child.dtype.kind == "U"]
    return keys if len(keys) < len(set(space.spaces) - {MASK}) else []


def visible_keys(space: spaces.Dict) -> list[str]:
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


def action_spec(space: spaces.Space[Any], where: str, bound: float | None = None) -> ActionSpec:
    """The spec of an action space.

    Args:
        bound: the bound of numbers of a Box that have none: high `bound` and low `-bound`. None: they stay unbounded.

    Raises:
        EnvError: the space is not supported; the message names it by `where`.
    """
    check_space(space, where)
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", (), (int(space.n),), start=_start(space.start), takes=_integers(space))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        nvec = tuple(int(n) for n in space.nvec)
        return ActionSpec("multi_discrete", (space.nvec.size,), nvec, start=_start(space.start), takes=_integers(space))
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return ActionSpec("multi_binary", tuple(space.shape), (2,) * int(space.shape[0]))
    if isinstance(space, spaces.Box):
        low, high = _bounds(space, where, bound)
        return ActionSpec("box", tuple(space.shape), (), low, high, takes=str(space.dtype))
    raise EnvError(f"{where} is {_kind(space)}, which is not supported. Supported: {ACTIONS}.")


def _integers(space: spaces.Discrete | spaces.MultiDiscrete) -> str:
    """`ActionSpec.takes` of a space of integers: its default stands for int64."""
    return "float32" if space.dtype == np.int64 else str(space.dtype)


def _bounds(space: spaces.Box, where: str, bound: float | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lowest and highest values of a Box, flattened, with -inf and inf where there is no bound. Integers are exact."""
    exact = space.dtype if space.dtype.kind != "f" else np.float64
    low, high = (limit.astype(exact).ravel().tolist() for limit in (space.low, space.high))
    below = np.broadcast_to(space.bounded_below, space.shape).ravel().tolist()
    above = np.broadcast_to(space.bounded_above, space.shape).ravel().tolist()
    if bound is not None:
        limit = float(np.finfo(str(space.dtype)).max) if space.dtype.kind == "f" else 2.0**62
        if not 0 < bound <= limit:
            raise EnvError(f"{where} holds {space.dtype}: --action-bound must be above 0 and at most {limit:g}")
    missing = math.inf if bound is None else bound
    lowest = tuple(value if has else -missing for value, has in zip(low, below, strict=True))
    highest = tuple(value if has else missing for value, has in zip(high, above, strict=True))
    at = next((i for i, (a, b) in enumerate(zip(lowest, highest, strict=True)) if a > b), None)
    if at is not None:
        raise EnvError(
            f"{where} is bounded on one side, at {low[at] if below[at] else high[at]}: --action-bound {bound:g} sets "
            "the other side, and must lie beyond it"
        )
    return lowest, highest


def env_spec(
    name: str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    max_steps: int | None,
    mask_in_info: bool = False,
    action_bound: float | None = None,
) -> EnvSpec:
    """The spec of an environment. Networks do not see a key `action_mask` of a Dict observation.

    Args:
        mask_in_info: whether the info of a reset has an action mask.
        action_bound: see `action_spec`.
    """
    action = action_spec(action_space, f"the action space of {name}", action_bound)
    masked = (mask_in_obs(observation_space) or mask_in_info) and action.kind != "box"
    obs = obs_spec(without_mask(observation_space), f"the observation space of {name}")
    return EnvSpec(name, obs, action, masked, max_steps)


def obs_writer(space: spaces.Space[Any], name: str = "the observation") -> Writer:
    """A function `write(arrays, at, obs)` that writes an observation of `space` into an unroll at index (t, b).

    With several agents the index is (t, b, agent). Action masks in the observation are not written.

    Raises (the function):
        InvalidValue: the observation has another structure, shape or kind than `space`; the line begins with `name`.
    """
    if isinstance(space, spaces.Dict):
        count, keys = len(space.spaces), [key for key in visible_keys(space) if key != MASK]
        single = MASK in space.spaces and len(keys) == 1 == len(space.spaces) - 1  # stored as if there were no Dict
        writers = [(key, obs_writer(space.spaces[key], f"{name}[{key!r}]")) for key in keys]

        def write_dict(arrays: Any, at: tuple[int, ...], obs: Any) -> None:
            if not isinstance(obs, dict) or len(obs) != count:
                raise InvalidValue(f"{name} is {described(obs)}; its space promises the keys {sorted(space.spaces)}")
            for key, write in writers:
                if key not in obs:
                    raise InvalidValue(f"{name} is {described(obs)}; its space promises the key {key!r}")
                write(arrays if single else arrays[key], at, obs[key])

        return write_dict
    if isinstance(space, spaces.Tuple):
        parts = [obs_writer(child, f"{name}[{i}]") for i, child in enumerate(space.spaces)]

        def write_tuple(arrays: Any, at: tuple[int, ...], obs: Any) -> None:
            if not isinstance(obs, tuple) or len(obs) != len(parts):
                raise InvalidValue(f"{name} is {described(obs)}; its space promises a tuple of {len(parts)}")
            for write, array, child in zip(parts, arrays, obs, strict=True):
                write(array, at, child)

        return write_tuple
    return leaf_writer(space, name)


def action_reader(spec: ActionSpec, dtype: DTypeLike | None = None) -> Callable[[np.ndarray], Any]:
    """A function from the policy's actions [B, *A] to a sequence of B actions for `env.step`.

    A policy's Box actions are in [-1, 1]: they are clipped to that range and scaled to the bounds of the space. Where
    the space has no bound they are not scaled: an unbounded number is the policy's own; with one bound only, the bound
    is the policy's -1 or 1, and a unit of the policy is a unit of the space.

    Args:
        dtype: of the environment's action space; default: that of `spec`.
    """
    if spec.kind == "box":
        kind = np.dtype(spec.takes if dtype is None else dtype)
        plain = kind == np.float32 and _fits_float32(spec)
        reader = _float32_reader(spec) if plain else _float64_reader(spec, kind)
        if spec.shape == ():  # its rows would be scalars of numpy, which are no arrays and not in the space
            return lambda action: [np.asarray(one) for one in reader(action)]
        return reader
    start = np.array(spec.start, np.int64).reshape(spec.shape) if spec.start else np.int64(0)
    default = np.int8 if spec.kind == "multi_binary" else np.int64
    integer = np.dtype(dtype if dtype is not None else default if spec.takes == "float32" else spec.takes)
    if spec.kind == "discrete":  # numpy integers, as `action_space.sample` returns them
        if integer == np.int64:
            return list if not start else lambda action: list(action + start)
        return lambda action: list((action + start).astype(integer))
    return lambda action: (action + start).astype(integer)


def _fits_float32(spec: ActionSpec) -> bool:
    """Whether a Box has all bounds, and its width is a number of float32."""
    low, high = np.array(spec.low, np.float64), np.array(spec.high, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((np.maximum(abs(low), abs(high)) < np.finfo(np.float32).max / 4).all())


def _float32_reader(spec: ActionSpec) -> Callable[[np.ndarray], np.ndarray]:
    """`action_reader` of a float32 Box, in float32."""
    low = np.asarray(spec.low, np.float32).reshape(spec.shape)
    high = np.asarray(spec.high, np.float32).reshape(spec.shape)
    one, limit, floor = np.float32(1), np.minimum, np.maximum  # np.clip takes twice their time
    if (low == -1).all() and (high == 1).all():
        return lambda action: limit(floor(action, -one), one)
    half, middle = (high - low) / 2, (high + low) / 2
    return lambda action: limit(floor(limit(floor(action, -one), one) * half + middle, low), high)


def _float64_reader(spec: ActionSpec, dtype: np.dtype[Any]) -> Callable[[np.ndarray], np.ndarray]:
    """`action_reader` of any Box: computed in float64, then cast to the dtype of the space and clipped again."""
    low, high = (np.array(bound, np.float64).reshape(spec.shape) for bound in (spec.low, spec.high))
    below, above = np.isfinite(low), np.isfinite(high)
    least, most = np.where(below, -1.0, -np.inf), np.where(above, 1.0, np.inf)
    with np.errstate(invalid="ignore"):
        half = np.where(below & above, high / 2 - low / 2, 1.0)
        middle = np.where(below & above, high / 2 + low / 2, np.where(below, low + 1, np.where(above, high - 1, 0.0)))
    cast = action_caster(spec, dtype)
    return lambda action: cast(np.clip(np.asarray(action, np.float64), least, most) * half + middle)


def action_caster(spec: ActionSpec, dtype: DTypeLike) -> Callable[[np.ndarray], np.ndarray]:
    """A function from numbers [..., *A] to numbers of `dtype` within the bounds of a Box; integers are rounded.

    A number without a bound becomes at most the largest number of `dtype`.
    """
    kind = np.dtype(dtype)
    if kind.kind == "f":
        most = float(np.finfo(kind).max)
        low, high = (np.clip(np.array(bound, np.float64), -most, most).astype(kind) for bound in (spec.low, spec.high))
        low, high = low.reshape(spec.shape), high.reshape(spec.shape)
        wide = low.astype(np.float64), high.astype(np.float64)
        return lambda values: np.clip(np.clip(values, *wide).astype(kind), low, high)
    least, largest = (0, 1) if kind.kind == "b" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    lows = [least if value == -math.inf else max(least, math.ceil(value)) for value in spec.low]
    highs = [largest if value == math.inf else min(largest, math.floor(value)) for value in spec.high]
    low, high = np.array(lows, kind).reshape(spec.shape), np.array(highs, kind).reshape(spec.shape)
    below = np.array([_float_within(value, up=True) for value in lows]).reshape(spec.shape)
    above = np.array([_float_within(value, up=False) for value in highs]).reshape(spec.shape)
    return lambda values: np.clip(np.clip(np.rint(values), below, above).astype(kind), low, high)


def _float_within(value: int, up: bool) -> float:
    """The float64 nearest to an integer that is not below it (`up`) or not above it: its cast cannot overflow."""
    number = float(value)
    if up and number < value:
        return math.nextafter(number, math.inf)
    return math.nextafter(number, -math.inf) if not up and number > value else number


def split_mask(obs: Any) -> tuple[Any, Any]:
    """An observation without the key `action_mask`, as `without_mask` has its space; and that mask, or None."""
    if not (isinstance(obs, dict) and MASK in obs):
        return obs, None
    rest = {key: value for key, value in obs.items() if key != MASK}
    return next(iter(rest.values())) if len(rest) == 1 else rest, obs[MASK]


def mask_of(obs: Any, info: dict[str, Any], in_obs: bool, size: int) -> np.ndarray:
    """The mask of legal actions [size] of one environment; a tuple of masks, one per head, is concatenated.

    Raises:
        InvalidValue: there is none, or it has another shape or other values than 0 and 1.
    """
    if in_obs:
        return legal_actions(obs.get(MASK) if isinstance(obs, dict) else None, size, f"the observation[{MASK!r}]")
    if MASK not in info:
        raise InvalidValue(f"info has no {MASK!r}, and at the reset it had one: return one at each step")
    return legal_actions(info[MASK], size, f"info[{MASK!r}]")


def final_mask(obs: Any, info: dict[str, Any], in_obs: bool, nvec: tuple[int, ...]) -> np.ndarray:
    """`mask_of` for the last observation of an episode, whose mask may be missing or empty.

    A head without a legal action gets all of them. After a time limit this mask matters: targets use the best legal
    action of the last observation.
    """
    raw = (obs.get(MASK) if isinstance(obs, dict) else None) if in_obs else info.get(MASK)
    if raw is None or (isinstance(raw, tuple | list | np.ndarray) and len(raw) == 0):
        return np.ones(sum(nvec), bool)
    mask = mask_of(obs, info, in_obs, sum(nvec)).copy()
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
