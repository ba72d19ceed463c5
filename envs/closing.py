"""Closes environments within a time limit. A `close()` that raises or hangs is reported in a line and ignored."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rltrain.envs.errors import by_user

CLOSE_SECONDS = 10.0  # allowed for all environments together
SECOND_CLOSE = 1.0  # the same, after a `close()` has used up its time
SHORTEST = 0.1  # seconds allowed for one environment, if the others have used up the time
REPEAT = 1.0  # seconds until an interrupted `close()` that still does not return is interrupted again

_reported: set[str] = set()  # lines that this process has printed
_was_late = False


def close(env: Any) -> None:
    """Close one environment; see `close_all`."""
    close_all([env])


def close_all(envs: Sequence[Any], seconds: float | None = None) -> None:
    """Close environments. In the main thread a `close()` that does not return in time is interrupted."""
    seconds = CLOSE_SECONDS if seconds is None else seconds
    end = time.monotonic() + (min(seconds, SECOND_CLOSE) if _was_late else seconds)
    for env in envs:
        name = type(getattr(env, "unwrapped", env)).__name__
        attempt(lambda env=env: env.close(), f"close() of {name}", end - time.monotonic())  # type: ignore[misc]


def attempt(call: Callable[[], Any], name: str, seconds: float = CLOSE_SECONDS) -> None:
    """Call a function of the user's at the end of a run. It may raise, and in the main thread it may hang."""
    try:
        with _interrupted_after(max(seconds, SHORTEST)):
            call()
    except _Late:
        global _was_late
        _was_late = True
        _report(f"{name} did not return in time")
    except BaseException as error:  # also sys.exit
        if by_user(error):
            raise
        _report(f"{name} raised {type(error).__name__}: {' '.join(str(error).split())}".rstrip(": "))


class _Late(BaseException):
    """`close()` has used up its time. No Exception, so that the environment does not catch it."""


@contextlib.contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Raises `_Late` in the block after some seconds; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_: Any) -> None:
        raise _Late

    handler: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _report(text: str) -> None:
    line = f"rltrain: {text}; this is ignored"
    if line not in _reported:
        _reported.add(line)
        with contextlib.suppress(Exception):  # stderr is closed, or an object of the environment
            print(line, file=sys.stderr, flush=True)
