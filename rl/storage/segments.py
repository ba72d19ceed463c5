"""Rows of a replay next to the checkpoints: immutable files named by their content, each written once.

segments/<sha256>.safetensors

A checkpoint lists the files that it needs in its meta.json. Several checkpoints share them; a file that no checkpoint
lists is removed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from rltrain.errors import CheckpointError
from rltrain.storage import files
from rltrain.storage.checkpoint import META, load_arrays

FOLDER, SUFFIX = files.SEGMENTS, ".safetensors"
NAME = re.compile(r"\.?[0-9a-f]+\.safetensors")  # of a segment, or of one that is being written

Arrays = dict[str, np.ndarray]
Listed = dict[str, dict[str, Any]]  # by the name that the replay gave the segment: {"sha256", "bytes"}


class Segments:
    """Writes the segments of one run. Those already written, or listed by the resumed checkpoint, are not repeated as
    long as their files exist.

    Args:
        checkpoints: the folder of the run's checkpoints.
        listed:      the segments that the resumed checkpoint lists.
    """

    def __init__(self, checkpoints: Path, listed: Listed | None = None) -> None:
        self._checkpoints, self.folder = checkpoints, checkpoints / FOLDER
        self._written: Listed = dict(listed or {})

    def write(self, wanted: Mapping[str, Callable[[], Arrays]]) -> Listed:
        """Writes the segments in `wanted` that are not on the disk yet; returns what the checkpoint must list.

        Raises:
            RunFailed: the disk is full, or another error of the operating system.
        """
        kept = {name: self._written[name] for name in wanted if name in self._written}
        self._written = {name: item for name, item in kept.items() if _path(self._checkpoints, item).exists()}
        new = [name for name in wanted if name not in self._written]
        for name in new:
            data = safetensors.numpy.save({key: np.ascontiguousarray(rows) for key, rows in wanted[name]().items()})
            digest = files.digest_of(data)
            path = self.folder / f"{digest['sha256']}{SUFFIX}"
            with files.writing(path):
                self.folder.mkdir(parents=True, exist_ok=True)
            files.replace_file(path, data)
            self._written[name] = digest
        if new:
            files.sync_folder(self.folder)
            files.sync_folder(self._checkpoints)
        return dict(self._written)

    def collect(self) -> None:
        """Removes the files that no checkpoint lists; none if a meta.json cannot be read."""
        needed: set[str] = set()
        try:
            for meta in self._checkpoints.glob(f"*/{META}"):
                listed, _ = files.read_json(meta)
                needed |= {f"{item['sha256']}{SUFFIX}" for item in listed.get("segments", {}).values()}
        except (CheckpointError, KeyError, TypeError, AttributeError):
            return
        for path in self.folder.glob("*"):
            if path.name not in needed and NAME.fullmatch(path.name) and not self.folder.is_symlink():
                with contextlib.suppress(OSError):
                    path.unlink()


def check_segments(checkpoints: Path, listed: Listed) -> None:
    """CheckpointError if a segment that a checkpoint lists is missing, cut or changed."""
    for digest in listed.values():
        files.read_verified(_path(checkpoints, digest), digest)


def segment_readers(checkpoints: Path, listed: Listed) -> dict[str, Callable[[], Arrays]]:
    """Functions that read the segments of a checkpoint; CheckpointError if a file is missing, cut or changed."""

    def reader(digest: Mapping[str, Any]) -> Callable[[], Arrays]:
        return lambda: load_arrays(_path(checkpoints, digest), digest)

    return {name: reader(digest) for name, digest in listed.items()}


def _path(checkpoints: Path, digest: Mapping[str, Any]) -> Path:
    return checkpoints / FOLDER / f"{digest['sha256']}{SUFFIX}"
