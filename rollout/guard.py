"""Ends a worker that stops in the middle of an answer: reading the rest of it could not be given up."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rltrain.rollout.handle import Handle

POLL = 0.5  # seconds between two looks


class Guard:
    """Watches, from a thread of its own, how long an answer takes to be read.

    Args:
        patience: seconds that it may take, asked anew at each look.
    """

    def __init__(self, patience: Callable[[], float]) -> None:
        self._patience = patience
        self._reading: tuple[Handle, float] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard of answers", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def reading(self, handle: Handle) -> Iterator[None]:
        """While the answer of `handle` is read."""
        self._reading = handle, time.monotonic()
        try:
            yield
        finally:
            self._reading = None

    def close(self) -> None:
        """Nothing is read any more."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            reading = self._reading
            if reading is not None and time.monotonic() - reading[1] > self._patience():
                reading[0].kill("it stopped in the middle of an answer, so it was ended")
