"""Code that settings name as `module:Class` or `path/to/file.py:Class`: algorithms, policies, torsos and callbacks."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rltrain import algorithms
from rltrain.envs.errors import did_you_mean
from rltrain.errors import ConfigError


def is_code(name: Any) -> bool:
    """True if the name of an algorithm, a policy or a torso names code to import."""
    return isinstance(name, str) and ":" in name


def load_code(where: str, name: str, folder: str) -> Any:
    """The class or function that a name stands for.

    Args:
        where:  the setting and its value, for messages: "policy 'mine.py:Net'".
        name:   `module:Class` or `path/to/file.py:Class`.
        folder: from which modules and files are imported; after all installed ones.

    Raises:
        ConfigError: there is no such file, module or class; one line. Exceptions of the code are passed on.
    """
    from rltrain.envs.lookup import load_file, make_importable

    code, _, attribute = name.rpartition(":")
    if not (code and attribute):
        raise ConfigError(f"{where} must have the form module:Class or path/to/file.py:Class")
    make_importable(folder)
    if code.endswith(".py"):
        file = Path(folder, code)
        if not os.path.isfile(file):
            raise ConfigError(f"{where}: there is no file {file}")
        make_importable(str(file.resolve().parent))  # so that the file can import modules of its folder
        module = load_file(file.resolve())
    else:
        try:
            module = importlib.import_module(code)
        except (ModuleNotFoundError, TypeError, ValueError) as error:  # TypeError: a relative name; ValueError: empty
            if isinstance(error, ModuleNotFoundError) and not f"{code}.".startswith(f"{error.name}."):
                raise
            text = f"there is no module {code!r}; looked in {folder} and in the installed packages"
            raise ConfigError(f"{where}: {text}") from None
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            if code == "__main__":
                advice = "it was given as a class in a program. Use it there, or put the class into a module"
                raise ConfigError(f"{where}: {advice}")
            known = [other for other, value in vars(module).items() if callable(value)]
            raise ConfigError(f"{where}: {code} has no {attribute!r}.{did_you_mean(attribute, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{where} is {found!r}, and must be a class or a function")
    return found


def use_algorithm(algo: Any, folder: str) -> Any:
    """Register the algorithm that a name stands for under this name; nothing happens if the name is not code.

    A class gets the name "module:Class", which is returned; other values are returned unchanged.

    Its settings are those of `rltrain.register_algorithm`, if the code calls it. Otherwise they are the class that
    annotates the second argument of the constructor, or the class in the same module whose name ends in Config.

    Raises:
        ConfigError: there is no such class, or its settings are not known.
    """
    if inspect.isclass(algo):
        name, cls = f"{algo.__module__}:{algo.__qualname__}", algo
    elif is_code(algo) and algo not in algorithms.names():
        name, cls = algo, load_code(f"algo {algo!r}", algo, folder)
    else:
        return algo
    entry = algorithms.entry_of(cls)
    if entry is not None:
        algorithms.register(name, cls, entry.settings, entry.several)
        return name
    settings = _settings_of(cls)
    if settings is None:
        raise ConfigError(
            f"algo {name!r}: the class of its settings is not known. Annotate the argument config of the constructor "
            f"with it, or call rltrain.register_algorithm(name, {cls.__name__}, settings) in the file"
        )
    algorithms.register(name, cls, settings)
    return name


def _settings_of(cls: Any) -> type[BaseModel] | None:
    """The class of an algorithm's settings, as its constructor or its module shows it."""
    try:
        names = list(inspect.signature(cls).parameters)
        hints = typing.get_type_hints(cls.__init__ if inspect.isclass(cls) else cls)
    except (TypeError, ValueError, NameError):
        names, hints = [], {}
    annotated = hints.get(names[1]) if len(names) > 1 else None
    named = getattr(sys.modules.get(cls.__module__), f"{cls.__name__}Config", None)
    for candidate in (annotated, named):
        if inspect.isclass(candidate) and issubclass(candidate, BaseModel):
            return candidate
    return None
