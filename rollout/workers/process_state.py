"""Keeps apart what an environment and the code around it set for their whole process.

The settings of an environment are in force while its code runs, and those of the learner or the actor at all other
times. So neither of them notices what the other one sets.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` spends a tenth of a millisecond on its enums
import atexit
import builtins
import contextlib
import functools
import gc
import locale
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from rltrain.envs.closing import CLOSE_SECONDS, attempt
from rltrain.envs.errors import ProcessExit
from rltrain.rollout.workers.local_children import LocalChildren

HANDLED = (signal.SIGINT, signal.SIGTERM)
HARMLESS = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGINFO", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
CRASHES = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"}  # fatal under faulthandler too


class Setting(NamedTuple):
    """One setting of the process. Values are compared with `==`."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]


class SeparateSettings:
    """The settings of an environment, apart from those of the code around it."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self._settings = settings
        self._getters = [setting.get for setting in settings]
        self.theirs: list[Any] | None = None  # the environment's, if they differ from those around the last call

    def enter(self) -> list[Any]:
        """Begin to run code of the environment. Returns what `leave` needs."""
        ours = [get() for get in self._getters]
        if self.theirs is not None:
            self._write(ours, self.theirs)
        return ours

    def leave(self, ours: list[Any]) -> None:
        """Code of the environment has ended."""
        theirs = [get() for get in self._getters]
        self.theirs = None if theirs == ours else theirs
        if self.theirs is not None:
            self._write(theirs, ours)

    def _write(self, before: Sequence[Any], after: Sequence[Any]) -> None:
        for setting, old, new in zip(self._settings, before, after, strict=True):
            if old != new:
                with contextlib.suppress(Exception):  # for example, the folder was removed
                    setting.set(new)


class LocalSettings:
    """Runs an environment in the learner's process with settings of its own, as in a process of its own.

    It gets its own standard streams, which it may close. `os._exit` and a signal to itself that would end the process
    raise `ProcessExit`. The run keeps its handlers of SIGINT and SIGTERM, also for those that the environment sends.
    Functions that the environment registers with `atexit` are called by `end`, which also ends its processes.
    """

    def __init__(self) -> None:
        self._settings = SeparateSettings((*TORCH, *process_settings()))
        self._pid, self._at_exits = os.getpid(), list[Callable[[], Any]]()
        self._children = LocalChildren()
        self._handlers: dict[int, Any] = {}  # of HANDLED, that the environment has set
        self._theirs: dict[tuple[Any, str], Any] = {
            (os, "_exit"): self._exit,
            (os, "abort"): self._abort,
            (os, "kill"): self._kill,
            (os, "killpg"): self._killpg,
            (signal, "raise_signal"): self._raise_signal,
            (atexit, "register"): self._at_exit,
            (signal, "signal"): self._signal,
        }
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            with contextlib.suppress(Exception):  # in a notebook or a test it is not a file
                if stream is getattr(sys, f"__{name}__"):
                    self._theirs[sys, name] = open(stream.fileno(), "w", buffering=1, closefd=False)  # noqa: SIM115

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Code of the environment runs in the block."""
        with self._children.marked(), self._in_force():
            yield

    @contextlib.contextmanager
    def _in_force(self) -> Iterator[None]:
        in_main = threading.current_thread() is threading.main_thread()
        handlers = [_signal.getsignal(number) for number in HANDLED] if in_main else []
        mask = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        ours = self._settings.enter()
        replaced = {place: getattr(*place) for place in self._theirs}
        for place, value in self._theirs.items():
            setattr(*place, value)
        try:
            yield
        finally:
            for place, value in replaced.items():
                self._theirs[place] = getattr(*place)
                setattr(*place, value)
            self._settings.leave(ours)
            for number, handler in zip(HANDLED, handlers, strict=False):
                if handler is not None:
                    _signal.signal(number, handler)
            _signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def end(self) -> None:
        """Call what the environment has registered with `atexit`, the last one first, and end its processes.

        Functions that do not get their turn within CLOSE_SECONDS are not called.
        """
        until = time.monotonic() + CLOSE_SECONDS
        with self():
            while self._at_exits and time.monotonic() < until:
                name = "a function that the environment registered with atexit"
                attempt(self._at_exits.pop(), name, until - time.monotonic())
        self._children.close()

    def _exit(self, status: int) -> NoReturn:
        if self._forked():
            _exit(status)
        raise ProcessExit(f"with os._exit({status!r})")

    def _abort(self) -> NoReturn:
        if self._forked():
            _abort()
        raise ProcessExit("with os.abort()")

    def _kill(self, pid: int, number: int) -> None:
        if pid == self._pid or (pid <= 0 and -pid in (0, os.getpgrp())):
            self._check_signal(number)
            own = pid == self._pid and not self._forked()
            if own and number in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
                signal.pthread_kill(threading.get_ident(), number)  # the run's other threads do not block it
                return
        _kill(pid, number)

    def _killpg(self, group: int, number: int) -> None:
        self._kill(-group, number)

    def _raise_signal(self, number: int) -> None:
        self._check_signal(number)
        _raise_signal(number)

    def _check_signal(self, number: int) -> None:
        if not self._forked() and _ends_process(number):
            raise ProcessExit(f"by {signal.Signals(number).name}")

    def _forked(self) -> bool:
        """True in a process that the environment has forked."""
        return os.getpid() != self._pid

    def _at_exit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._at_exits.append(functools.partial(function, *args, **kwargs))
        return function

    def _signal(self, number: int, handler: Any) -> Any:
        if number not in HANDLED or self._forked():
            return _set_handler(number, handler)
        before = self._handlers.get(number, signal.getsignal(number))
        self._handlers[number] = handler
        return before


