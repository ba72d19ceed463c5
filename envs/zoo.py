"""Names of environments of several agents: the built-in games, and PettingZoo's modules, `pettingzoo:module`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

from envs.errors import EnvError

PREFIX = "pettingzoo:"
EXTRAS = {"mpe2": "mpe"}  # of ours, by the package they install
GAMES = {  # in `envs.games`, which imports PettingZoo
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
        game: Callable[..., Any] = getattr(importlib.import_module("envs.games"), GAMES[name])
        return game
    if not name.startswith(PREFIX):
        return None
    path = name.removeprefix(PREFIX)
    top = path.partition(".")[0]
    if top in EXTRAS and importlib.util.find_spec(top) is None:
        raise EnvError(f"{name} needs an extra: pip install 'rltrain[{EXTRAS[top]}]'")
    module = load(path, "parallel_env")
    for attribute in ("parallel_env", "env"):
        made: Callable[..., Any] | None = getattr(module, attribute, None)
        if callable(made):
            return made
    raise EnvError(f"{name}: the module {module.__name__} has neither parallel_env nor env, as PettingZoo's modules do")
