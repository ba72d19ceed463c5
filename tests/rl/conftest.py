"""`launch`: whole commands without the seconds that a new Python takes, and their death where a test wants it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int  # negative: by that signal
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON line, the last of the output."""
        assert self.status == 0, self.err
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    @property
    def line(self) -> str:
        """The one line of an error."""
        (line,) = self.err.splitlines()
        return line


Launch = Callable[..., Done]
WHOLE = 3600.0  # seconds, more than a test has


class Launcher:
    """The process of launcher.py."""

    def __init__(self) -> None:
        words = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
        self._server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def launch(
        self, folder: Path, *argv: str, kill: tuple[str, int] | None = None, main: str = "main", exits: bool = False
    ) -> Done:
        """Run a command to its end."""
        return self.begin(folder, *argv, kill=kill, main=main, exits=exits).end(WHOLE)

    def begin(
        self, folder: Path, *argv: str, kill: tuple[str, int] | None = None, main: str = "main", exits: bool = True
    ) -> Begun:
        """Start a command."""
        job: dict[str, Any] = {"argv": [str(word) for word in argv], "cwd": str(folder), "main": main, "exits": exits}
        job["kill"] = None if kill is None else {"at": kill[0], "n": kill[1]}
        return Begun(self, int(self.ask(job)["pid"]))

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(10)
        self._server.stdout.close()


@dataclass
class Begun:
    """A command that was started and runs until it ends by itself or `end` is called."""

    launcher: Launcher
    pid: int
    over: Done | None = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, seconds: float) -> Done:
        """Wait for it, at most so long, then kill it."""
        if self.over is None:
            self.over = Done(**self.launcher.ask({"end": self.pid, "seconds": seconds}))
        return self.over


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    made = Launcher()
    yield made
    made.close()


@pytest.fixture(scope="session")
def launch(launcher: Launcher) -> Launch:
    """launch(folder, *argv, kill=("step", 3)): see launcher.py."""
    return launcher.launch


@pytest.fixture
def begin(launcher: Launcher) -> Iterator[Callable[..., Begun]]:
    """begin(folder, *argv) starts a command, which a test that fails does not leave behind."""
    begun: list[Begun] = []

    def started(folder: Path, *argv: str) -> Begun:
        begun.append(launcher.begin(folder, *argv))
        return begun[-1]

    yield started
    for run in begun:
        run.end(0.0)
