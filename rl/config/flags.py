"""Typed settings to command-line flags, and the text of a flag back to a value."""

from __future__ import annotations

import argparse
import ast
import tomllib
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rltrain.algorithms.settings import HELP_ORDER
from rltrain.errors import ConfigError


def spelled(key: str) -> str:
    """How a setting is written on the command line."""
    return "--" + key.replace("_", "-")


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def from_text(annotation: Any, text: str) -> Any:
    """The value a flag's text stands for, as far as its type tells; what does not fit stays text, to be refused."""
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
    """An int for what means one: "100_000", "1e6", 1e6. Anything else as it came."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = _float(value) if value else value
            return whole(value) if isinstance(value, float) and value.is_integer() else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _float(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def literal(text: str) -> Any:
    """The value of `--env-arg key=value`: Python's or TOML's spelling, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def env_arg(text: str) -> tuple[str, Any]:
    """The key and the value of `key=value`; ConfigError without a key."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ConfigError(f"--env-arg takes key=value, got {text!r}")
    return key, literal(value)


def add_model(
    group: Any,
    model: type[BaseModel],
    skip: Iterable[str] = (),
    words: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> None:
    """A flag for each field, kept as text under the field's name and absent unless given.

    `words` fill braces in descriptions; `defaults` are shown where a default depends on other values.
    """
    for key, field in sorted(model.model_fields.items(), key=_place_in_help):
        key = field.alias or key
        if key in skip:
            continue
        text = description(field).format(**(words or {})).replace("%", "%%")
        options: dict[str, Any] = {
            "dest": key,
            "default": argparse.SUPPRESS,
            "help": f"{text} {_default(field, (defaults or {}).get(key))}".strip(),
        }
        if kinds(field.annotation) == (bool,):
            group.add_argument(spelled(key), action=argparse.BooleanOptionalAction, **options)  # a file may say either
        else:
            group.add_argument(spelled(key), metavar=_metavar(field), **options)


def description(field: FieldInfo) -> str:
    """What a setting means, with the note on its default if there is one."""
    extra, text = field.json_schema_extra, field.description or ""
    return f"{text}; {extra['note']}" if isinstance(extra, dict) and "note" in extra else text


def _place_in_help(item: tuple[str, FieldInfo]) -> int:
    """The index in HELP_ORDER; settings that are not there come last, in the order of their class."""
    return HELP_ORDER.index(item[0]) if item[0] in HELP_ORDER else len(HELP_ORDER)


def _metavar(field: FieldInfo) -> str:
    for member in kinds(field.annotation):
        if get_origin(member) is Literal:
            return "{" + ",".join(map(str, get_args(member))) + "}"
        if get_origin(member) is tuple:
            return "INT,..."
        if member in (int, float):
            return str(member.__name__).upper()
    return "TEXT"


def _default(field: FieldInfo, shown: str | None) -> str:
    if shown is not None:
        return f"[{shown}]"
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default" in extra:
        return f"[{extra['default']}]"
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=False)
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if isinstance(value, bool):
        value = "on" if value else "off"
    return f"[{'none' if value is None else value}]"
