"""Code that the configuration of somebody else's run names: it is imported only with the user's consent.

The user consents by naming the code on this command line or in this program, by `--import`, or by `--trust`. Runs that
this user made on this machine need no consent: see `rltrain.storage.signature`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rltrain.config.run_config import RunConfig
from rltrain.config.user_code import is_code, use_algorithm
from rltrain.envs.errors import whole_traceback
from rltrain.envs.names import code_in
from rltrain.errors import CheckpointError, ConfigError, RunFailed

NETWORK = ("algo", "policy", "torso")  # the settings with which loading a policy can reach code
EVALUATION = ("env", "env_args", "eval_env", "eval_env_args", *NETWORK)  # and those with which an evaluation can
TRAINING = (*EVALUATION, "cluster", "record", "callback")  # and a training run

_imported: set[str] = set()  # modules and files that the user named with --import


@dataclass(frozen=True)
class SavedConfig:
    """The configuration in a file of a run.

    Attributes:
        values: by name, as `RunConfig.to_json` has them.
        file:   from which it was read.
        own:    True if this user made the run on this machine.
    """

    values: Mapping[str, Any]
    file: Path
    own: bool = False


def import_code(names: Iterable[str]) -> None:
    """Imports the modules and files that the user named with --import; they may register environments and the like.

    Raises:
        ConfigError: there is no such module or file.
        RunFailed: the code raised; with its traceback.
    """
    for name in names:
        folder, module = os.getcwd(), name
        if name.endswith(".py"):
            file = Path(name).resolve()
            if not os.path.isfile(file):
                raise ConfigError(f"--import {name}: there is no file {file}")
            folder, module = str(file.parent), file.stem
        if folder not in sys.path:
            sys.path.append(folder)
        try:
            if name.endswith(".py"):  # not by its name, which an installed module may have too: test.py
                from rltrain.envs.lookup import load_file

                load_file(file)
            else:
                importlib.import_module(module)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
                text = f"--import {name}: there is no module {error.name!r}; looked in {folder} and among the installed"
                raise ConfigError(text) from None
            raise RunFailed(f"--import {name} failed:\n{whole_traceback(error)}") from None
        _imported.add(os.path.realpath(name) if name.endswith(".py") else name)


def with_consent(config: RunConfig, saved: SavedConfig, trust: bool, settings: Collection[str]) -> RunConfig:
    """The configuration, with the folder from which its code may be imported.

    Args:
        config:   made from `saved`, perhaps with changes by the user.
        trust:    the user consents to all code that `saved` names.
        settings: those through which code would be reached now; without those that the user gave.

    Raises:
        CheckpointError: code is named to which the user did not consent; one line that lists it.
    """
    needs = list(_code_named(config, settings))
    if saved.own and (not needs or os.path.isdir(config.folder)):
        return config
    config = config.model_copy(update={"folder": os.getcwd()})
    if trust or not needs:
        return config
    raise _refusal(saved, needs)


def _refusal(saved: SavedConfig, needs: list[str]) -> CheckpointError:
    whose = "the folder of its code is gone" if saved.own else "you did not make this run here"
    return CheckpointError(f"{whose} ({saved.file}), and it would {_listed(needs)}. {ADVICE}")


def use_saved_algorithm(saved: SavedConfig, trust: bool, settings: Collection[str]) -> None:
    """Import the algorithm of a saved configuration, if its name is code. Without it the settings cannot be read.

    Args:
        settings: see `with_consent`; for the list of everything that would be imported.

    Raises:
        CheckpointError: the user did not consent to all of it.
        ConfigError: there is no such algorithm.
    """
    values = saved.values
    if not is_code(values["algo"]):
        return
    others: dict[str, Any] = {
        "env": "",
        "env_args": {},
        "eval_env": None,
        "eval_env_args": {},
        "cluster": None,
        "record": None,
    }
    raw = SimpleNamespace(**{**others, "callback": (), **values})
    raw.settings = SimpleNamespace(**values["settings"])
    needs, folder = list(_code_named(raw, settings)), os.getcwd()
    if saved.own and (not needs or os.path.isdir(str(values.get("folder")))):
        folder = str(values.get("folder"))
    elif needs and not trust:
        raise _refusal(saved, needs)
    use_algorithm(values["algo"], folder)


def require_consent(config: Any, file: str, trust: bool, settings: Collection[str]) -> None:
    """ConfigError if a file of settings names code, by one of these settings, to which the user did not consent."""
    needs = [] if trust else list(_code_named(config, settings))
    if needs:
        raise ConfigError(f"{file}: it would {_listed(needs)}. {ADVICE}")


@contextlib.contextmanager
def granting(config: RunConfig) -> Iterator[None]:
    """In the block, a run of somebody else may do what this configuration would do, to which the user consented.

    It may do nothing else: the code of its opponents, for example, needs consent of its own.
    """
    global _granted
    before, _granted = _granted, frozenset(_all_code_named(config, TRAINING))
    try:
        yield
    finally:
        _granted = before


_granted: frozenset[str] = frozenset()  # in words, as `_code_named` has them


ADVICE = (
    "Nothing was imported. If you trust all of this, add --trust (in Python trust=True); "
    "code alone can also be named with --import MODULE"
)


def code_without_consent(env: str) -> str | None:
    """The module or file that the environment `env` imports, unless the user named it; None if there is none."""
    code = code_in(env)
    return None if code is None or _is_imported(code) else code


def _listed(needs: list[str]) -> str:
    return ", ".join(needs[:-1]) + " and " * (len(needs) > 1) + needs[-1]


def _code_named(config: Any, settings: Collection[str]) -> Iterator[str]:
    """What a run with this configuration would do without the user's consent."""
    return (text for text in _all_code_named(config, settings) if text not in _granted)


def _all_code_named(config: Any, settings: Collection[str]) -> Iterator[str]:
    """What a run with this configuration would do with code, files and machines that `settings` name, in words."""
    for key in ("env", "eval_env"):
        env = getattr(config, key) if key in settings else None
        code = code_without_consent(env) if isinstance(env, str) else None
        if code is not None:
            yield f"import {code!r} ({key} {env!r})"
    for key in NETWORK:
        name = config.algo if key == "algo" else getattr(config.settings, key, "auto")
        if key in settings and is_code(name) and not _is_imported(code := name.rpartition(":")[0]):
            yield f"import {code!r} ({key} {name!r})"
    for name in config.callback if "callback" in settings else ():
        code = name.rpartition(":")[0]
        if not _is_imported(code):
            yield f"import {code!r} (callback {name!r})"
    for table in ("env_args", "eval_env_args"):
        for key, text in _texts(getattr(config, table)) if table in settings else ():
            if not re.fullmatch(r"[\w +-]*", text):
                yield f"give the environment {key} = {text!r}"
    if "cluster" in settings and config.cluster is not None:
        yield f"run code of the cluster {config.cluster!r}"
    if "record" in settings and config.record is not None:
        yield f"write a recording to {config.record!r}"


def _is_imported(code: str) -> bool:
    """True if the user named this module or file, or a package around it, with --import."""
    if code.endswith(".py"):
        return os.path.realpath(code) in _imported
    return any(f"{code}.".startswith(f"{name}.") for name in _imported)


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a value from JSON or TOML, keys of inner tables included."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            if key:
                yield key, str(name)
            yield from _texts(child, key or str(name))
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _texts(child, key)
    elif isinstance(node, str):
        yield key, node
