"""Calls the callbacks of a run, keeps their state in checkpoints, and reports their exceptions."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rltrain.callbacks.callback import HOOKS, overrides, packed, unpacked
from rltrain.callbacks.run_view import Requests, RunView
from rltrain.errors import ConfigError, RunFailed
from rltrain.evaluation.background import EvaluationFailed

OURS = (RunFailed, EvaluationFailed, InterruptedError)  # exceptions that what a callback asked for may raise


class CallbackFailed(Exception):
    """A callback raised an exception. The text has the user's own traceback, or one line if it asked for too much."""


class Callbacks:
    """The callbacks of a run. `bool(callbacks)` tells whether there are any.

    Args:
        run: a `rltrain.run.Run`.
    """

    def __init__(self, callbacks: Sequence[Any], run: Any) -> None:
        self._run = run
        self.requests = Requests()
        self.view = RunView(run, self.requests)
        self._callbacks = list(callbacks)
        self._hooks = {
            hook: [(each, getattr(each, hook)) for each in self._callbacks if overrides(each, hook)] for hook in HOOKS
        }
        self._saved: dict[int, Any] = {}  # the state of each callback at the checkpoint that the run continues from
        self._repeat: Path | None = None  # the checkpoint for which `on_checkpoint` is to be called again
        self._kept: dict[int, Any] = {}  # the last state of each callback, for a run that fails
        self._begun = False
        self.failed = False  # a callback raised an exception: no more hooks are called but `on_end`

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def wants(self, hook: str) -> bool:
        """True if a callback has this hook."""
        return bool(self._hooks[hook])

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all callbacks that have it, in their order.

        Raises:
            CallbackFailed: one raised an exception.
        """
        if self.failed:
            return
        for callback, method in self._hooks[hook]:
            self.view.hook = hook
            try:  # faster than a context, since a replay may have a delivery for each step
                method(self.view, *arguments)
            except BaseException as error:
                self._blame(callback, hook, error)
                raise
        self.view.hook = ""

    def begin(self, resumed: bool) -> None:
        """Call `on_start`, and restore the states of a run that continues from a checkpoint."""
        self._begun = True
        self.view.resumed = resumed
        self.view.muted = bool(self._saved) or self._repeat is not None
        self.call("on_start")
        self.view.muted = False
        for number, state in self._saved.items():
            callback = self._callbacks[number]
            if state is not None and hasattr(callback, "load_state"):
                with self._blaming(callback, "load_state"):
                    callback.load_state(unpacked(state))
        self._saved.clear()
        if self._repeat is not None:
            path, self._repeat = self._repeat, None
            self.call("on_checkpoint", path)

    def end(self, why: str) -> str | None:
        """Call `on_end` of every callback, also if one of them, or another hook before, raised an exception.

        Returns:
            The text about the first exception; None if there was none.
        """
        if not self._begun:
            return None
        self._begun = False
        self.view.stopped, self.view.hook, self.failed = why, "on_end", False
        text = None
        for callback, method in self._hooks["on_end"]:
            try:
                with self._blaming(callback, "on_end"):
                    method(self.view)
            except CallbackFailed as failed:
                text = text or str(failed)
        return text

    def state(self, repeat: bool) -> dict[str, Any]:
        """What a checkpoint must hold: {} if there are no callbacks, and there were none.

        Args:
            repeat: a run that continues from the checkpoint calls `on_checkpoint` for it.
        """
        if not self._callbacks and not self.requests.changes and self.requests.stop is None:
            return {}
        entries = []
        for number, callback in enumerate(self._callbacks):
            if not self.failed:
                with self._blaming(callback, "state"):
                    state: Any = getattr(callback, "state", dict)()
                    try:
                        self._kept[number] = packed(state)
                    except TypeError as error:
                        raise ConfigError(f"state() must return plain data: {error}") from None
            entries.append({"name": name_of(callback), "state": self._kept.get(number)})
        return {
            "entries": entries,
            "requests": self.requests.state(),
            "repeat": repeat,
            "newest": {name: float(value) for name, value in self._run.learner.newest.items()},
        }

    def load(self, state: Mapping[str, Any], path: Path) -> list[str]:
        """Take the state of a checkpoint, which `begin` gives to the callbacks. Returns notes on missing ones.

        Args:
            path: of the checkpoint.
        """
        self.requests.load(state.get("requests", {}))
        self._run.learner.newest = {str(name): float(value) for name, value in state.get("newest", {}).items()}
        entries = list(state.get("entries", ()))
        for number, callback in enumerate(self._callbacks):
            entry = next((entry for entry in entries if entry["name"] == name_of(callback)), None)
            if entry is not None:
                entries.remove(entry)
                self._saved[number] = self._kept[number] = entry["state"]
        if self._callbacks and state.get("repeat"):
            self._repeat = path
        return [f"the callback {entry['name']} of this run was left out; its state is lost" for entry in entries]

    @contextlib.contextmanager
    def _blaming(self, callback: object, hook: str) -> Iterator[None]:
        """A block: an exception in it is a fault of the callback."""
        try:
            yield
        except BaseException as error:
            self._blame(callback, hook, error)
            raise

    def _blame(self, callback: object, hook: str, error: BaseException) -> None:
        """CallbackFailed from an exception that is the callback's."""
        if isinstance(error, OURS):
            return
        self.failed = True
        where = f"callback {name_of(callback)}, {hook} at step {self.view.steps:,}"
        trace = error.__traceback__
        frames = list(_of_user(trace))
        if isinstance(error, ConfigError):
            at = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
            raise CallbackFailed(f"{where}{at}: {error}") from error
        while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace)
        raise CallbackFailed(f"{where}:\n{''.join(lines).rstrip()}") from error


def name_of(callback: object) -> str:
    """The name of a callback in messages and checkpoints."""
    return type(callback).__qualname__


def _of_user(trace: Any) -> Iterator[traceback.FrameSummary]:
    """The frames of a traceback that are not in this package."""
    here = str(Path(__file__).parents[1])
    for frame in traceback.extract_tb(trace):
        if not str(Path(frame.filename)).startswith(here):
            yield frame
