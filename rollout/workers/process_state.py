"""Keeps apart what an environment and the code around it set for their whole process.

The settings of an environment are in force while its code runs, and those of the learner or the actor at all other
times. So neither of them notices what the other one sets.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` spends a tenth of a millisecond on its enums
import atexit
import builtins
import contextlib
import ctypes
import functools
import gc
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import spawn
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch.utils import _python_dispatch

from rltrain.envs.closing import CLOSE_SECONDS, attempt
from rltrain.envs.errors import ProcessExit
from rltrain.rollout.workers.local_children import LocalChildren

HANDLED = (signal.SIGINT, signal.SIGTERM)
SEPARATE = (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)  # none of them is sent while other code runs
NUMPY: Any = np.random  # whose types do not name the functions that exchange its generator
TIMERS = (signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
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


class _Asynchronous:
    """Handlers and timers that stay the environment's until it has ended: its signals may come at any time."""

    def __init__(self) -> None:
        apart = {*HANDLED, *SEPARATE, signal.SIGALRM, signal.SIGKILL, signal.SIGSTOP}
        self._handlers = {number: _signal.getsignal(number) for number in signal.valid_signals() - apart}
        self._timers = [timer for timer in TIMERS if signal.getitimer(timer) == (0.0, 0.0)]

    def restore(self) -> None:
        for timer in self._timers:
            signal.setitimer(timer, 0.0)
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                if handler is not None and _signal.getsignal(number) != handler:
                    _signal.signal(number, handler)


# LocalSettings: in one process there may be several environments at a time.
_in_use: weakref.WeakSet[Any] = weakref.WeakSet()
_before: list[_Asynchronous] = []  # of the time when the first of them was made


class LocalSettings:
    """Runs an environment in the learner's process with settings of its own, as in a process of its own.

    It gets its own standard streams, which it may close. `os._exit` and a signal to itself that would end the process
    raise `ProcessExit`. The run keeps its handlers of SIGINT and SIGTERM, also for those that the environment sends.
    Functions that the environment registers with `atexit` are called by `end`, which also ends its processes. Other
    signals have the handlers of the environment until the last one has ended, since its processes may send them.
    """

    def __init__(self) -> None:
        self._settings = SeparateSettings((*TORCH, *process_settings()))
        self._pid, self._at_exits = os.getpid(), list[Callable[[], Any]]()
        self._children = LocalChildren()
        if not _in_use:
            _before[:] = [_Asynchronous()]
        _in_use.add(self)
        self._numpy: _NumPys | None = None  # NumPy's generator of the environment
        self._numpy_around: _NumPys | None = None  # that of the code around its last call
        self._thread, self._ended = 0, ""  # that runs a call of the environment; how another thread ended the process
        self._handlers: dict[int, Any] = {}  # of HANDLED, that the environment has set
        self._theirs: dict[tuple[Any, str], Any] = {
            (os, "_exit"): self._exit,
            (os, "execv"): self._execv,
            (os, "execve"): self._execve,
            (os, "abort"): self._abort,
            (os, "kill"): self._kill,
            (os, "killpg"): self._killpg,
            (signal, "raise_signal"): self._raise_signal,
            (atexit, "register"): self._at_exit,
            (signal, "signal"): self._signal,
            (os, "environ"): os.environ,
        }
        for name in ("stdout", "stderr"):
            stream, real = getattr(sys, name), f"__{name}__"
            with contextlib.suppress(Exception):  # in a notebook or a test it is not a file
                if stream is getattr(sys, real):
                    own = open(stream.fileno(), "w", buffering=1, closefd=False)  # noqa: SIM115
                    self._theirs[sys, name] = self._theirs[sys, real] = own

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
        self._thread, self._ended = threading.get_ident(), ""
        self._numpy_around = _NumPys.read(self._numpy_around)
        (self._numpy or _NumPys(_copy_of_numpys_generator(), None, None)).use()
        try:
            yield
            if self._ended:
                raise ProcessExit(self._ended)
        finally:
            self._numpy = _NumPys.read(self._numpy)
            self._numpy_around.use()
            for place, value in replaced.items():
                self._theirs[place] = getattr(*place)
                setattr(*place, value)
            self._settings.leave(ours)
            for number, handler in zip(HANDLED, handlers, strict=False):
                if handler is not None:
                    _signal.signal(number, handler)
            _signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def unchanged(self) -> bool:
        """Whether the settings in TORCH and `process_settings` are those of the code around, after the last call."""
        return self._settings.theirs is None and not self._handlers

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
        _in_use.discard(self)
        if not _in_use and _before:
            _before.pop().restore()

    def _exit(self, status: int) -> NoReturn:
        if self._forked():
            _exit(status)
        self._end_call(f"with os._exit({status!r})")

    def _abort(self) -> NoReturn:
        if self._forked():
            _abort()
        self._end_call("with os.abort()")

    def _execv(self, path: Any, args: Any) -> NoReturn:
        if self._forked():
            _execv(path, args)
        self._end_call(f"with os.execv({path!r}, ...)")

    def _execve(self, path: Any, args: Any, env: Any) -> NoReturn:
        if self._forked():
            _execve(path, args, env)
        self._end_call(f"with os.execve({path!r}, ...)")

    def _end_call(self, how: str) -> NoReturn:
        """End the call of the environment, also if a thread of its own ends the process."""
        if threading.get_ident() == self._thread:
            raise ProcessExit(how)
        self._ended = self._ended or f"{how} in a thread of its own"
        raise SystemExit  # ends the thread silently

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
            self._end_call(f"by {signal.Signals(number).name}")

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


