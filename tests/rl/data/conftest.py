"""The command rldata, as the tests of this folder call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rltrain import cli


@pytest.fixture
def rldata(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command; its output, or the one line of its error."""

    def run(*argv: Any, status: int = 0) -> str:
        assert cli.main_data([str(word) for word in argv]) == status
        out, err = capsys.readouterr()
        if status == 2:
            (line,) = err.splitlines()
            return str(line)
        return out

    return run


@pytest.fixture
def refused(rldata: Callable[..., str]) -> Callable[..., str]:
    """Runs the command, which must refuse what it is given; the one line of its error."""
    return lambda *argv: rldata(*argv, status=2)
