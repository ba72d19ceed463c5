"""Ends what an environment in the learner's own process leaves behind, also if the learner is killed.

Programs have an environment variable that is set during calls of the environment; forks write their pid into a pipe.
A small process of its own, `process_tree.watch`, ends both when the pipe ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

from rltrain.rollout.workers import process_tree
from rltrain.rollout.workers.cleanup import name_prefix
from rltrain.rollout.workers.forks import ends_forks, reported_forks

MARKER = "RLTRAIN_LOCAL_WORKER"  # environment variable
END_SECONDS = 5.0
_numbers = itertools.count()


class LocalChildren:
    """The children that environments start in the blocks of `marked`. On Linux only."""

    def __init__(self) -> None:
        self._value = f"{name_prefix()}{next(_numbers)}"
        self._pipe: int | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", process_tree.__file__, f"{MARKER}={self._value}"]
            with contextlib.suppress(OSError):  # without it the run goes on
                reader, self._pipe = os.pipe()
                try:
                    self._watch = subprocess.Popen(command, stdin=reader, start_new_session=True)
                finally:
                    os.close(reader)

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """A block in which environments are called."""
        if self._pipe is None:
            yield
            return
        os.environ[MARKER] = self._value
        try:
            with ends_forks(), reported_forks(self._pipe):
                yield
        finally:
            os.environ.pop(MARKER, None)

    def close(self) -> None:
        """End all children."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self._watch is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watch.wait(END_SECONDS)
            self._watch = None
