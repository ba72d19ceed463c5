"""What the commands of rldata read and write: data of any format, outputs that are complete or not there, results."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product
from pathlib import Path
from typing import Any, NamedTuple

from rltrain.data import formats
from rltrain.data.episodes import Recorded, episodes_of
from rltrain.envs.spec import EnvSpec, spec_differences
from rltrain.errors import ConfigError
from rltrain.storage.files import reason
from rltrain.storage.recording import INDEX, Recording


class Outcome(NamedTuple):
    """What a command prints: lines for a person, or values for a program."""

    lines: list[str]
    values: dict[str, Any]
    status: int = 0


class Counted(NamedTuple):
    """What was written."""

    steps: int
    episodes: int


def line_of(name: str, written: Counted) -> str:
    """What was written under a name, for a person."""
    return f"{name}: {written.steps:,} steps in {written.episodes:,} episodes"


def values_of(name: str, written: Counted) -> dict[str, Any]:
    """The same, for a program."""
    return {"out": name, **written._asdict()}


@dataclass(frozen=True)
class Source:
    """Recorded data.

    Attributes:
        episodes: reads the episodes from the beginning; those of a recording one after the other.
        notes:    what its format could not say.
        run:      what a recording says about its origin; {} for the files of other programs.
    """

    path: Path
    spec: EnvSpec
    episodes: Callable[[], Iterator[Recorded]]
    notes: list[str] = field(default_factory=list)
    run: Mapping[str, Any] = field(default_factory=dict)


def open_source(path: Path, format_name: str | None = None, spec: Callable[[], EnvSpec] | None = None) -> Source:
    """The data of a recording, or of a file or a folder of another program.

    Args:
        spec: of the environment, for formats that do not contain it; None: it is not known.

    Raises:
        ConfigError, CheckpointError: there is no such data, or it cannot be read; one line.
    """
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    if (path / INDEX).exists():
        recording = Recording.open(path)
        if recording.spec.groups:
            raise ConfigError(f"{path}: several agents were recorded; rldata reads the data of one agent")
        return Source(path, recording.spec, lambda: episodes_of(recording), [], recording.run)
    kind = formats.format_of(path, format_name)
    if kind == "npz":
        read = formats.read_npz(path)
    elif kind == "parquet":
        read = formats.read_parquet(path, None if spec is None else spec())
    elif kind.startswith("minari"):
        read = formats.read_minari(path, None if spec is None else spec())
    elif spec is None:
        raise ConfigError(f"{path}: add --env ENV, the environment that was recorded")
    else:
        read = formats.read_d4rl(path, spec())
    return Source(path, read.spec, lambda: iter(read.episodes), read.notes)


def require_same_environment(first: Source, other: Source) -> None:
    """ConfigError if two sources are not of the same environment, in all parts of its spec."""
    changed = spec_differences(first.spec, other.spec, ignored=())
    if changed:
        text = f"the environment of {other.path} is not that of {first.path}: {changed}"
        raise ConfigError(f"{text}; only data of one environment can be mixed")


@contextlib.contextmanager
def new_output(name: str) -> Iterator[Path]:
    """A path to write a file or a folder to. It appears under `name` at the end of the block, complete.

    A block that raises leaves nothing.

    Raises:
        ConfigError: something is there, or the place cannot be written to.
    """
    out = Path(os.path.abspath(name))
    _require_free(name, out)
    missing = [parent for parent in out.parents if not os.path.lexists(parent)]
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}-", suffix=".incomplete", dir=out.parent))
        except OSError as error:
            raise ConfigError(f"{name}: {reason(error)}; choose another place") from None
        try:
            yield temporary / out.name
            _require_free(name, out)
            try:
                os.replace(temporary / out.name, out)
            except OSError as error:
                raise ConfigError(f"{name}: {reason(error)}; choose another place") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: something else was written there
            for parent in missing:
                parent.rmdir()
        raise


def require_apart(outputs: Sequence[str], data: Sequence[str]) -> None:
    """ConfigError if two outputs are the same, or if one is inside another one or inside the data that is read."""
    for one, other in permutations(outputs, 2):
        if os.path.realpath(one) == os.path.realpath(other):
            raise ConfigError(f"{one}: the two parts need two names")
        _require_outside(one, other)
    for name, read in product(outputs, data):
        _require_outside(name, read)


def _require_outside(name: str, other: str) -> None:
    if Path(os.path.realpath(other)) in Path(os.path.realpath(name)).parents:
        raise ConfigError(f"{name} is inside {other}; choose a name outside of it")


def _require_free(name: str, out: Path) -> None:
    try:
        free = not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir()))
    except OSError as error:
        raise ConfigError(f"{name}: {reason(error)}; choose another place") from None
    if not free:
        raise ConfigError(f"{name} exists already; choose another name")
