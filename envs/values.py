"""Checks the values that an environment returns in a step, and converts them; what is wrong is one line.

Shapes and kinds of numbers are checked here, at every step. Ranges are checked once per unroll, over all of its rows:
see `rltrain.envs.vector.row_checks`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from gymnasium import spaces

from rltrain.envs.errors import InvalidValue

# A number too large for float32 becomes infinite in an unroll, and is refused there.
warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning, r"rltrain\.envs\.")
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
REWARDS = frozenset({float, np.float64, np.float32, np.int64})  # types that `float` converts without a check
FLAGS = frozenset({bool, np.bool_})
RESULT = "(observation, reward, terminated, truncated, info)"
FIX = "Change what the environment returns, or its observation space"

WriteLeaf = Callable[[Any, tuple[int, ...], Any], None]


def array_of(value: Any) -> np.ndarray:
    """The value as an array; of dtype object if it cannot be one: a ragged list, a tensor on another device, an array
    of which numbers are masked."""
    try:
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            return np.empty((), object)
        return np.asarray(value)
    except Exception:
        return np.empty((), object)


def leaf_writer(space: spaces.Space[Any], name: str) -> WriteLeaf:
    """A function `write(array, at, value)` for one array of an observation, which checks shape and kind of the value.

    Raises (the function):
        InvalidValue: one line that starts with `name`.
    """
    if isinstance(space, spaces.Discrete):
        return _number_writer(int(space.n), int(space.start), space, name)
    shape: tuple[int, ...] = space.shape or ()
    dtype = np.dtype(space.dtype or np.int64)
    floats = isinstance(space, spaces.Box) and dtype.kind == "f"
    one, other = FLOATS if floats else (dtype, dtype)
    pixels = is_image(space)

    def check(value: Any) -> np.ndarray:
        """The value as an array, or InvalidValue."""
        array = array_of(value)
        if array.dtype.kind not in ("biuf" if floats else "biu") or array.shape != shape:
            raise InvalidValue(f"{name} is {described(value)}; {promised(space)}. {FIX}")
        if pixels and not in_range(array, space).all():  # before they are cast to uint8
            raise InvalidValue(out_of_range(name, array, space))
        return array

    if isinstance(space, spaces.MultiDiscrete) and (len(shape) > 1 or np.any(space.start)):
        start = np.asarray(space.start, np.int64).reshape(-1)

        def write_counted(array: Any, at: tuple[int, ...], value: Any) -> None:
            array[at] = check(value).reshape(-1) - start

        return write_counted

    plain = np.ndarray  # a local name, for speed

    def write(array: Any, at: tuple[int, ...], value: Any) -> None:
        if type(value) is plain and value.shape == shape and ((kind := value.dtype) is one or kind is other):
            array[at] = value
        else:
            array[at] = check(value)

    return write


def plain_array(space: spaces.Space[Any]) -> tuple[tuple[int, ...] | None, np.dtype[Any], np.dtype[Any]]:
    """Shape and dtypes of the arrays that a `leaf_writer` of the space copies unchanged; shape None: it checks more."""
    dtype = np.dtype(space.dtype or np.int64)
    if not isinstance(space, spaces.Box):
        return None, dtype, dtype
    return space.shape, *(FLOATS if dtype.kind == "f" else (dtype, dtype))


def _number_writer(n: int, start: int, space: spaces.Space[Any], name: str) -> WriteLeaf:
    """`leaf_writer` of a Discrete space: the range is checked too, which costs less than the copy."""

    def check(value: Any) -> int:
        array = array_of(value)
        if array.shape or array.dtype.kind not in "biu" or not start <= int(array) < start + n:
            raise InvalidValue(f"{name} is {described(value)}; {promised(space)}. {FIX}")
        return int(array) - start

    def write(array: Any, at: tuple[int, ...], value: Any) -> None:
        counted = value - start if type(value) is int or type(value) is np.int64 else check(value)
        array[at] = counted if 0 <= counted < n else check(value)

    return write


def is_image(space: spaces.Space[Any]) -> bool:
    """Whether an observation is stored as pixels, in uint8."""
    return isinstance(space, spaces.Box) and space.dtype in (np.uint8, np.bool_) and len(space.shape) in (2, 3)


def described(value: Any) -> str:
    """A value that an environment returned, in a few words: its type or shape, its dtype, and a single number."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        return f"an array of shape {value.shape} with masked numbers"
    if isinstance(value, np.ndarray):
        if value.ndim == 0:
            return f"{value.item()!r} in an array without axes ({value.dtype})"
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, np.generic):
        return f"{value.item()!r} ({value.dtype})"
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict with the keys {sorted(value, key=str)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def promised(space: spaces.Space[Any]) -> str:
    """What a space promises, in a few words."""
    if isinstance(space, spaces.Discrete):
        return f"its space promises one whole number from {space.start} to {space.start + space.n - 1}"
    kind = "numbers" if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f" else "whole numbers"
    return f"its space promises {kind} of shape {space.shape} ({space.dtype})"


def in_range(values: np.ndarray, space: spaces.Space[Any]) -> np.ndarray:
    """Which numbers of an array, or of a batch of arrays, are between the bounds of a space."""
    low, high = bounds(space)
    within: np.ndarray = (values >= low) & (values <= high)
    return within


def out_of_range(name: str, value: np.ndarray, space: spaces.Space[Any]) -> str:
    """One line about the first number of an array that is outside of its space, which holds whole numbers."""
    low, high = (np.broadcast_to(bound, value.shape) for bound in bounds(space))
    at = tuple(np.argwhere(~in_range(value, space))[0])
    where = f" at {[int(i) for i in at]}" if at else ""
    found = value[at].item()
    found = int(found) if float(found).is_integer() else found
    return f"{name} is {found}{where}, and its space promises {int(low[at])} to {int(high[at])}. {FIX}"


def bounds(space: spaces.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest values of a space of arrays, in the shape in which unrolls store it."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return np.ravel(space.start), np.ravel(space.start + space.nvec - 1)
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape), np.ones(space.shape)
    assert isinstance(space, spaces.Box)
    return space.low, space.high


def step_result(result: Any) -> tuple[Any, Any, Any, Any, Any]:
    """The result of `step`, if it has five values and a dict at the end.

    Raises:
        InvalidValue: what it has instead.
    """
    if not isinstance(result, tuple) or len(result) != 5:
        what = f"{len(result)} values" if isinstance(result, tuple) else described(result)
        old = " as the old gym did" if isinstance(result, tuple) and len(result) == 4 else ""
        raise InvalidValue(f"step returned {what}{old}; it must return a tuple of 5: {RESULT}")
    if not isinstance(result[4], dict):
        raise InvalidValue(
            f"step returned {described(result[4])} as info; it must be a dict, {{}} if there is nothing to say"
        )
    return result


def reset_result(result: Any) -> tuple[Any, dict[str, Any]]:
    """The result of `reset`, if it is (observation, info); else InvalidValue."""
    if not isinstance(result, tuple) or len(result) != 2:
        what = f"a tuple of {len(result)}" if isinstance(result, tuple) else described(result)
        raise InvalidValue(f"reset returned {what}; it must return (observation, info), two values")
    if not isinstance(result[1], dict):
        raise InvalidValue(
            f"reset returned {described(result[1])} as info; it must be a dict, {{}} if there is nothing to say"
        )
    return result


def reward_number(reward: Any, name: str = "the reward") -> float:
    """A reward that is one number, also in an array of one number, as a float; else InvalidValue."""
    if type(reward) in REWARDS:
        return float(reward)
    if isinstance(reward, Real):  # also Fraction, which no array can hold
        try:
            return float(reward)
        except OverflowError:
            return float("inf")
        except TypeError:  # timedelta64 is a kind of whole number for numpy
            pass
    array = array_of(reward)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise InvalidValue(f"{name} is {described(reward)}; it must be one number: return float(reward)")
    return float(array.reshape(-1)[0])


def end_flag(flag: Any, name: str) -> bool:
    """`terminated` or `truncated` as a bool: from a bool or a 0 or 1 without axes; else InvalidValue."""
    if type(flag) in FLAGS:
        return bool(flag)
    array = np.asarray(flag) if isinstance(flag, int | np.generic | np.ndarray) else np.empty((), object)
    if array.shape or array.dtype.kind not in "biu" or int(array) not in (0, 1):
        raise InvalidValue(f"{name} is {described(flag)}; it must be True or False: return bool({name})")
    return bool(array)


def legal_actions(mask: Any, size: int, name: str = "the action mask") -> np.ndarray:
    """An action mask [size] as booleans; a tuple or list of masks, one per head, is concatenated; else InvalidValue."""
    try:
        joined = np.concatenate([np.ravel(head) for head in mask]) if isinstance(mask, tuple | list) else mask
        array = np.asarray(joined)
    except Exception:
        array = np.empty((), object)
    if array.shape != (size,) or array.dtype.kind not in "biuf":
        raise InvalidValue(
            f"{name} is {described(mask)}; it must have shape ({size},), 1 for each legal and 0 for each illegal action"
        )
    if array.dtype.kind != "b":
        legal: np.ndarray = array == 1
        if not (legal | (array == 0)).all():
            wrong = array[~(legal | (array == 0))][0]
            raise InvalidValue(f"{name} holds {wrong!r}; it must hold 1 for legal and 0 for illegal actions")
        return legal
    return array
