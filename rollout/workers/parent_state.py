"""What a worker takes over from the process that starts it, so that names mean the same in both."""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import process, resource_tracker
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle
import gymnasium

from rltrain.rollout.workers.forks import NUMBERS, one_thread

SAFE_PATH = "PYTHONSAFEPATH"  # environment variable: Python does not put the working folder first in sys.path
MAIN = "__main__"
METHODS = (None, "fork", "spawn", "forkserver")  # start methods that every Python knows


@dataclass(frozen=True)
class ParentState:
    """Made by the parent with `of_this_process`; its worker calls `take_over` and `load`."""

    path: list[str]  # sys.path
    folder: str | None  # the working folder; None if it was deleted
    start_method: str | None  # of multiprocessing, if it was chosen
    environments: tuple[bytes, ...]  # pickled EnvSpecs that are registered with Gymnasium
    main_file: str | None  # of `__main__`
    main_name: str | None  # of `__main__` in `python -m name`
    safe_path: str | None  # value of SAFE_PATH

    @classmethod
    def of_this_process(cls) -> ParentState:
        folder = None
        with contextlib.suppress(OSError):
            folder = os.getcwd()
        main = sys.modules[MAIN]
        file = getattr(main, "__file__", None)
        return cls(
            path=[entry or folder or "" for entry in sys.path],
            folder=folder,
            start_method=multiprocessing.get_start_method(allow_none=True),
            environments=_registered_environments(),
            main_file=None if file is None else os.path.abspath(file),
            main_name=getattr(getattr(main, "__spec__", None), "name", None),
            safe_path=os.environ.get(SAFE_PATH),
        )

    def take_over(self) -> None:
        """Give this process the parent's module path, working folder, start method and registered environments."""
        sys.path[:] = self.path + [entry for entry in sys.path if entry not in self.path]
        with contextlib.suppress(OSError):
            if self.folder is not None:
                os.chdir(self.folder)
        with contextlib.suppress(ValueError):  # that of a library which this process has not imported, as loky's
            multiprocessing.set_start_method(self.start_method, force=True)
        os.environ.pop(SAFE_PATH, None)
        if self.safe_path is not None:
            os.environ[SAFE_PATH] = self.safe_path
        for pickled in self.environments:
            with contextlib.suppress(Exception):  # the environment that needs it will say what is missing
                spec = cloudpickle.loads(pickled)
                gymnasium.registry.setdefault(spec.id, spec)

    def load(self, payload: bytes) -> Any:
        """Unpickle an object. What it holds of the parent's `__main__` is found in this `__main__` too.

        So such classes and functions can be pickled by name, and processes that multiprocessing starts find them in the
        parent's file.
        """
        loaded = cloudpickle.loads(payload)
        if not any(MAIN.encode() in pickled for pickled in (payload, *self.environments)):
            return loaded
        before, main = sys.modules[MAIN], ModuleType(MAIN)
        # Not `isinstance`, which asks some objects of torch for their class, with a warning.
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__module__ == MAIN and thing.__globals__ is not vars(before):
                vars(main).update(thing.__globals__)
        for thing in gc.get_objects():
            if issubclass(type(thing), type) and thing.__module__ == MAIN and not hasattr(before, thing.__name__):
                vars(main).setdefault(thing.__qualname__, thing)
        main.__name__ = MAIN
        if self.main_file is not None:
            main.__file__ = self.main_file
        if self.main_name is not None:
            main.__spec__ = importlib.machinery.ModuleSpec(self.main_name, None)
        sys.modules[MAIN] = main
        return loaded


def _registered_environments() -> tuple[bytes, ...]:
    """The registered environments that are not Gymnasium's own, except those that cannot be pickled."""
    specs = []
    for spec in list(gymnasium.registry.values()):
        if not str(spec.entry_point).startswith("gymnasium."):
            with contextlib.suppress(Exception):
                specs.append(_pickled(spec))
    return tuple(specs)


def _pickled(spec: Any) -> bytes:
    """The spec; an entry point "__main__:Name" as the class or function itself."""
    module, _, name = str(spec.entry_point).partition(":")
    if module == MAIN:
        fields = {key: getattr(spec, key) for key, field in spec.__dataclass_fields__.items() if field.init}
        spec = type(spec)(**{**fields, "entry_point": getattr(sys.modules[MAIN], name)})
    pickled: bytes = cloudpickle.dumps(spec)
    return pickled


@contextlib.contextmanager
def starting_python() -> Iterator[None]:
    """For the start of a Python process: files in the working folder do not hide Python's own modules in it.

    Ctrl-C does not end it before it has its handlers: SIGINT and SIGTERM are blocked until it calls `forks.ignore`, and
    in this thread until the end of the block. A daemonic process of multiprocessing, as those of a pool are, may start
    one too, and so may a worker of loky (joblib has such workers), whose start method the new process does not know.
    """
    method = multiprocessing.get_start_method(allow_none=True)
    config: Any = process.current_process()._config  # type: ignore[attr-defined]
    trackers: Any = [resource_tracker, sys.modules.get("loky.backend.resource_tracker")]
    with one_thread():  # nodes of a cluster in this process start their workers from threads of their own
        before, daemon = os.environ.get(SAFE_PATH), config.get("daemon")
        os.environ[SAFE_PATH] = "1"
        for tracker in filter(None, trackers):
            tracker.ensure_running()  # its start, in the block, would unblock the signals
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
        config["daemon"] = False
        if method not in METHODS:
            multiprocessing.set_start_method("spawn", force=True)
        try:
            yield
        finally:
            os.environ.pop(SAFE_PATH)
            if before is not None:
                os.environ[SAFE_PATH] = before
            if method not in METHODS:
                multiprocessing.set_start_method(method, force=True)
            config.pop("daemon")
            if daemon is not None:
                config["daemon"] = daemon
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
