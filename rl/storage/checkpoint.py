"""Checkpoints: a folder that cannot run code when it is loaded. Written beside, flushed, renamed; hashed throughout.

step-000012288/
    meta.json           what it is: step, config, spec, versions, the structure of the state, hashes
    state.safetensors   every tensor
latest, best            files with the name of a folder in them

A whole checkpoint is never touched again: a second one of the same step gets a name of its own (step-000012288.2).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from rltrain.errors import CheckpointError, RunFailed
from rltrain.storage.run_folder import writing

FORMAT = 1
STATE, META = "state.safetensors", "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was read: `meta` is plain data, `state` a tree of numpy arrays and plain data."""

    path: Path
    meta: dict[str, Any]
    state: Any


def save(folder: Path, name: str, state: Any, meta: dict[str, Any]) -> Path:
    """Write `state` (nested dicts and lists of tensors, arrays and plain data) into `folder`, all or nothing.

    Returns the checkpoint: `folder/name`, or `folder/name.2` and so on where that is taken.

    Raises:
        RunFailed: the disk is full, or the like. What was there before is as it was.
    """
    beside, final, number = folder / f".writing-{name}", folder / name, 1
    while final.exists():
        number += 1
        final = folder / f"{name}.{number}"
    arrays: dict[str, np.ndarray] = {}
    structure = _take_apart(state, "", arrays)
    data = safetensors.numpy.save(arrays)
    whole = {
        **meta,
        "format": FORMAT,
        "files": {STATE: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
        "structure": structure,
    }
    try:
        with writing(final):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            _write(beside / STATE, data)
            _write(beside / META, _text({"sha256": _hash(whole), **whole}))
            _sync(beside)
            beside.rename(final)
    except RunFailed:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync(folder)
    return final


def point(folder: Path, link: str, name: str) -> None:
    """Let `folder/link` (latest, best) hold `name`."""
    beside = folder / f".{link}"
    with writing(folder / link):
        _write(beside, f"{name}\n".encode())
        os.replace(beside, folder / link)
    _sync(folder)


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and those that `latest` and `best` name; and half-written ones.

    So are others of the same step as a named one, and those after `latest`: a run that was killed left them there.
    """
    latest = _named(folder / "latest")
    named = {latest, _named(folder / "best")}
    steps = {str(name).partition(".")[0] for name in named}
    whole = sorted(path.name for path in folder.glob("step-*") if path.is_dir())
    after = set(whole[whole.index(latest) + 1 :]) if latest in whole else set()
    stray = {name for name in whole if name.partition(".")[0] in steps or name in after} - named
    rest = [name for name in whole if name not in stray]
    for name in (stray | set(rest[:-keep])) - named:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in [*folder.glob(".writing-*"), *(p for p in folder.glob("best-*") if p.name not in named)]:
        shutil.rmtree(path, ignore_errors=True)


def find(path: str | Path, link: str = "latest") -> Path:
    """The checkpoint folder meant by a checkpoint, a run's folder (its `link`), or its `checkpoints` folder."""
    path = Path(path)
    if (path / META).exists():
        return path
    for folder in (path / "checkpoints", path):
        if (folder / link).is_file():
            name = _named(folder / link)
            if name is None:
                raise CheckpointError(f"{folder / link} is damaged: it does not hold the name of a checkpoint")
            if not (folder / name / META).exists():
                raise CheckpointError(f"{folder / link} names {name!r}, which is not there")
            return folder / name
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    raise CheckpointError(f"{path} holds no checkpoint: expected {META}, or a run's folder with checkpoints/{link}")


def _named(link: Path) -> str | None:
    """What `latest` or `best` holds; None where there is no such file, or no name of a folder beside it in it."""
    try:
        text = link.read_bytes().decode("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[\w-][\w.-]{0,99}", text) else None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; refuses, by name, a file that is missing, cut or changed. Executes nothing."""
    try:
        raw = (path / META).read_bytes()
        meta = json.loads(raw)
        same = raw == _text(meta)  # white space and the like too
        told = meta.pop("sha256")
    except FileNotFoundError:
        raise CheckpointError(f"{path / META} is missing") from None
    except Exception:
        raise CheckpointError(f"{path / META} is damaged: it is not the JSON that was written") from None
    if not same or _hash(meta) != told:
        raise CheckpointError(f"{path / META} is damaged: its content does not match its hash")
    if meta["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {meta['format']}; this version reads format {FORMAT}")
    try:
        data = (path / STATE).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path / STATE} cannot be read: {error.strerror}") from None
    expected = meta["files"][STATE]
    if len(data) != expected["bytes"]:
        raise CheckpointError(f"{path / STATE} is damaged: {len(data):,} bytes instead of {expected['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path / STATE} is damaged: its content does not match its hash")
    return Checkpoint(path, meta, _put_together(meta["structure"], safetensors.numpy.load(data)))


def fingerprint(state: Any) -> str:
    """sha256 over every tensor of a state, by name, shape, type and content."""
    arrays: dict[str, np.ndarray] = {}
    _take_apart(state, "", arrays)
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def to_tensors(state: Any) -> Any:
    """A state as it was read, with tensors where arrays are: what `load_state_dict` takes."""
    if isinstance(state, dict):
        return {key: to_tensors(value) for key, value in state.items()}
    if isinstance(state, list):
        return [to_tensors(value) for value in state]
    return torch.from_numpy(state.copy()) if isinstance(state, np.ndarray) else state


def _take_apart(node: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """JSON of the structure; arrays go into `arrays` under their paths."""
    if isinstance(node, torch.Tensor):
        node = node.detach().cpu().numpy()
    if isinstance(node, np.generic):
        node = node.item()
    if isinstance(node, np.ndarray):
        while name in arrays:  # {"a": {"b": ...}, "a/b": ...}
            name += "'"
        arrays[name] = node.copy(order="C")
        return {"array": name}
    if isinstance(node, dict):
        items = [
            [key, _take_apart(value, f"{name}/{key}" if name else str(key), arrays)] for key, value in node.items()
        ]
        if all(isinstance(key, str) for key in node):
            return {"dict": dict(items)}
        if all(isinstance(key, str | int) for key in node):  # torch's optimisers count their parameters
            return {"items": items}
        raise TypeError(f"{name} has keys that are neither text nor whole numbers, which a checkpoint cannot hold")
    if isinstance(node, list | tuple):
        return {"list": [_take_apart(value, f"{name}/{i}", arrays) for i, value in enumerate(node)]}
    if node is None or isinstance(node, bool | int | float | str):
        return {"value": node}
    raise TypeError(f"{name} is a {type(node).__name__}, which a checkpoint cannot hold")


def _put_together(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    ((kind, value),) = node.items()
    if kind == "array":
        return arrays[value]
    if kind == "dict":
        return {key: _put_together(child, arrays) for key, child in value.items()}
    if kind == "items":
        return {key: _put_together(child, arrays) for key, child in value}
    if kind == "list":
        return [_put_together(child, arrays) for child in value]
    return value


def _text(meta: Any) -> bytes:
    return json.dumps(meta, indent=1).encode()


def _hash(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every platform lets a folder be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
