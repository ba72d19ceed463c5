"""The exceptions of a run, one for each reaction that it asks of the user."""

from __future__ import annotations

import signal
from os import PathLike
from pathlib import Path


class ConfigError(Exception):
    """The run cannot start with this configuration. One line with the setting and its origin. Exit status 2."""

    status = 2


class CheckpointError(Exception):
    """A checkpoint or run folder cannot be used. One line with the file's name. Exit status 2."""

    status = 2


class RunFailed(Exception):
    """The run failed. The message includes the traceback of the environment, if that raised. Exit status 1."""

    status = 1


def as_folder(what: str, value: object) -> Path:
    """The path of a run or a checkpoint; ConfigError if the value is no path."""
    if isinstance(value, str | PathLike) and value != "":
        return Path(value)
    raise ConfigError(f"{what} must be the folder of a run or of a checkpoint, got {value!r}")


class JobLost(RunFailed):
    """A job has no result: its process was lost, or its exception cannot be pickled."""


class ClusterGone(JobLost):
    """A job has no result: the cluster on which it was to run is lost, or had no node for too long."""


class LearnerLost(Exception):
    """One of several learners does not respond, so that the update cannot be finished."""


def diverged(what: str) -> RunFailed:
    """The error for a training that diverged; `what` names the value that is not finite."""
    return RunFailed(
        f"training diverged: {what}. Continue from the last checkpoint with --resume, or start again with a smaller "
        "--lr, --max-grad-norm, --normalize-obs or --normalize-return"
    )


class Stop(KeyboardInterrupt):
    """Ctrl-C or SIGTERM before the run has started. Not an Exception, so that it cannot pass for a worker's failure."""

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signum)
        self.signum = int(signum)
        self.status = 128 + self.signum


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the run, after it wrote a checkpoint. Exit status 130 or 143.

    It is a KeyboardInterrupt and no Exception, so it also ends a loop over runs that catches exceptions.
    """

    def __init__(self, signum: int = signal.SIGINT, text: str = "") -> None:
        super().__init__(signum, text)
        self.signum, self.text = int(signum), text
        self.status = 128 + self.signum

    def __str__(self) -> str:
        return self.text or f"interrupted by {signal.Signals(self.signum).name}"
