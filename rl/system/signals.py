"""Ctrl-C and SIGTERM: the first asks a run to stop, the second to stop at once, the third ends the process.

An environment in this process may send itself many of them within a moment. So the process ends only if a second has
passed since the first one. If the second one ends a call of the environment, a second must pass after that, too.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from rltrain.errors import Stop
from rltrain.rollout.workers.forks import kept_from_children

NUMBERS = (signal.SIGINT, signal.SIGTERM)
REACTION_SECONDS = 1.0
set_handler = signal.signal  # with --workers 0, code of an environment finds another function under this name


class Signals:
    """A context that handles signals. Before `ask` is set a signal raises `Stop`; afterwards it calls `ask`.

    `ask` may raise an exception, to end what the process does.
    """

    def __init__(self) -> None:
        self.signum: int | None = None  # of the newest signal
        self.ask: Callable[[bool], None] | None = None  # called with False at the first signal, then with True
        self._count, self._since = 0, 0.0
        self._handlers = _handled_by(self._on, NUMBERS)

    def received(self) -> bool:
        """True after the first signal."""
        return self.signum is not None

    def __enter__(self) -> Self:
        self._handlers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handlers.__exit__(*error)

    def _on(self, signum: int, _: Any) -> None:
        now = time.monotonic()
        self.signum = signum
        self._count += 1
        if self._count == 1:
            self._since = now
        late = self._count > 1 and now - self._since >= REACTION_SECONDS
        if late and self._count > 2:
            _end_at_next()
        try:
            if self.ask is not None:
                self.ask(self._count > 1)
            elif self._count == 1:
                raise Stop(signum)
        except BaseException:  # the process reacts
            if self._count == 2:
                self._since = now
            raise
        if late:
            _end_at_next()


def _end_at_next() -> None:
    """Let the next signal end the process, even in C code that hangs."""
    for number in NUMBERS:
        set_handler(number, signal.SIG_DFL)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM to the end of the block: torch's C++ code aborts if its import is interrupted."""
    received: list[int] = []
    with _handled_by(lambda signum, _: received.append(signum), NUMBERS):
        yield
    if received:
        signal.raise_signal(received[0])


@contextlib.contextmanager
def sigterm_stops() -> Iterator[None]:
    """SIGTERM raises `Stop` in the block, as Ctrl-C raises KeyboardInterrupt."""

    def stop(signum: int, _: Any) -> None:
        raise Stop(signum)

    with _handled_by(stop, (signal.SIGTERM,)):
        yield


class TooLate(BaseException):
    """The time of `alarm_at` is over. No Exception, so that nothing in the block takes it for a failure."""


@contextlib.contextmanager
def alarm_at(end: float) -> Iterator[None]:
    """Raises `TooLate` in the block at this monotonic time; no effect outside the main thread."""

    def late(*_: Any) -> None:
        raise TooLate

    if end == math.inf or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        with _handled_by(late, (signal.SIGALRM,)):
            signal.setitimer(signal.ITIMER_REAL, max(end - time.monotonic(), 0.001))
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, Any], Any], numbers: tuple[int, ...]) -> Iterator[None]:
    """Signals call `handler` in the block. Outside the main thread, where that is not possible, nothing changes."""
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        for number in numbers:
            before[number] = signal.signal(number, handler)
    try:
        with kept_from_children(handler):
            yield
    finally:
        for number, former in before.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)
