"""The journal of a search: one JSON line for each event, flushed to the disk. It is the search's whole state."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rltrain.errors import CheckpointError
from rltrain.storage.files import NO_LINK, read_file, replace_file, writing

JOURNAL = "journal.jsonl"
Event = dict[str, Any]


class Journal:
    """Appends events. A line that a crash cut off is removed.

    Raises:
        RunFailed: the disk is full, or another error of the operating system.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.events = read_events(folder) if self.path.exists() else []
        data = b"".join(_line(event) for event in self.events)
        if not self.path.exists() or self.path.stat().st_size != len(data):
            replace_file(self.path, data)
        with writing(self.path):
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | NO_LINK)

    def add(self, event: Event) -> None:
        """Append an event; it is on the disk when this returns."""
        line = _line(event)
        with writing(self.path):
            if os.write(self._file, line) != len(line):
                raise OSError(28, "No space left on device")
            os.fsync(self._file)
        self.events.append(event)

    def close(self) -> None:
        os.close(self._file)


def read_events(folder: Path) -> list[Event]:
    """The events of a search's folder, oldest first; CheckpointError if a complete line is damaged."""
    path = folder / JOURNAL
    lines = read_file(path).split(b"\n")
    events = []
    for number, line in enumerate(lines[:-1], 1):  # the last one is empty, or was cut off
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                raise ValueError
        except ValueError:
            raise CheckpointError(f"{path}, line {number}, is damaged: it is no event of a search") from None
        events.append(event)
    return events


def _line(event: Event) -> bytes:
    return json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
