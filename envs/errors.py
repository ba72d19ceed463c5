"""The two ways an environment can disappoint: it cannot be used as asked, or it fails while stepping."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EnvError(Exception):
    """The environment cannot be made or used. The text is one line for the person at the keyboard."""


class EnvFault(Exception):
    """An environment raised, or returned what cannot be trained on, in the middle of a run.

    `stream` is the stream, `seed` what it was seeded with, `row` the row of the unroll;
    `detail` the environment's own traceback. Travels between processes.
    """

    def __init__(self, stream: int, seed: int, row: int, detail: str) -> None:
        super().__init__(stream, seed, row, detail)
        self.stream, self.seed, self.row, self.detail = stream, seed, row, detail

    def __str__(self) -> str:
        return f"stream {self.stream} (seed {self.seed}), row {self.row}: {self.detail.strip().splitlines()[-1]}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most similar to `name`, whatever its case; None below a similarity of `cutoff`."""
    folded = {one.lower(): one for one in known}
    match = difflib.get_close_matches(name.lower(), folded, 1, cutoff)
    return folded[match[0]] if match else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or nothing."""
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""