_exit, _abort, _kill, _execv, _execve = os._exit, os.abort, os.kill, os.execv, os.execve
_raise_signal, _set_handler = signal.raise_signal, signal.signal


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
    if old.get(b"TZ") != new.get(b"TZ") and hasattr(time, "tzset"):
        time.tzset()


def _contents_of(thing: Any) -> Setting:
    """All attributes of a module or an object, such as functions that are replaced."""
    names = vars(thing)

    def set_(new: dict[str, Any]) -> None:
        for name in names.keys() - new.keys():
            del names[name]
        names.update(new)

    return Setting(names.copy, set_)


def _builtins() -> Setting:
    """Python's own functions, and names that were added to them.

    Names that are added later and begin with two underscores belong to neither side: compiled modules keep there what
    all of them share, once for the whole process (`__pybind11_internals_...`, `__MUJOCO_...`).
    """
    names = vars(builtins)
    own = set(names)

    def get() -> dict[str, Any]:
        found = names.copy()
        for name in found.keys() - own:
            if name.startswith("__"):
                del found[name]
        return found

    def set_(new: dict[str, Any]) -> None:
        for name in get().keys() - new.keys():
            del names[name]
        names.update(new)

    return Setting(get, set_)


def _set_filters(new: list[Any]) -> None:
    warnings.filters[:] = new  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _without_modes() -> Any:
    """Modes that the environment has entered do not change torch's functions in the block."""
    stack = contextlib.ExitStack()
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        stack.enter_context(torch._C._DisableTorchDispatch())
        stack.enter_context(torch._C.DisableTorchFunction())
    return stack


def _generator() -> bytes:
    with _without_modes():
        return torch.default_generator.get_state().numpy().tobytes()


def _set_generator(state: bytes) -> None:
    with _without_modes():
        torch.default_generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


class _NumPys(NamedTuple):
    """NumPy's global generator, which is exchanged as a whole: to read its state takes 50 us.

    The old functions, as `np.random.randn`, draw two normal numbers at a time and keep the second one outside of the
    generator. It is looked for only if the generator has moved, or one was kept before.
    """

    generator: Any
    place: tuple[int, int] | None  # see `_place`
    kept: float | None  # the second normal number, if it is still to be used

    @classmethod
    def read(cls, before: _NumPys | None) -> _NumPys:
        """That of now; `before`: that of an earlier moment."""
        generator = NUMPY.get_bit_generator()
        place = _place(generator)
        if before is not None and place is not None and before[:] == (generator, place, None):
            return before
        state = NUMPY.get_state(legacy=False)
        return cls(generator, place, state["gauss"] if state.get("has_gauss") else None)

    def use(self) -> None:
        """Make it the global one."""
        NUMPY.set_bit_generator(self.generator)
        if self.kept is not None:
            NUMPY.set_state(NUMPY.get_state(legacy=False) | {"has_gauss": 1, "gauss": self.kept})


