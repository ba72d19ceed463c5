"""A worker in this process: for debugging, for tests, and for `--workers 0`."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

from rltrain.envs.closing import close_all
from rltrain.envs.errors import EnvFault, by_user, describe, exit_text, whole_traceback
from rltrain.rollout.workers.forks import without_signals
from rltrain.rollout.workers.handle import ActorLost

_running = False  # a call of a LocalHandle


class _GivenUp(KeyboardInterrupt):
    """Ends a call. It passes through the code of an environment as Ctrl-C does."""


def give_up() -> None:
    """End the call that is under way, if there is one; it raises InterruptedError. For handlers of signals."""
    if _running:
        raise _GivenUp


class LocalHandle:
    """Calls the object immediately; a call that hangs cannot be supervised, but for `give_up`.

    Each call has settings of its own, see `LocalSettings`. They take 0.5 ms, since reading them displaces what the
    processor's caches hold. An object that says that it keeps the settings of the process goes without after the first.

    Args:
        build: makes the object, at the first call. Its attribute `keeps_settings` says whether its calls, from now on,
            run only code that changes no setting of the process.
    """

    waitable = None
    exit_reason = None

    def __init__(self, worker: int, build: Callable[[], Any]) -> None:
        from rltrain.rollout.workers.process_state import LocalSettings

        self.worker = worker
        self._build = build
        self._object: Any = None
        self._answer: Any = None
        self._settings = LocalSettings()
        self._separate = True  # the object needs settings of its own

    def call(self, method: str, *args: Any) -> None:
        global _running
        import torch

        threads = torch.get_num_threads()  # an actor uses one, since the number affects the bits of its rows
        if threads > 1:
            torch.set_num_threads(1)
        try:
            with self._settings() if self._separate else contextlib.nullcontext():
                try:
                    _running = True
                    is_first = self._object is None
                    if is_first:
                        self._object = self._build()
                    self._answer = getattr(self._object, method)(*args)
                finally:
                    _running = False
            if is_first:
                self._separate = not (self._settings.unchanged and getattr(self._object, "keeps_settings", False))
        except _GivenUp:
            raise InterruptedError from None
        except EnvFault as fault:
            self._answer = ActorLost(self.worker, describe(fault))
        except Exception as error:
            self._answer = ActorLost(self.worker, whole_traceback(error))
        except BaseException as error:
            if by_user(error):
                raise
            self._answer = ActorLost(self.worker, exit_text(error))
        finally:
            if threads > 1:
                torch.set_num_threads(threads)

    def result(self) -> Any:
        answer, self._answer = self._answer, None
        if isinstance(answer, ActorLost):
            raise answer
        return answer

    def kill(self, why: str) -> None:
        self._answer = ActorLost(self.worker, why)

    def stop(self) -> None:
        """No-op: `close` ends it."""

    def close(self) -> None:
        try:
            if self._object is not None:
                closing, self._object = self._object, None
                with without_signals(), self._settings():  # it may send itself some; the time is limited
                    close_all([closing])
                    del closing
                    gc.collect()  # a pool of multiprocessing must end before its processes do, or its end hangs
        finally:
            self._settings.end()
