"""Reads a TOML file of settings: each value with its line."""

from __future__ import annotations

import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltrain import algorithms
from rltrain.config.messages import unknown
from rltrain.errors import ConfigError

# Tables that are settings of the run; others have the settings of an algorithm.
TABLES = ("env_args", "share")
MAX_BYTES = 4 * 2**20  # limit of a file


@dataclass(frozen=True, slots=True)
class Given:
    """A value and its origin, as error messages name it: a flag, a keyword or a line of a file."""

    value: Any
    origin: str


def read(file: Path, name: str) -> dict[str, Given]:
    """The values of a TOML file by `key` or `table.key`; error messages call the file `name`."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise ConfigError(f"{name}: is not a file, or is larger than {MAX_BYTES // 2**20} MiB")
        text = file.read_text()
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: is not TOML: {error}") from None
    values: dict[str, Given] = {}
    for key, value in tables.items():
        if isinstance(value, dict) and key not in TABLES:
            if key not in algorithms.names() and ":" not in key:
                known = [*algorithms.names(), *TABLES]
                raise ConfigError(
                    f"{name}, line {line_of(text, '', key)}: {unknown('table', key, known, '[{}]'.format)}"
                )
            for inner, item in value.items():
                values[f"{key}.{inner}"] = Given(item, f"{name}, line {line_of(text, key, inner)}")
        else:
            values[key] = Given(value, f"{name}, line {line_of(text, '', key)}")
    return values


def line_of(text: str, table: str, key: str) -> int:
    """The number of the line that sets `key` of `table`, or opens the table `key`; 1 if there is no such line."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        if header:
            current = header[1].strip("\"'")
            if not table and current.split(".")[0] == key:
                return number
        name = re.match(r"\s*[\"']?([\w.-]+)[\"']?\s*=", line)
        if name and f"{current}.{name[1]}".strip(".") == f"{table}.{key}".strip("."):
            return number
    return 1
