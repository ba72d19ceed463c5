"""Ctrl-C and SIGTERM during a run: the first asks, the second urges, the third ends the process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, Self

from rltrain.errors import Stop

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """A context. While the run starts a signal ends that (`Stop`); then it only asks, by way of `ask`."""

    def __init__(self) -> None:
        self.signum: int | None = None  # the newest one
        self.ask: Callable[[bool], None] | None = None  # told of each signal, and whether it is not the first
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):  # not the main thread: signals are the caller's
            for number in NUMBERS:
                self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on(self, signum: int, _: Any) -> None:
        again, self.signum = self.signum is not None, signum
        if again:  # a third one is the system's: it ends whatever hangs here, an environment's C code included
            for number in self._before:
                signal.signal(number, signal.SIG_DFL)
        if self.ask is not None:
            self.ask(again)
        elif not again:
            raise Stop(signum)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done: around the import of torch, whose C++ aborts if it is left."""
    came: list[int] = []
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread
        for number in NUMBERS:
            before[number] = signal.signal(number, lambda which, _: came.append(which))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    if came:
        signal.raise_signal(came[0])


@contextlib.contextmanager
def sigterm_stops() -> Iterator[None]:
    """SIGTERM raises `Stop`, as Ctrl-C raises KeyboardInterrupt: before a run begins, and around evaluations."""

    def stop(signum: int, _: Any) -> None:
        raise Stop(signum)

    before: Any = None
    with contextlib.suppress(ValueError):  # not the main thread
        before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
