"""A TOML file of settings: each value with the line that it stands in."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltrain import algorithms
from rltrain.config.messages import unknown
from rltrain.errors import ConfigError

# Tables that are no algorithm's settings.
TABLES = ("env_args", "share")


@dataclass(frozen=True, slots=True)
class Given:
    """A value and where it came from, as an error names it."""

    value: Any
    origin: str


def read(file: Path, name: str) -> dict[str, Given]:
    """A TOML file as `key` and `table.key`, each with its line. `name` is what errors call the file."""
    try:
        text = file.read_text()
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: is not TOML: {error}") from None
    found: dict[str, Given] = {}
    for key, value in tables.items():
        if isinstance(value, dict) and key not in TABLES:
            if key not in algorithms.names():
                raise ConfigError(
                    f"{name}, line {line_of(text, '', key)}: {unknown('table', key, algorithms.names(), '[{}]'.format)}"
                )
            for inner, item in value.items():
                found[f"{key}.{inner}"] = Given(item, f"{name}, line {line_of(text, key, inner)}")
        else:
            found[key] = Given(value, f"{name}, line {line_of(text, '', key)}")
    return found


def line_of(text: str, table: str, key: str) -> int:
    """The line of a TOML text that sets `key` of `table`, or that opens the table `key`; 1 where it is not seen."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        if header:
            current = header[1].strip("\"'")
            if not table and current.split(".")[0] == key:
                return number
        name = re.match(r"\s*[\"']?([\w.-]+)[\"']?\s*=", line)
        if name and (
            (name[1] == key and current == table) or f"{current}.{name[1]}".strip(".") == f"{table}.{key}".strip(".")
        ):
            return number
    return 1
