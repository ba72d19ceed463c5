"""Signs the runs of this user on this machine, which tells them from runs that other people made.

The key is a file of the user that nobody else can read: $XDG_CONFIG_HOME/rltrain/key, by default ~/.config/rltrain/key.
Without the key, or with another one, a run is treated as somebody else's.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

KEY_BYTES = 32


def key_file() -> Path | None:
    """The path of the user's key; None if the user has no home folder."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(config) if os.path.isabs(config) else Path.home() / ".config"
    except RuntimeError:
        return None
    return folder / "rltrain" / "key"


def sign(digest: str) -> str | None:
    """The user's signature of a document with this hash; None if no key can be read or created."""
    key = _read_key() or _create_key()
    return None if key is None else _signature(key, digest)


def is_own(digest: str, signature: object) -> bool:
    """True if `signature` was made with the user's key for a document with this hash."""
    key = _read_key()
    return (
        key is not None
        and isinstance(signature, str)
        and hmac.compare_digest(_signature(key, digest).encode(), signature.encode(errors="replace"))
    )


def _signature(key: bytes, digest: str) -> str:
    return hmac.new(key, f"rltrain {digest}".encode(), hashlib.sha256).hexdigest()


def _read_key() -> bytes | None:
    """The user's key; None if there is none, or if others can read or replace it."""
    path = key_file()
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        private = os.name == "nt" or (status.st_uid == os.geteuid() and not status.st_mode & 0o077)
        key = os.read(descriptor, KEY_BYTES + 1) if stat.S_ISREG(status.st_mode) and private else b""
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return key if len(key) == KEY_BYTES else None


def _create_key() -> bytes | None:
    """A new key, or the one that another process creates at the same time; None if the folder cannot be written."""
    path = key_file()
    if path is None:
        return None
    new = path.with_name(f".key-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
    return _read_key()
