"""Names of environments of several agents: the built-in games, and PettingZoo's modules, `pettingzoo:module`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rltrain.envs.errors import EnvError

PREFIX = "pettingzoo:"
EXTRAS = {  # of ours, by the package that they are for
    "mpe2": "mpe",
    "magent2": "magent",
    "pettingzoo.butterfly": "butterfly",
    "pettingzoo.classic": "classic",
    "pettingzoo.sisl": "sisl",
}


GAMES = {  # in `rltrain.envs.problems.games`, which imports PettingZoo
    "two-step": "two_step",
    "climbing": "climbing",
    "penalty": "penalty",
    "spread": "Spread",
    "generations": "Generations",
    "tic-tac-toe": "TicTacToe",
}


def find(name: str, load: Callable[[str, str], ModuleType]) -> Callable[..., Any] | None:
    """What makes the environment that `name` stands for; None if it names none.

    A module of PettingZoo's makes it in parallel if it can, else in turns.

    Args:
        load: imports the module it is given, for the sake of an attribute; EnvError where there is none.

    Raises:
        EnvError: the module makes no environment; one line.
    """
    if name in GAMES:
        game: Callable[..., Any] = getattr(importlib.import_module("rltrain.envs.problems.games"), GAMES[name])
        return game
    if not name.startswith(PREFIX):
        return None
    path = name.removeprefix(PREFIX)
    extra = next((extra for package, extra in EXTRAS.items() if f"{path}.".startswith(f"{package}.")), None)
    if extra is not None:
        _installed(name, path, extra)
    module = load(path, "parallel_env")
    for attribute in ("parallel_env", "env"):
        made: Callable[..., Any] | None = getattr(module, attribute, None)
        if callable(made):
            return made
    raise EnvError(f"{name}: the module {module.__name__} has neither parallel_env nor env, as PettingZoo's modules do")


def _installed(name: str, path: str, extra: str) -> None:
    """Import the module of an extra, to say in a line if something that it needs is not there."""
    try:
        importlib.import_module(path)
    except ModuleNotFoundError as error:
        package = path.partition(".")[0]
        if error.name == package or not f"{error.name}.".startswith(f"{package}."):  # else: there is no such module
            raise EnvError(f"{name} needs an extra: pip install 'rltrain[{extra}]'") from None
