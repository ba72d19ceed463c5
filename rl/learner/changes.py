"""Settings that a callback changes during a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from rltrain.algorithms.protocol import Algorithm, modules_of
from rltrain.algorithms.settings import changeable
from rltrain.config.messages import build, unknown
from rltrain.errors import ConfigError


def checked_change(settings: BaseModel, name: str, value: Any) -> Any:
    """The value of a setting, checked together with the other settings.

    Raises:
        ConfigError: the setting cannot change during a run, or its value is wrong; one line.
    """
    known = changeable(type(settings))
    if name not in known:
        if name in type(settings).model_fields:
            raise ConfigError(f"{name} cannot change during a run; what can: {', '.join(known) or 'nothing'}")
        raise ConfigError(f"{unknown('setting', str(name), known)}. What can change: {', '.join(known) or 'nothing'}")
    if getattr(value, "ndim", 1) == 0 and callable(getattr(value, "item", None)):  # of numpy or torch
        value = value.item()
    values = {**settings.model_dump(), name: value}
    return getattr(build(type(settings), values, {name: f"run.change: {name}"}), name)


def checked_changes(settings: BaseModel, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes of a checkpoint; ValueError if one of them is not possible."""
    try:
        return {name: checked_change(settings, name, value) for name, value in changes.items()}
    except ConfigError as error:
        raise ValueError(str(error)) from None


def change_settings(algorithm: Algorithm, changes: dict[str, Any]) -> None:
    """Give an algorithm new values of settings, which it and its policy read from their `config` at each update.

    Raises:
        ConfigError: neither has a `config` with these settings.
    """
    found = False
    for thing in _parts(algorithm):
        config = getattr(thing, "config", None)
        if isinstance(config, BaseModel) and changes.keys() <= type(config).model_fields.keys():
            setattr(thing, "config", config.model_copy(update=changes))  # noqa: B010, of any class
            found = True
    if not found:
        raise ConfigError(f"{type(algorithm).__name__} keeps no config, so that no setting can change during a run")


def _parts(algorithm: Algorithm) -> Iterator[Any]:
    """The algorithm, its parts, their modules, and those of inner algorithms, one per group of agents."""
    for each in (algorithm, *getattr(algorithm, "inner", ())):
        yield each
        yield from each.parts().values()
        for module in modules_of(each):
            yield from module.modules()
