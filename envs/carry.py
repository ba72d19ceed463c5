"""Lets an environment travel to machines that do not have the user's files.

What is installed travels by its name, and must be installed there too; what comes from a file travels itself, with all
that was imported from the same folder. Data files do not.
"""

from __future__ import annotations

import functools
import site
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium

from envs.make import EnvSource, load_entry

OURS = ("envs", "rollout", "algorithms", "rl")


def carried(source: EnvSource) -> EnvSource:
    """The same environment, in a form that needs no file of the user's where it is unpickled."""
    if not isinstance(source.target, str):
        carry(source.target)
        return source
    found = source.found()
    if callable(found):
        return replace(source, target=found) if carry(found) else source
    spec = gymnasium.registry[found]
    creator = load_entry(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    if creator is None or not carry(creator):
        return source
    named = gymnasium.envs.registration.EnvSpec(**{**_fields(spec), "entry_point": creator})
    return replace(source, target=functools.partial(gymnasium.make, named, disable_env_checker=True))


def carry(thing: Callable[..., Any]) -> bool:
    """Let a class or function be pickled by value, if it comes from a file of the user's; returns whether it does."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = getattr(thing, "__module__", None) or type(thing).__module__
    if name == "__main__":
        main = getattr(sys.modules["__main__"], "__file__", None)  # itself is carried anyway, what it imports is not
        home = Path.cwd() if main is None else Path(main).resolve().parent
    elif (found := _home(sys.modules.get(name))) is not None:
        home = found
    else:
        return False
    for module in list(sys.modules.values()):
        folder = _home(module)
        if folder is not None and folder.is_relative_to(home) and sys.modules.get(module.__name__) is module:
            cloudpickle.register_pickle_by_value(module)
    return True


def _home(module: Any) -> Path | None:
    """The folder of a module that comes from a file of the user's."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or module.__name__.partition(".")[0] in (*OURS, "__main__"):
        return None
    folder = Path(file).resolve().parent
    installed = any(folder.is_relative_to(place) for place in _installed())
    return None if installed else folder


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Where packages are installed, and Python itself."""
    places = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    return tuple(Path(place).resolve() for place in sorted(places))


def _fields(spec: Any) -> dict[str, Any]:
    return {name: getattr(spec, name) for name, field in spec.__dataclass_fields__.items() if field.init}
