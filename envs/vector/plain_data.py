"""Converts the state of an environment to plain data (arrays, numbers, text, lists and dicts) and back."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

ARRAYS = {"bool", *(np.dtype(code).name for code in "bBhHiIlLqQefd")}  # dtypes that safetensors supports


def same(one: Any, other: Any) -> bool:
    """Whether two trees of values are identical; NaN equals NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict | tuple | list) or isinstance(other, dict | tuple | list):
        return False
    a, b = np.asarray(one), np.asarray(other)
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc"))


def attributes(thing: object) -> dict[str, Any]:
    """The attributes of an object that are data, including random generators, as plain data; others are left out."""
    saved = {}
    for name, value in vars(thing).items():
        try:
            saved[name] = to_plain(value)
        except TypeError:
            continue
    return saved


def set_attributes(thing: object, saved: dict[str, Any]) -> None:
    """Set the attributes that `attributes` returned, in another object of the same class."""
    for name, data in saved.items():
        setattr(thing, name, from_plain(data))


def to_plain(value: Any) -> Any:
    """A copy of `value` made of None, bool, int, float, str, arrays, lists and dicts.

    Arrays are of bools, integers or floats of at most 64 bits, as a checkpoint can store. Other types become a dict
    with one key, the name of the type: dict, tuple, scalar (of numpy), generator.

    Raises:
        TypeError: `value` contains something else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.name in ARRAYS:
        return value.copy()
    if isinstance(value, np.generic) and value.dtype.name in ARRAYS:
        return {"scalar": np.array(value)}
    if type(value) is list:
        return [to_plain(child) for child in value]
    if type(value) is tuple:
        return {"tuple": [to_plain(child) for child in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: to_plain(child) for key, child in value.items()}}
    if isinstance(value, np.random.Generator):
        return {"generator": copy.deepcopy(dict(value.bit_generator.state))}
    raise TypeError(f"not plain data: {type(value).__name__}")


def from_plain(data: Any) -> Any:
    """The inverse of `to_plain`."""
    if isinstance(data, np.ndarray):
        return data.copy()
    if isinstance(data, list):
        return [from_plain(child) for child in data]
    if not isinstance(data, dict):
        return data
    ((kind, inner),) = data.items()
    if kind == "scalar":
        return inner[()]
    if kind == "tuple":
        return tuple(from_plain(child) for child in inner)
    if kind == "dict":
        return {key: from_plain(child) for key, child in inner.items()}
    bits: Any = getattr(np.random, inner["bit_generator"])()
    bits.state = inner
    return np.random.Generator(bits)