_exit, _abort, _kill, _raise_signal, _set_handler = os._exit, os.abort, os.kill, signal.raise_signal, signal.signal


def _ends_process(number: int) -> bool:
    """Whether a signal that this process sends to itself ends it."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # 0, or no signal
        return False
    if name in HARMLESS or number in HANDLED:
        return False
    if name == "SIGKILL":
        return True
    if signal.getsignal(number) not in (signal.SIG_DFL, None) or number in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return False
    return name in CRASHES or not _handled_in_c(number)


def _handled_in_c(number: int) -> bool:
    """Whether a library has set a handler of which Python does not know, as `faulthandler.register` does."""
    try:
        with open("/proc/self/status") as status:
            caught = next(line for line in status if line.startswith("SigCgt"))
    except (OSError, StopIteration):  # another system than Linux
        return False
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _attribute(thing: Any, name: str) -> Setting:
    return Setting(functools.partial(getattr, thing, name), functools.partial(setattr, thing, name))


def _contents(values: list[Any]) -> Setting:
    """The items of a list, which stays the same object."""
    return Setting(values.copy, functools.partial(values.__setitem__, slice(None)))


def _descriptor(number: int) -> Setting:
    """The file of a descriptor: its device and inode. A copy of each file is kept open."""
    copies: dict[Any, int] = {}

    def get() -> Any:
        try:
            status = os.fstat(number)
        except OSError:  # it is closed
            return None
        key = status.st_dev, status.st_ino
        if key not in copies:
            copies[key] = os.dup(number)
        return key

    def set_(key: Any) -> None:
        if key is not None:
            os.dup2(copies[key], number)

    return Setting(get, set_)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _environ() -> dict[bytes, bytes]:
    data = os.environ._data  # type: ignore[attr-defined]  # a copy of os.environ itself takes a hundred times longer
    return data.copy()  # type: ignore[no-any-return]


def _set_environ(new: dict[bytes, bytes]) -> None:
    old = _environ()
    for name in old.keys() - new.keys():
        del os.environb[name]
    os.environb.update({name: value for name, value in new.items() if old.get(name) != value})


def _set_filters(new: list[Any]) -> None:
    warnings.filters[:] = new  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _generator() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _set_generator(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _timer() -> tuple[float | None, float]:
    """Of SIGALRM: when it rings next, by time.monotonic, or None; and the seconds between two alarms."""
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    return round(time.monotonic() + left, 2) if left else None, interval


def _set_timer(state: tuple[float | None, float]) -> None:
    """An alarm whose time has passed meanwhile rings at once."""
    at, interval = state
    signal.setitimer(signal.ITIMER_REAL, 0.0 if at is None else max(at - time.monotonic(), 1e-6), interval)


def _default_device() -> Any:
    """None without one. A default device is a function mode of torch; only if there is one, it is worth asking."""
    return torch.get_default_device() if torch._C._len_torch_function_stack() else None


TORCH = (
    Setting(torch.get_default_dtype, torch.set_default_dtype),
    Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    Setting(torch.get_num_threads, torch.set_num_threads),
    Setting(_default_device, torch.set_default_device),
    Setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Setting(torch._C._get_float32_matmul_precision, torch._C._set_float32_matmul_precision),
    Setting(functools.partial(torch.is_autocast_enabled, "cpu"), functools.partial(torch.set_autocast_enabled, "cpu")),
    Setting(lambda: 5e-324 * ONE == 0.0, torch.set_flush_denormal),
)
ONE = 1.0  # a variable, so that Python does not compute the product in advance


def process_settings() -> tuple[Setting, ...]:
    """All others that an environment may change in the learner's process."""
    return (
        Setting(_generator, _set_generator),
        Setting(_timer, _set_timer),
        Setting(_folder, lambda folder: None if folder is None else os.chdir(folder)),
        Setting(_environ, _set_environ),
        _contents(sys.argv),
        _contents(sys.path),
        *(_attribute(sys, name) for name in ("argv", "path", "stdin", "excepthook", "unraisablehook")),
        _attribute(threading, "excepthook"),
        _attribute(builtins, "print"),
        Setting(sys.getrecursionlimit, sys.setrecursionlimit),
        Setting(sys.getswitchinterval, sys.setswitchinterval),
        Setting(warnings.filters.copy, _set_filters),  # type: ignore[attr-defined]
        _attribute(warnings, "showwarning"),
        Setting(functools.partial(locale.setlocale, locale.LC_ALL), functools.partial(locale.setlocale, locale.LC_ALL)),
        _attribute(logging.root, "level"),
        _contents(logging.root.handlers),
        _attribute(logging.root.manager, "disable"),
        Setting(np.geterr, lambda values: np.seterr(**values)),
        Setting(np.get_printoptions, lambda values: np.set_printoptions(**values)),
        Setting(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        Setting(gc.get_threshold, lambda values: gc.set_threshold(*values)),
        Setting(_umask, os.umask),
        _attribute(tempfile, "tempdir"),
        Setting(socket.getdefaulttimeout, socket.setdefaulttimeout),
        Setting(
            functools.partial(multiprocessing.get_start_method, allow_none=True),
            functools.partial(multiprocessing.set_start_method, force=True),
        ),
        *(
            Setting(functools.partial(resource.getrlimit, number), functools.partial(resource.setrlimit, number))
            for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
        ),
        _descriptor(1),
        _descriptor(2),
    )
