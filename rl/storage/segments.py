"""The rows of a replay beside the checkpoints: immutable files named by their content, each written once.

segments/<sha256>.safetensors

A checkpoint lists the files it needs in its meta.json. Several checkpoints share them; one that none lists is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from rltrain.errors import CheckpointError
from rltrain.storage import checkpoint
from rltrain.storage.run_folder import writing

FOLDER, SUFFIX = "segments", ".safetensors"

Arrays = dict[str, np.ndarray]
Listed = dict[str, dict[str, Any]]  # by the replay's name for it: {"sha256", "bytes"}


class Segments:
    """Those of one run. What was written, or listed by the checkpoint it goes on from, is not written again.

    Args:
        checkpoints: the folder of the run's checkpoints.
        listed:      what the checkpoint lists that the run goes on from.
    """

    def __init__(self, checkpoints: Path, listed: Listed | None = None) -> None:
        self._checkpoints, self.folder = checkpoints, checkpoints / FOLDER
        self._known: Listed = dict(listed or {})

    def write(self, wanted: Mapping[str, Callable[[], Arrays]]) -> Listed:
        """Have all of `wanted` on the disk; returns what the checkpoint that needs them must list.

        Raises:
            RunFailed: the disk is full, or the like.
        """
        self._known = {name: self._known[name] for name in wanted if name in self._known}
        new = [name for name in wanted if name not in self._known]
        for name in new:
            data = safetensors.numpy.save({key: np.ascontiguousarray(rows) for key, rows in wanted[name]().items()})
            digest = hashlib.sha256(data).hexdigest()
            path = self.folder / f"{digest}{SUFFIX}"
            with writing(path):
                self.folder.mkdir(parents=True, exist_ok=True)
                beside = self.folder / f".writing-{digest}"
                checkpoint._write(beside, data)
                os.replace(beside, path)
            self._known[name] = {"sha256": digest, "bytes": len(data)}
        if new:
            checkpoint._sync(self.folder)
            checkpoint._sync(self._checkpoints)
        return dict(self._known)

    def collect(self) -> None:
        """Remove the files that no checkpoint lists. Where a meta.json cannot be read, none is removed."""
        needed: set[str] = set()
        try:
            for meta in self._checkpoints.glob(f"*/{checkpoint.META}"):
                listed = json.loads(meta.read_bytes()).get("segments", {})
                needed |= {f"{item['sha256']}{SUFFIX}" for item in listed.values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        for path in self.folder.glob("*"):
            if path.name not in needed:
                with contextlib.suppress(OSError):
                    path.unlink()


def read(checkpoints: Path, listed: Listed) -> dict[str, Callable[[], Arrays]]:
    """Functions that read what a checkpoint lists, each refusing by name a file that is missing, cut or changed."""
    return {name: _Reader(checkpoints / FOLDER / f"{item['sha256']}{SUFFIX}", item) for name, item in listed.items()}


class _Reader:
    def __init__(self, path: Path, item: Mapping[str, Any]) -> None:
        self._path, self._item = path, item

    def __call__(self) -> Arrays:
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read: {error.strerror}") from None
        if len(data) != self._item["bytes"]:
            raise CheckpointError(f"{self._path} is damaged: {len(data):,} bytes instead of {self._item['bytes']:,}")
        if hashlib.sha256(data).hexdigest() != self._item["sha256"]:
            raise CheckpointError(f"{self._path} is damaged: its content does not match its hash")
        found: Arrays = safetensors.numpy.load(data)
        return found
