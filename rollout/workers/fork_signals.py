"""Handlers of SIGINT and SIGTERM that a process has and its children have not: those start with the defaults.

An ignored signal (SIG_IGN) stays ignored in a program that the process starts; a handler written in Python does not.
A fork keeps both, so the handlers that are registered here are replaced in a forked child.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

Handler = Callable[[int, Any], Any]
_own: list[Handler] = []


def keep_from_children(handler: Handler) -> None:
    """Replace this handler by the default one in children that are forked from now on."""
    if handler not in _own:
        _own.append(handler)


def no_reaction(signum: int, frame: Any) -> None:
    """Handler in place of SIG_IGN."""


def ignore() -> None:
    """Ignore SIGINT and SIGTERM in this process, and let no signal be blocked. Its children do not inherit that."""
    for number in NUMBERS:
        signal.signal(number, no_reaction)
        signal.siginterrupt(number, False)  # code in C that does not expect it is not interrupted
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _in_child() -> None:
    for number in NUMBERS:
        if signal.getsignal(number) in _own:
            with contextlib.suppress(ValueError):  # the fork happened in another interpreter's thread
                signal.signal(number, DEFAULTS[number])


keep_from_children(no_reaction)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
