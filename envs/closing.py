"""Closes environments within a time limit. A `close()` that raises or hangs is reported in a line and ignored."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

CLOSE_SECONDS = 10.0  # allowed for all environments together
REPEAT = 1.0  # seconds until an interrupted `close()` that still does not return is interrupted again

_reported: set[str] = set()  # lines that this process has printed


def close(env: Any) -> None:
    """Close one environment; see `close_all`."""
    close_all([env])


def close_all(envs: Sequence[Any], seconds: float = CLOSE_SECONDS) -> None:
    """Close environments. In the main thread a `close()` that does not return in time is interrupted."""
    end = time.monotonic() + seconds
    for env in envs:
        try:
            with _interrupted_after(max(end - time.monotonic(), REPEAT / 10)):
                env.close()
        except KeyboardInterrupt:
            raise
        except _Late:
            _report(env, f"did not return within {seconds:g} s")
        except BaseException as error:  # also sys.exit
            _report(env, f"raised {type(error).__name__}: {' '.join(str(error).split())}".rstrip(": "))


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


def _report(env: Any, what: str) -> None:
    line = f"rltrain: close() of {type(getattr(env, 'unwrapped', env)).__name__} {what}; this is ignored"
    if line not in _reported:
        _reported.add(line)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed
            print(line, file=sys.stderr, flush=True)
