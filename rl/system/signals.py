"""Ctrl-C and SIGTERM: the first asks a run to stop, the second to stop at once, the third ends the process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, Self

from rltrain.errors import Stop

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """A context that handles signals. Before `ask` is set a signal raises `Stop`; afterwards it calls `ask`."""

    def __init__(self) -> None:
        self.signum: int | None = None  # of the newest signal
        self.ask: Callable[[bool], None] | None = None  # called with False at the first signal, then with True
        self._before: dict[int, Any] = {}

    def received(self) -> bool:
        """True after the first signal."""
        return self.signum is not None

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):  # not the main thread: the caller handles signals
            for number in NUMBERS:
                self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on(self, signum: int, _: Any) -> None:
        again, self.signum = self.signum is not None, signum
        if again:  # the default handler ends the process at the third, even in C code that hangs
            for number in self._before:
                signal.signal(number, signal.SIG_DFL)
        if self.ask is not None:
            self.ask(again)
        elif not again:
            raise Stop(signum)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM to the end of the block: torch's C++ code aborts if its import is interrupted."""
    received: list[int] = []
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread
        for number in NUMBERS:
            before[number] = signal.signal(number, lambda which, _: received.append(which))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
    if received:
        signal.raise_signal(received[0])


@contextlib.contextmanager
def sigterm_stops() -> Iterator[None]:
    """SIGTERM raises `Stop` in the block, as Ctrl-C raises KeyboardInterrupt."""

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
