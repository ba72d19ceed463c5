"""One checkpoint: a folder of JSON and tensors, hashed throughout, that executes no code when it is loaded.

step-000012288/
    meta.json           step, config, spec, versions, the structure of the state, hashes
    state.safetensors   every tensor

It is written next to its final place, flushed, then renamed. A complete checkpoint is never changed: a second one of
the same step gets another name (step-000012288.2).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from rltrain.errors import CheckpointError, RunFailed
from rltrain.storage import files, schema
from rltrain.storage.files import INCOMPLETE

FORMAT = 1
STATE, META = "state.safetensors", "meta.json"
DEPTH = files.JSON_DEPTH // 2 - 5  # limit of nested dicts and lists in a state; each is two levels of JSON


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        meta:  plain data.
        state: a tree of numpy arrays and plain data.
        own:   True if this user signed it.
    """

    path: Path
    meta: dict[str, Any]
    state: Any
    own: bool


def save(folder: Path, name: str, state: Any, meta: dict[str, Any]) -> Path:
    """Writes `state` (nested dicts and lists of tensors, arrays and plain data) into `folder`, atomically.

    Returns:
        The checkpoint: `folder/name`, or `folder/name.2` and so on if that exists.

    Raises:
        RunFailed: the disk is full, or another error of the operating system. Older checkpoints stay intact.
    """
    incomplete, final, number = folder / f"{INCOMPLETE}{name}", folder / name, 1
    while final.exists():
        number += 1
        final = folder / f"{name}.{number}"
    arrays: dict[str, np.ndarray] = {}
    structure = _to_structure(state, "", arrays)
    data = safetensors.numpy.save(arrays)
    meta = {**meta, "format": FORMAT, "files": {STATE: files.digest_of(data)}, "structure": structure}
    try:
        with files.writing(final):
            shutil.rmtree(incomplete, ignore_errors=True)
            incomplete.mkdir(parents=True)
            files.write_file(incomplete / STATE, data)
            files.write_file(incomplete / META, files.hashed_json(meta))
            files.sync_folder(incomplete)
            incomplete.rename(final)
    except RunFailed:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise
    files.sync_folder(folder)
    return final


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        CheckpointError: a file is missing, cut or changed, or the checkpoint has another format.
    """
    meta, own = files.read_hashed_json(path / META, FORMAT)
    schema.check_meta(path / META, meta)
    arrays = load_arrays(path / STATE, meta["files"][STATE])
    try:
        state = _from_structure(meta["structure"], arrays)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path / META} is damaged: its structure does not describe {STATE}") from None
    return Checkpoint(path, meta, state, own)


def load_arrays(path: Path, digest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, by name; CheckpointError if it is missing, cut, changed or holds others."""
    data = files.read_verified(path, digest)
    try:
        return safetensors.numpy.load(data)
    except Exception as error:  # SafetensorError, and KeyError for types that numpy lacks
        raise CheckpointError(f"{path} is damaged: it holds no arrays ({files.one_line(error)})") from None


def fingerprint(state: Any) -> str:
    """sha256 over every tensor of a state: its name, shape, type and content."""
    arrays: dict[str, np.ndarray] = {}
    _to_structure(state, "", arrays)
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def to_tensors(state: Any) -> Any:
    """A loaded state with tensors in place of arrays: the argument of `load_state_dict`."""
    if isinstance(state, dict):
        return {key: to_tensors(value) for key, value in state.items()}
    if isinstance(state, list):
        return [to_tensors(value) for value in state]
    return torch.from_numpy(state.copy()) if isinstance(state, np.ndarray) else state


def _to_structure(node: Any, name: str, arrays: dict[str, np.ndarray], depth: int = 0) -> Any:
    """A state as JSON. Its tensors and arrays are put into `arrays` under their paths, which start with `name`.

    Raises:
        TypeError: the state holds an object that is neither an array nor plain data.
    """
    if depth > DEPTH:
        raise TypeError(f"{name[:100]}... is nested deeper than {DEPTH} levels, which a checkpoint cannot hold")
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
            [key, _to_structure(value, f"{name}/{key}" if name else str(key), arrays, depth + 1)]
            for key, value in node.items()
        ]
        if all(isinstance(key, str) for key in node):
            return {"dict": dict(items)}
        if all(isinstance(key, str | int) for key in node):  # optimisers of torch number their parameters
            return {"items": items}
        raise TypeError(f"{name} has keys that are neither text nor whole numbers, which a checkpoint cannot hold")
    if isinstance(node, list | tuple):
        return {"list": [_to_structure(value, f"{name}/{i}", arrays, depth + 1) for i, value in enumerate(node)]}
    if node is None or isinstance(node, bool | int | float | str):
        return {"value": node}
    raise TypeError(f"{name} is a {type(node).__name__}, which a checkpoint cannot hold")


def _from_structure(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `_to_structure`. Takes each array from `arrays`, so that none can be in two places."""
    ((kind, value),) = node.items()
    if kind == "array":
        return arrays.pop(value)
    if kind == "dict":
        return {key: _from_structure(child, arrays) for key, child in value.items()}
    if kind == "items":
        return {key: _from_structure(child, arrays) for key, child in value}
    if kind == "list":
        return [_from_structure(child, arrays) for child in value]
    if kind != "value" or isinstance(value, dict | list):
        raise ValueError(kind)
    return value