def _place(generator: Any) -> tuple[int, int] | None:
    """The first of a Mersenne twister's 624 numbers, and the place of the next one; None for another generator."""
    if type(generator) is not NUMPY.MT19937:
        return None
    address = generator.ctypes.state_address
    return ctypes.c_uint32.from_address(address).value, ctypes.c_int.from_address(address + 4 * 624).value


def _copy_of_numpys_generator() -> Any:
    generator = NUMPY.get_bit_generator()
    copy = type(generator)()
    copy.state = generator.state
    return copy


def _timer() -> tuple[float | None, float, Any]:
    """Of SIGALRM: when it rings next, by time.monotonic, or None; the seconds between two alarms; and its handler."""
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    return round(time.monotonic() + left, 2) if left else None, interval, _signal.getsignal(signal.SIGALRM)


def _set_timer(state: tuple[float | None, float, Any]) -> None:
    """An alarm whose time has passed meanwhile rings at once. Without a timer no handler gets the other's alarm."""
    at, interval, handler = state
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    if handler is not None and threading.current_thread() is threading.main_thread():
        _signal.signal(signal.SIGALRM, handler)
    if at is not None:
        signal.setitimer(signal.ITIMER_REAL, max(at - time.monotonic(), 1e-6), interval)


def _modes() -> Any:
    """The modes of torch's functions that are entered. A default device is one of them."""
    count = torch._C._len_torch_function_stack()
    if not count:
        return None
    from torch.utils import _device

    modes = [torch._C._get_function_stack_at(i) for i in range(count)]
    return modes, getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None), _device.CURRENT_DEVICE


def _set_modes(state: Any) -> None:
    from torch.utils import _device

    modes, context, device = state or ([], None, None)
    for _ in range(torch._C._len_torch_function_stack()):
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)
    torch._GLOBAL_DEVICE_CONTEXT.device_context, _device.CURRENT_DEVICE = context, device


_guards: list[Any] = []  # of `_set_inference`; one that is deleted would restore the mode before it


def _set_inference(on: bool) -> None:
    """Leave inference mode, or return to it: the mode itself belongs to whoever entered it."""
    if _guards and _guards[-1].mode != on:
        _guards.pop().__exit__(None, None, None)
        return
    guard = torch.inference_mode(on)
    guard.__enter__()
    _guards.append(guard)


def _dispatch_modes() -> list[Any]:
    return _python_dispatch._get_current_dispatch_mode_stack() if torch._C._len_torch_dispatch_stack() else []


def _set_dispatch_modes(modes: list[Any]) -> None:
    for _ in range(torch._C._len_torch_dispatch_stack()):
        _python_dispatch._pop_mode()
    for mode in modes:
        _python_dispatch._push_mode(mode)


def _saved_tensors_hooks() -> list[Any]:
    """The functions that pack and unpack what autograd saves, those entered last at the end."""
    found = []
    while (hooks := AUTOGRAD._top_saved_tensors_default_hooks(True)) is not None:
        found.append(hooks)
        AUTOGRAD._pop_saved_tensors_default_hooks()
    _push_saved_tensors_hooks(found[::-1])
    return found[::-1]


def _set_saved_tensors_hooks(hooks: list[Any]) -> None:
    for _ in _saved_tensors_hooks():
        AUTOGRAD._pop_saved_tensors_default_hooks()
    _push_saved_tensors_hooks(hooks)


def _push_saved_tensors_hooks(hooks: list[Any]) -> None:
    for pair in hooks:
        AUTOGRAD._push_saved_tensors_default_hooks(*pair)


ONE, TINY = 1.0, 1e-17  # variables, so that Python does not compute products and sums in advance


def _rounding() -> tuple[float, float]:
    """Two sums that show how the processor rounds."""
    return ONE + TINY, ONE - TINY


def _set_rounding(sums: tuple[float, float]) -> None:
    """Set the mode of which `_rounding` returns these sums."""
    for mode in ROUNDING:
        C.fesetround(mode)
        if _rounding() == sums:
            return


