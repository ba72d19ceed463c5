"""Environments that fail on purpose: they raise, or they hang."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from rltrain.envs.problems.probes import Counter, Step


def made(once: str) -> bool:
    """Whether the file `once` was not there and is now: true for one caller, whatever the number of processes."""
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


class Faulty(Counter):
    """A Counter that does something bad in its `at`-th step, counted over the life of the instance.

    Args:
        at:   the step; below 1000 the first look or the proof of `bring_back` may be where it happens.
        once: a file; if it is there all is well, else it is made when the fault happens: one fault in all processes.
    """

    def __init__(self, fault: Callable[[], None], at: int = 2000, once: str = "") -> None:
        super().__init__()
        self._fault, self._at, self._once, self._steps = fault, at, once, 0

    def step(self, action: Any) -> Step:
        self._steps += 1
        if self._steps == self._at and (not self._once or made(self._once)):
            self._fault()
        return super().step(action)


def raises(at: int = 2000, once: str = "") -> Faulty:
    """Raises RuntimeError in its `at`-th step; see Faulty."""

    def fault() -> None:
        raise RuntimeError(f"the probe raises in step {at}, as it was asked to")

    return Faulty(fault, at, once)


def hangs(at: int = 2000, once: str = "") -> Faulty:
    """Sleeps for ever in its `at`-th step; see Faulty."""

    def fault() -> None:
        while True:
            time.sleep(3600)

    return Faulty(fault, at, once)
