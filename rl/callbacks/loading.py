"""From `--callback module:Class` and from what a program gives to the objects that a run calls."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence
from typing import Any

from rltrain.callbacks.callback import HOOKS
from rltrain.callbacks.dispatch import name_of
from rltrain.config.run_config import RunConfig
from rltrain.config.user_code import load_code
from rltrain.errors import ConfigError, RunFailed


def make_callbacks(config: RunConfig, given: Sequence[Any] | None) -> list[Any]:
    """The callbacks of a run: those that `config` names, then those that the program gives.

    Raises:
        ConfigError: one cannot be found or made, or is no callback; one line.
        RunFailed: its own code raised an exception; with its traceback.
    """
    made = [_made(_named(name, config.folder), f"--callback {name}") for name in config.callback]
    return made + [_made(each, f"callbacks: {_shown(each)}") for each in given or ()]


def _named(name: str, folder: str) -> Any:
    """What `module:Class` or `path/to/file.py:Class` names."""
    try:
        return load_code(f"--callback {name}", name, folder)
    except ConfigError:
        raise
    except Exception as error:
        raise RunFailed(f"--callback {name} failed:\n{traceback.format_exc()}") from error


def _made(given: Any, where: str) -> Any:
    """A callback: `given`, or what this class or function returns."""
    callback = given
    if inspect.isclass(given) or (callable(given) and not _is_callback(given)):
        try:
            inspect.signature(given).bind()
        except TypeError as error:
            raise ConfigError(
                f"{where} is called without arguments, and {error}; give defaults, or name a function that returns the "
                "object"
            ) from None
        except ValueError:
            pass  # no signature
        try:
            callback = given()
        except Exception as error:
            if isinstance(error, ConfigError):
                raise ConfigError(f"{where}: {error}") from None
            raise RunFailed(f"{where} failed:\n{traceback.format_exc()}") from error
    if not _is_callback(callback):
        raise ConfigError(
            f"{where} is no callback: it has none of {', '.join(HOOKS)}; derive its class from rltrain.Callback"
        )
    return callback


def _is_callback(thing: Any) -> bool:
    return not inspect.isclass(thing) and any(callable(getattr(thing, hook, None)) for hook in HOOKS)


def _shown(given: Any) -> str:
    return given.__qualname__ if inspect.isclass(given) or inspect.isfunction(given) else name_of(given)