AUTOGRAD: Any = torch._C._autograd
TORCH = (
    Setting(torch.is_inference_mode_enabled, _set_inference),
    Setting(_dispatch_modes, _set_dispatch_modes),
    Setting(_saved_tensors_hooks, _set_saved_tensors_hooks),
    Setting(torch._C._is_multithreading_enabled, torch._C._set_multithreading_enabled),
    Setting(torch.get_default_dtype, torch.set_default_dtype),
    Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    Setting(torch.get_num_threads, torch.set_num_threads),
    Setting(_modes, _set_modes),
    Setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Setting(torch._C._get_float32_matmul_precision, torch._C._set_float32_matmul_precision),
    Setting(functools.partial(torch.is_autocast_enabled, "cpu"), functools.partial(torch.set_autocast_enabled, "cpu")),
    Setting(lambda: 5e-324 * ONE == 0.0, torch.set_flush_denormal),
    Setting(_rounding, _set_rounding),
    Setting(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    Setting(torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    Setting(torch._C._get_cudnn_deterministic, torch._C._set_cudnn_deterministic),
    Setting(torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
)
C, ROUNDING = ctypes.CDLL(None), (0x000, 0x400, 0x800, 0xC00)  # modes of an x86 processor: to nearest, down, up, to 0


def _processors() -> list[Setting]:
    """The processors on which this process may run; only Linux can bind it to some."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return [Setting(functools.partial(os.sched_getaffinity, 0), functools.partial(os.sched_setaffinity, 0))]


def _handler(number: int) -> Setting:
    return Setting(functools.partial(_signal.getsignal, number), functools.partial(_signal.signal, number))


def process_settings() -> tuple[Setting, ...]:
    """All others that an environment may change in the learner's process."""
    return (
        Setting(_generator, _set_generator),
        Setting(random.getstate, random.setstate),
        Setting(_timer, _set_timer),
        *(_handler(number) for number in SEPARATE),
        Setting(_folder, lambda folder: None if folder is None else os.chdir(folder)),
        Setting(_environ, _set_environ),
        _contents(sys.argv),
        _contents(sys.path),
        *(_contents(hooks) for hooks in (sys.meta_path, sys.path_hooks)),
        *(_attribute(sys, name) for name in ("argv", "path", "stdin", "excepthook", "unraisablehook", "displayhook")),
        *(_attribute(sys, name) for name in ("breakpointhook", "dont_write_bytecode")),
        Setting(sys.get_int_max_str_digits, sys.set_int_max_str_digits),
        _attribute(threading, "excepthook"),
        _builtins(),
        _contents_of(time),
        Setting(sys.getrecursionlimit, sys.setrecursionlimit),
        Setting(sys.getswitchinterval, sys.setswitchinterval),
        Setting(warnings.filters.copy, _set_filters),  # type: ignore[attr-defined]
        _attribute(warnings, "showwarning"),
        Setting(functools.partial(locale.setlocale, locale.LC_ALL), functools.partial(locale.setlocale, locale.LC_ALL)),
        _attribute(logging.root, "level"),
        _contents(logging.root.handlers),
        _attribute(logging.root.manager, "disable"),
        _attribute(logging, "raiseExceptions"),
        Setting(np.geterr, lambda values: np.seterr(**values)),
        Setting(np.geterrcall, np.seterrcall),
        Setting(np.getbufsize, np.setbufsize),
        Setting(np.get_printoptions, lambda values: np.set_printoptions(**values)),
        _contents_of(torch._tensor_str.PRINT_OPTS),
        Setting(torch.is_warn_always_enabled, torch.set_warn_always),
        _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
        Setting(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        Setting(gc.get_threshold, lambda values: gc.set_threshold(*values)),
        _contents(gc.callbacks),
        Setting(threading.stack_size, threading.stack_size),
        Setting(_umask, os.umask),
        _attribute(tempfile, "tempdir"),
        Setting(socket.getdefaulttimeout, socket.setdefaulttimeout),
        Setting(
            functools.partial(multiprocessing.get_start_method, allow_none=True),
            functools.partial(multiprocessing.set_start_method, force=True),
        ),
        Setting(spawn.get_executable, spawn.set_executable),
        *(
            Setting(functools.partial(resource.getrlimit, number), functools.partial(resource.setrlimit, number))
            for number in {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
        ),
        *_processors(),
        *(_descriptor(number) for number in (0, 1, 2)),
    )
