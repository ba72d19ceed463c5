"""Files of runs: atomic writes, reads of regular files of bounded size, and JSON documents that hold their own hash.

A run's folder may come from somebody else. So nothing here follows a link in it or opens anything but a regular file,
and a file is measured before it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from rltrain.errors import CheckpointError, RunFailed
from rltrain.storage import signature
from rltrain.system.free_space import amount, free_memory

JSON_BYTES = 256 * 2**20  # limit of a JSON document; that of 4,096 streams takes some MiB
JSON_VALUES = 8_000_000  # limit of the values in a document, each of which takes some 60 bytes of memory
JSON_DEPTH = 200  # limit of nesting
INCOMPLETE = ".writing-"  # prefix of the folder of a checkpoint that is being written
SEGMENTS = "segments"  # folder of the rows of the replay that checkpoints share
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows has neither


def reason(error: OSError) -> str:
    """Why the operating system refused, for a message: "no space left on device"."""
    return (error.strerror or str(error)).lower()


def one_line(error: BaseException) -> str:
    """The text of an exception for a message: one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a RunFailed that names `path`: a full disk ends the run, and older files stay intact."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {reason(error)}") from None


def write_file(path: Path, data: bytes) -> None:
    """Writes a new file and flushes it to the disk. Not atomic: for files in a folder that is renamed when complete."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | NO_LINK, 0o666)
    with os.fdopen(descriptor, "wb") as file:
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
        temporary.unlink(missing_ok=True)  # left by a crash
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


def open_file(path: Path) -> IO[bytes]:
    """A regular file, open for reading. Links are not followed.

    Raises:
        CheckpointError: it is missing, or something else than a file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | NO_LINK)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            refuse_link(path)
        why = reason(error) if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read: {why}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is not a file")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, limit: int | None = None, size: int | None = None) -> bytes:
    """The content of a regular file. Links are not followed.

    Args:
        limit: of its size, in bytes; None: it must fit into the memory that is free.
        size:  in bytes, which it must have.

    Raises:
        CheckpointError: it is missing, is something else than a file, or has another size.
    """
    with open_file(path) as file:
        status = os.fstat(file.fileno())
        if size is not None and status.st_size != size:
            raise CheckpointError(f"{path} is damaged: {status.st_size:,} bytes instead of {size:,}")
        most = free_memory() if limit is None else limit
        if most is not None and status.st_size > most:
            raise CheckpointError(f"{path} is too large: {amount(status.st_size)}, and {amount(most)} may be read")
        try:
            return file.read(status.st_size)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {reason(error)}") from None
        except MemoryError:
            raise CheckpointError(f"{path} does not fit into memory: {amount(status.st_size)}") from None


def refuse_link(path: Path) -> None:
    """CheckpointError if this part of a run is a link."""
    if os.path.islink(path):
        raise CheckpointError(f"{path} is a link, which is not followed: put what it points to there")


def require_file(path: Path) -> None:
    """CheckpointError unless a regular file lies at this path."""
    refuse_link(path)
    try:
        status = path.lstat()
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read: {why}") from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a file")


def refuse_other_than_file(path: Path) -> None:
    """CheckpointError if something else than a file lies at this path, or a file that has a second name elsewhere."""
    refuse_link(path)
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise CheckpointError(f"{path} is not a file of this run alone: remove it")


def read_verified(path: Path, digest: Mapping[str, Any]) -> bytes:
    """The content of a file with the size and hash in `digest`.

    Raises:
        CheckpointError: the file is missing or unreadable, or its content was cut or changed.
    """
    data = read_file(path, size=digest["bytes"])
    if hashlib.sha256(data).hexdigest() != digest["sha256"]:
        raise CheckpointError(f"{path} is damaged: its content does not match its hash")
    return data


class Document(NamedTuple):
    """The content of a JSON document, and whether this user signed it."""

    content: dict[str, Any]
    own: bool


def hashed_json(content: dict[str, Any]) -> bytes:
    """A JSON document with the user's signature of its content, and with the hash of both under "sha256"."""
    signed = {"signature": signature.sign(_content_hash(content)), **content}
    return json.dumps({"sha256": _content_hash(signed), **signed}, indent=1).encode()


def read_hashed_json(path: Path, expected_format: int) -> Document:
    """A document by `hashed_json`, which must hold its "format".

    Raises:
        CheckpointError: the file is missing, cut or changed, or of another format.
    """
    content, data = read_json(path)
    as_written = data.removesuffix(b"\n") == json.dumps(content, indent=1).encode()  # also the same white space
    digest = content.pop("sha256", None)
    if not as_written or _content_hash(content) != digest:
        raise CheckpointError(f"{path} is damaged: its content does not match its hash")
    if content.get("format") != expected_format:
        found = str(content.get("format"))[:20]
        raise CheckpointError(f"{path} has format {found}; this version reads format {expected_format}")
    signed = content.pop("signature", None)
    return Document(content, signed is not None and signature.is_own(_content_hash(content), signed))


def read_json(path: Path) -> tuple[dict[str, Any], bytes]:
    """The content of a JSON document of bounded size and nesting, and its bytes.

    Raises:
        CheckpointError: it cannot be read, is larger, or holds something else.
    """
    data = read_file(path, JSON_BYTES)
    return parse_json(path, data), data


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """A JSON document of bounded size and nesting; CheckpointError if it is something else."""
    try:
        if sum(data.count(mark) for mark in (b",", b"[", b"{")) > JSON_VALUES:
            raise ValueError
        content = json.loads(data)
        if not isinstance(content, dict) or _is_deeper(content, JSON_DEPTH):
            raise ValueError
    except (ValueError, RecursionError, MemoryError):
        raise CheckpointError(f"{path} is damaged: it is not the JSON that was written") from None
    return content


def _is_deeper(node: Any, limit: int) -> bool:
    """True if lists and dicts in `node` are nested deeper than `limit`."""
    level = [node]
    for _ in range(limit):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _content_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
