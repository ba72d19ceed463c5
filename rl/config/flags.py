"""Command-line flags from typed settings, and values from the text of flags."""

from __future__ import annotations

import argparse
import ast
import contextlib
import tomllib
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rltrain.algorithms.settings import HELP_ORDER
from rltrain.errors import ConfigError


def spelled(key: str) -> str:
    """The flag of a setting."""
    return "--" + key.replace("_", "-")


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def from_text(annotation: Any, text: str) -> Any:
    """The value of a flag's text for this type. Text that does not fit is returned unchanged, and rejected later."""
    members = kinds(annotation)
    if type(None) in members and text.lower() == "none":
        return None
    for member in members:
        if member is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if member is int:
            return whole(text)
        if member is float:
            return _float(text)
        if get_origin(member) is dict and "=" in text:
            parts = [part.partition("=") for part in text.replace(" ", "").split(",") if part]
            return {key: value for key, _, value in parts}
        if get_origin(member) is tuple:
            return tuple(whole(part) for part in text.replace(" ", "").strip("()[],").split(",") if part)
    return text


def whole(value: Any) -> Any:
    """An int for a value that stands for one: "100_000", "1e6", 1e6. Other values are returned unchanged."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value)
        value = _float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _float(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def env_arg(text: str) -> tuple[str, Any]:
    """The key and the value of `key=value`; ConfigError without a key."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ConfigError(f"--env-arg takes key=value, got {text!r}")
    return key, literal(value)


def literal(text: str) -> Any:
    """The value that the text stands for in Python or in TOML, otherwise the text itself."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    with contextlib.suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(f"value = {text}")["value"]
    return text


def add_flags(group: Any, fields: Mapping[str, FieldInfo], skip: Iterable[str], defaults: Mapping[str, str]) -> None:
    """Adds a flag for each field. A given flag has its text under the name of the field; others are absent.

    Args:
        group:    an argument group of a parser.
        skip:     names of fields without a flag.
        defaults: shown in the help in place of a default that depends on other settings.
    """
    for key, field in fields.items():
        key = field.alias or key
        if key in skip:
            continue
        default = defaults.get(key, _default(field))
        options: dict[str, Any] = {
            "dest": key,
            "default": argparse.SUPPRESS,
            "help": description(field).replace("%", "%%") + (f" [{default}]" if default else ""),
        }
        if kinds(field.annotation) == (bool,):
            group.add_argument(spelled(key), action=argparse.BooleanOptionalAction, **options)  # a file may say either
        else:
            group.add_argument(spelled(key), metavar=_metavar(field), **options)


def in_help_order(fields: Mapping[str, FieldInfo]) -> dict[str, FieldInfo]:
    """The settings of an algorithm in HELP_ORDER; those that are not in it come last."""
    places = {key: place for place, key in enumerate(HELP_ORDER)}
    return dict(sorted(fields.items(), key=lambda item: places.get(item[0], len(places))))


def description(field: FieldInfo) -> str:
    """The description of a setting, with the note on its default if there is one."""
    extra, text = field.json_schema_extra, field.description or ""
    return f"{text}; {extra['note']}" if isinstance(extra, dict) and "note" in extra else text


def _metavar(field: FieldInfo) -> str:
    for member in kinds(field.annotation):
        if get_origin(member) is Literal:
            return "{" + ",".join(map(str, get_args(member))) + "}"
        if get_origin(member) is tuple:
            return "INT,..."
        if member in (int, float):
            return str(member.__name__).upper()
    return "TEXT"


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default" in extra:
        return str(extra["default"])
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=False)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return {None: "none", True: "on", False: "off"}[value] if value is None or isinstance(value, bool) else str(value)
