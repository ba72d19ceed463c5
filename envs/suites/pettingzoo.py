"""Finds environments of several agents by name: built-in games, and modules of PettingZoo, `pettingzoo:module`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rltrain.envs.errors import EnvError
from rltrain.envs.names import PETTINGZOO

EXTRAS = {  # extras of this package, by the package that they install
    "mpe2": "mpe",
    "magent2": "magent",
    "pettingzoo.butterfly": "butterfly",
    "pettingzoo.classic": "classic",
    "pettingzoo.sisl": "sisl",
}
GAMES = {  # names in `rltrain.envs.problems.games`, which imports PettingZoo
    "two-step": "two_step",
    "climbing": "climbing",
    "penalty": "penalty",
    "spread": "Spread",
    "generations": "Generations",
    "tic-tac-toe": "TicTacToe",
}


def find(name: str, load: Callable[[str, str], ModuleType]) -> Callable[..., Any] | None:
    """The factory of the environment `name`; None if the name is of another form.

    A module's `parallel_env` is preferred to its `env`, whose agents act in turns.

    Args:
        load: imports a module, given its name and the attribute that is needed; raises EnvError if there is none.

    Raises:
        EnvError: the module has no environment, or an extra is missing; one line.
    """
    if name in GAMES:
        game: Callable[..., Any] = getattr(importlib.import_module("rltrain.envs.problems.games"), GAMES[name])
        return game
    if not name.startswith(PETTINGZOO):
        return None
    path = name.removeprefix(PETTINGZOO)
    extra = next((extra for package, extra in EXTRAS.items() if f"{path}.".startswith(f"{package}.")), None)
    if extra is not None:
        _check_installed(name, path, extra)
    module = load(path, "parallel_env")
    for attribute in ("parallel_env", "env"):
        factory: Callable[..., Any] | None = getattr(module, attribute, None)
        if callable(factory):
            return factory
    raise EnvError(f"{name}: the module {module.__name__} has neither parallel_env nor env, as PettingZoo's modules do")


def _check_installed(name: str, path: str, extra: str) -> None:
    """Raises EnvError if something that the module of an extra imports is not installed."""
    try:
        importlib.import_module(path)
    except ModuleNotFoundError as error:
        package = path.partition(".")[0]
        # otherwise the package has no such module
        if error.name == package or not f"{error.name}.".startswith(f"{package}."):
            raise EnvError(f"{name} needs an extra: pip install 'rltrain[{extra}]'") from None
