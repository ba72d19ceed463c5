"""--max-seconds: when a run must stop training so that the whole command ends in time."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

CLOSE_SECONDS = 1.0  # for the end of all processes, after the last checkpoint, at least
CLOSE_SHARE = 0.15  # the same as a share of the time that the start took: on a busy machine the end takes long, too
CHECKPOINT_SECONDS = 0.5  # for a checkpoint without a replay, before one was written
WRITE_SPEED = 100e6  # bytes per second at which new rows of a replay are written, hashed and flushed
FIRST_EVALUATION = 0.1  # share of the time for the last evaluation, before one has ended
LONGEST_EVALUATION = 0.25  # share of the time that the last evaluation may need; a longer one is left out
ROUNDS = 20  # newest rounds of the training loop of which the longest counts
LONGEST_START = 60.0  # seconds of Python's start; an older process was not started for this command

_command_began: float | None = None


@contextlib.contextmanager
def command(began: float) -> Iterator[None]:
    """In the block the time of a run is that of the command, which began at this monotonic time."""
    global _command_began
    _command_began = began
    try:
        yield
    finally:
        _command_began = None


def process_age() -> float:
    """Seconds since this process began, for a command that imports this now; 0 if the system does not say it."""
    try:
        started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, AttributeError, IndexError):
        return 0.0
    return age if 0 <= age < LONGEST_START else 0.0


class TimeLimit:
    """The time of a run, from the beginning of the command, or else of its creation.

    Args:
        seconds: after which everything must have ended; None: no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self.began = time.monotonic() if _command_began is None else _command_began
        self.seconds = math.inf if seconds is None else seconds
        self._close = CLOSE_SECONDS
        self.unsaved = 0  # bytes of the replay's rows that the next checkpoint writes
        self._rounds = deque[float](maxlen=ROUNDS)
        self._checkpoint: float | None = None  # longest of those that were written
        self.evaluation: float | None = None  # seconds of the newest one that ended
        self._since: float | None = None  # time at which the round under way began

    def note_round(self) -> None:
        """A round of the training loop ended."""
        if self._since is not None:
            self._rounds.append(time.monotonic() - self._since)

    def begin_round(self) -> None:
        """A round of the training loop begins."""
        if self._since is None:
            self._close = max(CLOSE_SECONDS, CLOSE_SHARE * self.elapsed)
        self._since = time.monotonic()

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """In the block a checkpoint is written."""
        began = time.monotonic()
        yield
        self._checkpoint = max(self._checkpoint or 0.0, time.monotonic() - began)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def end(self) -> float:
        """The monotonic time at which the last checkpoint must have been written."""
        return self.began + self.seconds - self._close

    @property
    def evaluations_end(self) -> float:
        """The monotonic time at which evaluations are cut off, so that the last checkpoint can be written."""
        return self.end - max(CHECKPOINT_SECONDS, self._checkpoint or 0.0) - self.unsaved / WRITE_SPEED

    def reached(self, evaluates: bool) -> bool:
        """True if one more round could not end in time.

        Args:
            evaluates: an evaluation follows the last round.
        """
        if self.seconds == math.inf:
            return False
        last = self.evaluation_seconds if evaluates else 0.0
        return time.monotonic() + max(self._rounds, default=0.0) + last >= self.evaluations_end

    @property
    def allows_evaluation(self) -> bool:
        """True if an evaluation that begins now can probably end in time."""
        seconds = self.evaluation_seconds
        return self.seconds == math.inf or 0 < seconds / 2 < self.evaluations_end - time.monotonic()

    @property
    def evaluation_seconds(self) -> float:
        """The time that is kept for the last evaluation; 0 if it would take too long, so that it is left out."""
        if self.evaluation is None:
            return FIRST_EVALUATION * self.seconds
        return self.evaluation if self.evaluation <= LONGEST_EVALUATION * self.seconds else 0.0
