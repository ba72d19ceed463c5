"""What can go wrong with a run, one exception for each thing the person at the keyboard would do next."""

from __future__ import annotations

import signal


class ConfigError(Exception):
    """The run cannot start as asked. One line that names the setting and where it came from. Exit status 2."""

    status = 2


class CheckpointError(Exception):
    """A checkpoint or run folder cannot be used. One line that names the file. Exit status 2."""

    status = 2


class RunFailed(Exception):
    """The run ended before its time. The whole story, the environment's own traceback included. Exit status 1."""

    status = 1


class LearnerLost(Exception):
    """One of several learners does not answer any more, so that no update can be finished."""


def diverged(what: str) -> RunFailed:
    """Training has left the numbers: `what` is the number that is none."""
    return RunFailed(
        f"training diverged: {what}. Go on from the last checkpoint with --resume, or begin anew with a smaller --lr, "
        "--max-grad-norm, --normalize-obs or --normalize-return"
    )


class Stop(KeyboardInterrupt):
    """Ctrl-C or SIGTERM before a run has begun. Not an Exception, so that nobody takes it for a worker's fault."""

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signum)
        self.signum = int(signum)
        self.status = 128 + self.signum


class Interrupted(Exception):
    """Ctrl-C or SIGTERM ended the run, after a checkpoint was written. Exit status 130 or 143."""

    def __init__(self, signum: int = signal.SIGINT, text: str = "") -> None:
        super().__init__(signum, text)
        self.signum, self.text = int(signum), text
        self.status = 128 + self.signum

    def __str__(self) -> str:
        return self.text or f"interrupted by {signal.Signals(self.signum).name}"
