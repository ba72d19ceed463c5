"""Names of environments: those registered in this program, and which of the others name code to import."""

from __future__ import annotations

import functools
import importlib.util
import site
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rltrain.envs.errors import EnvError, made_already

# Packages whose environments a prefix names. Such a name is data: it selects one of them.
PETTINGZOO, ENVPOOL, ATARI = "pettingzoo:", "envpool:", "atari:"
PETTINGZOO_PACKAGES = (
    "magent2",
    "mpe2",
    "pettingzoo.atari",
    "pettingzoo.butterfly",
    "pettingzoo.classic",
    "pettingzoo.mpe",
    "pettingzoo.sisl",
)

_registered: dict[str, Callable[..., Any]] = {}


def register_env(name: str, factory: Callable[..., Any]) -> None:
    """Let `--env name` mean `factory(**kwargs)`, a class or a function that returns a Gymnasium environment."""
    if not callable(factory):
        raise EnvError(
            f"cannot register {name!r}: "
            + (made_already(factory) or f"{factory!r} is not a class or a function that makes an environment")
        )
    _registered[name] = factory


def registered(name: str) -> str | Callable[..., Any]:
    """The factory that `register_env` got for `name`, or the name itself."""
    return _registered.get(name, name)


def registered_names() -> list[str]:
    """The names that `register_env` got."""
    return list(_registered)


def code_in(name: str) -> str | None:
    """The module or the file that looking up the environment `name` imports; None if the name is only data.

    Data are names registered in this program, ids of Gymnasium, built-in problems, and environments of installed
    packages of PettingZoo and EnvPool.
    """
    if name in _registered or name.startswith(ATARI):
        return None
    if name.startswith(ENVPOOL):
        return None if _is_installed("envpool") else "envpool"
    if name.startswith(PETTINGZOO):
        module = name.removeprefix(PETTINGZOO)
        package = next((package for package in PETTINGZOO_PACKAGES if f"{module}.".startswith(f"{package}.")), None)
        return module if package is None or not _is_installed(package.partition(".")[0]) else None
    code, colon, _ = name.rpartition(":")
    return code if colon and code != "probe" else None


def _is_installed(package: str) -> bool:
    """True if importing this top-level package can only import an installed one: also if there is none."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return True
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    inside = (Path(place).resolve() for place in places if place is not None)
    return all(any(place.is_relative_to(folder) for folder in install_folders()) for place in inside)


@functools.cache
def install_folders() -> tuple[Path, ...]:
    """The folders of Python and of installed packages."""
    folders = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    return tuple(Path(folder).resolve() for folder in sorted(folders))
