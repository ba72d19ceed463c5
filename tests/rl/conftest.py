"""`launch`: whole commands without the seconds that a new Python takes, and their death where a test wants it."""

from __future__ import annotations

import json
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


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """launch(folder, *argv, kill=("step", 3)): see launcher.py."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("launcher.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    stdin, stdout = server.stdin, server.stdout

    def launched(folder: Path, *argv: str, kill: tuple[str, int] | None = None, main: str = "main") -> Done:
        job: dict[str, Any] = {"argv": [str(word) for word in argv], "cwd": str(folder), "main": main}
        job["kill"] = None if kill is None else {"at": kill[0], "n": kill[1]}
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        return Done(**json.loads(stdout.readline()))

    yield launched
    stdin.close()
    server.wait(10)
    stdout.close()
