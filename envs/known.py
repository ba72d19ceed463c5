"""Environments that change no setting of the process in which they run: those of Gymnasium itself."""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, Generic

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

PACKAGES = tuple(f"gymnasium.envs.{name}." for name in ("box2d", "classic_control", "mujoco", "toy_text"))
WRAPPERS = (OrderEnforcing, PassiveEnvChecker, TimeLimit)  # that `gymnasium.make` adds
# Where the code of their functions may be; the last two hold functions that Gymnasium's modules import.
FILES = (os.path.join(os.path.dirname(gymnasium.__file__), ""), copy.__file__, functools.__file__)
PLAIN = (bool, int, float, str, type(None))
HARMLESS = ("builtins", "numpy", "types", "typing")  # modules of the types of other objects that can be called


def is_gymnasiums(target: object, kwargs: Mapping[str, Any]) -> bool:
    """Whether `gymnasium.make(target, **kwargs)` makes an environment of PACKAGES, to which no user code is passed.

    Args:
        target: an id, or something else.
    """
    spec = gymnasium.registry.get(target) if isinstance(target, str) else None
    if spec is None or not isinstance(spec.entry_point, str) or spec.additional_wrappers:
        return False
    values = (*spec.kwargs.values(), *kwargs.values())
    return spec.entry_point.replace(":", ".").startswith(PACKAGES) and all(type(value) in PLAIN for value in values)


def keep_settings(envs: Iterable[gymnasium.Env[Any, Any]]) -> bool:
    """Whether these environments run only Gymnasium's code and have no render mode.

    Only the classes and their modules are checked, not the objects: `gymnasium.make` has just made these.
    `tests/envs/test_known.py` plays these environments and compares the settings of the process.
    """
    kinds = set[type]()
    for env in envs:
        while type(env) in WRAPPERS:
            kinds.add(type(env))
            env = env.env  # type: ignore[attr-defined]
        kinds.add(type(env))
        if not type(env).__module__.startswith(PACKAGES) or env.render_mode is not None:
            return False
    return all(map(_is_original, kinds))


def _is_original(kind: type) -> bool:
    """Whether nobody has replaced a method of a class or a function of its modules, or added one."""
    classes = [base for base in kind.__mro__ if base not in (object, Generic)]
    values = [value for base in classes for value in vars(base).values()]
    for name in {base.__module__ for base in classes}:
        values += vars(sys.modules[name]).values()
    return all(_is_gymnasiums(function) for value in values for function in _functions(value))


def _functions(value: Any) -> Iterator[Any]:
    """What can be called in the value of an attribute."""
    if isinstance(value, property):
        yield from (function for function in (value.fget, value.fset, value.fdel) if function is not None)
    elif isinstance(value, staticmethod | classmethod):
        yield value.__func__
    elif isinstance(value, functools.cached_property):
        yield value.func
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _functions(part)
    elif (callable(value) or hasattr(type(value), "__get__")) and not isinstance(value, type):
        yield value


def _is_gymnasiums(function: Any) -> bool:
    if isinstance(function, FunctionType):
        return function.__code__.co_filename.startswith(FILES)
    return isinstance(function, np.ufunc) or type(function).__module__ in HARMLESS
