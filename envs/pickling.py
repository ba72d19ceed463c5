"""Lets an environment travel to machines that do not have the user's files.

What is installed travels by its name, and must be installed there too; what comes from a file travels itself, with what
has been imported from the same folder or package. Data files do not, nor what is imported later, within a function.
"""

from __future__ import annotations

import contextlib
import functools
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium

from rltrain.envs.source import EnvSource, load_entry

OURS = "rltrain"


def self_contained(source: EnvSource) -> EnvSource:
    """The same environment, in a form that, pickled within `pickled_by_value`, needs no file of the user's."""
    if not isinstance(source.target, str):
        return source
    found = source.found()
    if callable(found):
        return replace(source, target=found) if modules_of(found) else source
    spec = gymnasium.registry[found]
    creator = load_entry(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    if creator is None or not modules_of(creator):
        return source
    named = gymnasium.envs.registration.EnvSpec(**{**_fields(spec), "entry_point": creator, "vector_entry_point": None})
    return replace(source, target=functools.partial(gymnasium.make, named, disable_env_checker=True))


def modules_of(thing: Any) -> tuple[str, ...]:
    """The modules that a class or function needs and that come from files of the user's: its own and, of those that are
    imported now, all of the same package, or of the same folder where it is of none."""
    while isinstance(thing, functools.partial):
        found = [name for part in (thing.func, *thing.args) for name in modules_of(part)]
        return tuple(dict.fromkeys(found))
    if isinstance(thing, gymnasium.envs.registration.EnvSpec):
        thing = thing.entry_point
    name = getattr(thing, "__module__", None)
    if not isinstance(name, str):
        return ()
    top = sys.modules.get(name.partition(".")[0])
    if name == "__main__":
        main = getattr(top, "__file__", None)  # itself is carried anyway, what it imports is not
        home: Path | None = Path.cwd() if main is None else Path(main).resolve().parent
    else:
        home = _home(top)
    if home is None:
        return ()
    folders = {other: _home(module) for other, module in list(sys.modules.items()) if other != "__main__"}
    inside = [other for other, folder in folders.items() if folder is not None and folder.is_relative_to(home)]
    return tuple(inside) or ("__main__",) * (name == "__main__")


@contextlib.contextmanager
def pickled_by_value(modules: Iterable[str]) -> Iterator[None]:
    """While what they define is pickled by value."""
    known = set(cloudpickle.list_registry_pickle_by_value())
    mine = [sys.modules[name] for name in modules if name in sys.modules and name not in {*known, "__main__"}]
    try:
        for module in mine:
            cloudpickle.register_pickle_by_value(module)
        yield
    finally:
        for module in mine:
            cloudpickle.unregister_pickle_by_value(module)


def _home(module: Any) -> Path | None:
    """The folder of a module that comes from a file of the user's."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or module.__name__.partition(".")[0] in (OURS, "__main__"):
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
