"""A `close()` that raises or hangs is one line; the other environments are closed."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from rltrain.envs import closing


class Closes:
    def __init__(self, how: Any) -> None:
        self.how, self.closed = how, 0

    def close(self) -> None:
        self.closed += 1
        self.how()


def fails() -> None:
    raise ValueError("the simulator\nis gone")


def interrupts() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (fails, "raised ValueError: the simulator is gone"),
        (lambda: sys.exit(0), "raised SystemExit: 0"),
        (lambda: time.sleep(3600), "did not return in time"),
    ],
)
def test_a_bad_close_is_one_line(how: Any, text: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(closing, "_reported", set())
    monkeypatch.setattr(closing, "_was_late", False)
    envs = [Closes(how), Closes(how), Closes(lambda: None)]

    closing.close_all(envs, seconds=0.3)

    assert capsys.readouterr().err == f"rltrain: close() of Closes {text}; this is ignored\n"
    assert [env.closed for env in envs] == [1, 1, 1]


def test_ctrl_c_is_no_fault_of_close() -> None:
    with pytest.raises(KeyboardInterrupt):
        closing.close(Closes(interrupts))
