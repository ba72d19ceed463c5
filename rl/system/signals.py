"""Ctrl-C and SIGTERM: the first asks a run to stop, the second to stop at once, the third ends the process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, Self

from rltrain.errors import Stop
from rltrain.rollout.workers.forks import kept_from_children

NUMBERS = (signal.SIGINT, signal.SIGTERM)
set_handler = signal.signal  # with --workers 0, code of an environment finds another function under this name


class Signals:
    """A context that handles signals. Before `ask` is set a signal raises `Stop`; afterwards it calls `ask`."""

    def __init__(self) -> None:
        self.signum: int | None = None  # of the newest signal
        self.ask: Callable[[bool], None] | None = None  # called with False at the first signal, then with True
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
        again, self.signum = self.signum is not None, signum
        if again:  # the default handler ends the process at the third, even in C code that hangs
            for number in NUMBERS:
                set_handler(number, signal.SIG_DFL)
        if self.ask is not None:
            self.ask(again)
        elif not again:
            raise Stop(signum)


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
