"""Durable files: atomic writes, reads that verify size and hash, and JSON documents that hold their own hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rltrain.errors import CheckpointError, RunFailed


def reason(error: OSError) -> str:
    """Why the operating system refused, for a message: "no space left on device"."""
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a RunFailed that names `path`: a full disk ends the run, and older files stay intact."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {reason(error)}") from None


def write_file(path: Path, data: bytes) -> None:
    """Writes a file and flushes it to the disk. Not atomic: for files in a folder that is renamed when complete."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file atomically: after a crash it holds either the old content or all of `data`.

    Raises:
        RunFailed: the disk is full, or another error of the operating system.
    """
    temporary = path.with_name(f".{path.name}")
    with writing(path):
        write_file(temporary, data)
        os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Flushes the entries of a folder to the disk, so that created and renamed files survive a power failure."""
    with contextlib.suppress(OSError):  # not every platform opens folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest_of(data: bytes) -> dict[str, Any]:
    """{"sha256", "bytes"}: what `read_verified` compares a file with."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def read_verified(path: Path, digest: Mapping[str, Any]) -> bytes:
    """The content of a file with the size and hash in `digest`.

    Raises:
        CheckpointError: the file is missing or unreadable, or its content was cut or changed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None
    if len(data) != digest["bytes"]:
        raise CheckpointError(f"{path} is damaged: {len(data):,} bytes instead of {digest['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != digest["sha256"]:
        raise CheckpointError(f"{path} is damaged: its content does not match its hash")
    return data


def hashed_json(content: dict[str, Any]) -> bytes:
    """A JSON document with the hash of its content under "sha256"."""
    return json.dumps({"sha256": _content_hash(content), **content}, indent=1).encode()


def read_hashed_json(path: Path, expected_format: int) -> dict[str, Any]:
    """The content of a document by `hashed_json`, which must hold its "format".

    Raises:
        CheckpointError: the file is missing, cut or changed, or of another format.
    """
    try:
        data = path.read_bytes()
        content: dict[str, Any] = json.loads(data)
        as_written = data.removesuffix(b"\n") == json.dumps(content, indent=1).encode()  # also the same white space
        digest = content.pop("sha256")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except Exception:  # of any kind: the file may hold anything
        raise CheckpointError(f"{path} is damaged: it is not the JSON that was written") from None
    if not as_written or _content_hash(content) != digest:
        raise CheckpointError(f"{path} is damaged: its content does not match its hash")
    if content["format"] != expected_format:
        raise CheckpointError(f"{path} has format {content['format']}; this version reads format {expected_format}")
    return content


def _content_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
