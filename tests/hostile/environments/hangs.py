"""Environments that do not return from one of their methods."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time

from harmless import Harmless

LIMIT = "--actor-timeout 2 --max-restarts 1"


class Sleeps(Harmless):
    """time.sleep without end."""

    EXPECT = {"when": ["init", "reset", "step"], "status": 2, "says": "actor-timeout", "flags": LIMIT}

    def disturb(self) -> None:
        time.sleep(1000)


class SleepsLater(Harmless):
    """time.sleep without end, during training."""

    EXPECT = {"when": ["later"], "says": "made no step", "flags": LIMIT, "workers": [2, 8]}

    def disturb(self) -> None:
        time.sleep(1000)


class Swallows(Harmless):
    """A loop that swallows each exception."""

    EXPECT = {"when": ["reset"], "status": 2, "says": "actor-timeout", "flags": LIMIT}

    def disturb(self) -> None:
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(0.1)


class HoldsLock(Harmless):
    """A call in C that never returns and keeps the interpreter's lock."""

    EXPECT = {"when": ["init", "reset", "step"], "status": 2, "says": "actor-timeout", "flags": LIMIT}

    def disturb(self) -> None:
        re.match("(a+)+$", "a" * 60 + "b")


class HoldsLockLater(Harmless):
    """A call in C that never returns and keeps the interpreter's lock, during training."""

    EXPECT = {"when": ["later"], "says": "made no step", "flags": LIMIT, "workers": [2, 8]}

    def disturb(self) -> None:
        re.match("(a+)+$", "a" * 60 + "b")


class Stops(Harmless):
    """SIGSTOP to its own process, during training."""

    EXPECT = {"when": ["later"], "says": "made no step", "flags": LIMIT, "workers": [2, 8]}

    def disturb(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


class StopsAtOnce(Harmless):
    """SIGSTOP to its own process in the first look."""

    EXPECT = {"when": ["reset"], "status": 2, "says": "actor-timeout", "flags": LIMIT}

    def disturb(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


class Deadlock(Harmless):
    """Waits for a lock that it holds."""

    EXPECT = {"when": ["reset"], "status": 2, "says": "actor-timeout", "flags": LIMIT}

    def disturb(self) -> None:
        lock = threading.Lock()
        with lock, lock:
            pass


class CloseSleeps(Harmless):
    """close() does not return."""

    EXPECT = {"when": ["close"], "status": 0, "notes": "close"}

    def disturb(self) -> None:
        time.sleep(1000)


class CloseHoldsLock(Harmless):
    """close() does not return and keeps the interpreter's lock."""

    EXPECT = {"when": ["close"], "status": 1, "says": "made no step", "flags": LIMIT, "workers": (2, 8)}

    def disturb(self) -> None:
        re.match("(a+)+$", "a" * 60 + "b")


class InterruptedHang(Harmless):
    """Ctrl-C while a step hangs, during training."""

    EXPECT = {"when": ["later"], "signal": "SIGINT", "status": 130, "flags": "--actor-timeout 60", "workers": [2, 8]}

    def disturb(self) -> None:
        time.sleep(1000)
