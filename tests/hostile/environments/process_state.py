"""Environments that change what belongs to their whole process, at each of their events. Training must not see it."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import decimal
import gc
import io
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
from typing import Any

import numpy as np
import torch
from harmless import Harmless

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ChangesDirectory(Harmless):
    """os.chdir to another folder."""

    def disturb(self) -> None:
        os.chdir("/")


class RemovesItsDirectory(Harmless):
    """os.chdir into a folder that is then deleted: os.getcwd() raises."""

    def disturb(self) -> None:
        folder = tempfile.mkdtemp(dir="/tmp")
        os.chdir(folder)
        os.rmdir(folder)


class DefaultDtype(Harmless):
    """torch.set_default_dtype(float64)"""

    def disturb(self) -> None:
        torch.set_default_dtype(torch.float64)


class DefaultDevice(Harmless):
    """torch.set_default_device("meta")"""

    def disturb(self) -> None:
        torch.set_default_device("meta")


class GradientsOff(Harmless):
    """torch.set_grad_enabled(False)"""

    def disturb(self) -> None:
        torch.set_grad_enabled(False)


class InferenceMode(Harmless):
    """Enters torch.inference_mode and never leaves it."""

    def disturb(self) -> None:
        torch.inference_mode().__enter__()


class TorchThreads(Harmless):
    """torch.set_num_threads(3)"""

    def disturb(self) -> None:
        torch.set_num_threads(3)


class TorchModes(Harmless):
    """Deterministic algorithms, flushed denormals, anomaly detection, matmul precision."""

    def disturb(self) -> None:
        torch.use_deterministic_algorithms(True)
        torch.set_flush_denormal(True)
        torch.autograd.set_detect_anomaly(True)
        torch.set_float32_matmul_precision("medium")


class Seeds(Harmless):
    """Seeds the global generators of random, NumPy and torch."""

    def disturb(self) -> None:
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)


class Draws(Harmless):
    """Draws from the global generators of random, NumPy and torch."""

    def disturb(self) -> None:
        random.random()
        np.random.rand(3)
        torch.rand(3)


class IgnoresSignals(Harmless):
    """Ignores SIGINT and SIGTERM."""

    def disturb(self) -> None:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, signal.SIG_IGN)


class ResetsSignals(Harmless):
    """Gives SIGINT and SIGTERM their default handlers."""

    def disturb(self) -> None:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.SIG_DFL)


class TakesSignals(Harmless):
    """Handlers of SIGINT and SIGTERM that end the process with status 0."""

    def disturb(self) -> None:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):
                signal.signal(number, lambda *_: os._exit(0))


class BlocksSignals(Harmless):
    """Blocks all signals of its thread."""

    def disturb(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


class Interrupted(Harmless):
    """Ctrl-C during training: its handlers of SIGINT ignore it."""

    EXPECT = {"signal": "SIGINT", "status": 130, "says": "checkpoint"}

    def disturb(self) -> None:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.SIG_IGN)
        time.sleep(0.01)


class InterruptedBlocked(Harmless):
    """Ctrl-C during training: it blocks SIGINT."""

    EXPECT = {"signal": "SIGINT", "status": 130, "says": "checkpoint"}

    def disturb(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        time.sleep(0.01)


class Terminated(Harmless):
    """SIGTERM during training: its handlers end the process with status 0."""

    EXPECT = {"signal": "SIGTERM", "status": 143, "says": "checkpoint"}

    def disturb(self) -> None:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):
                signal.signal(number, lambda *_: os._exit(0))
        time.sleep(0.01)


class Alarms(Harmless):
    """A timer whose SIGALRM comes every 10 ms."""

    def disturb(self) -> None:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)


class ClosesOutput(Harmless):
    """Closes sys.stdout and sys.stderr."""

    def disturb(self) -> None:
        sys.stdout.close()
        sys.stderr.close()


class ReplacesOutput(Harmless):
    """Puts objects without a file in place of sys.stdout and sys.stderr."""

    def disturb(self) -> None:
        sys.stdout, sys.stderr = io.StringIO(), None


class OutputDescriptors(Harmless):
    """Redirects the descriptors 1 and 2 to /dev/null."""

    def disturb(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)


class ClosesInput(Harmless):
    """Closes sys.stdin."""

    def disturb(self) -> None:
        sys.stdin.close()


class WarningsToErrors(Harmless):
    """Turns all warnings into errors."""

    def disturb(self) -> None:
        warnings.simplefilter("error")


class ShowsNoWarnings(Harmless):
    """Replaces warnings.showwarning with a function that raises."""

    def disturb(self) -> None:
        warnings.showwarning = self.step
        warnings.resetwarnings()


class Locale(Harmless):
    """locale.setlocale to C."""

    def disturb(self) -> None:
        locale.setlocale(locale.LC_ALL, "C")


class NoLogging(Harmless):
    """Disables logging and closes its handlers."""

    def disturb(self) -> None:
        logging.disable(logging.CRITICAL)
        logging.shutdown()


class LoudLogging(Harmless):
    """A root logger that writes each debug message."""

    def disturb(self) -> None:
        logging.basicConfig(level=logging.DEBUG, force=True)


class RecursionLimit(Harmless):
    """sys.setrecursionlimit near to the present depth."""

    def disturb(self) -> None:
        depth, frame = 0, sys._getframe()
        while frame.f_back is not None:
            depth, frame = depth + 1, frame.f_back
        sys.setrecursionlimit(depth + 30)


class Arguments(Harmless):
    """Empties sys.argv."""

    def disturb(self) -> None:
        sys.argv.clear()


class ReadsArguments(Harmless):
    """Reads sys.argv with a parser of its own that knows none of our flags."""

    def disturb(self) -> None:
        import argparse

        argparse.ArgumentParser().parse_args()


class ImportPath(Harmless):
    """Empties sys.path."""

    def disturb(self) -> None:
        sys.path.clear()


class ClearsEnviron(Harmless):
    """Deletes all environment variables."""

    def disturb(self) -> None:
        os.environ.clear()


class ChangesEnviron(Harmless):
    """Environment variables that change torch, temporary folders and paths."""

    def disturb(self) -> None:
        os.environ.update(OMP_NUM_THREADS="7", TMPDIR="/nowhere", PATH="/nowhere", PYTHONPATH="/nowhere", HOME="/no")


class TemporaryFolder(Harmless):
    """tempfile.tempdir is a folder that does not exist."""

    def disturb(self) -> None:
        tempfile.tempdir = "/nowhere"


class Umask(Harmless):
    """os.umask(0o777): new files can be read by nobody."""

    def disturb(self) -> None:
        os.umask(0o777)


class NoGarbageCollection(Harmless):
    """gc.disable() and gc.freeze()"""

    def disturb(self) -> None:
        gc.disable()
        gc.freeze()


class StartMethod(Harmless):
    """multiprocessing.set_start_method("spawn")"""

    def disturb(self) -> None:
        multiprocessing.set_start_method("spawn", force=True)


class AtExit(Harmless):
    """An exit handler that ends the process with status 7."""

    def disturb(self) -> None:
        atexit.register(os._exit, 7)


class AtExitHangs(Harmless):
    """An exit handler that hangs."""

    def disturb(self) -> None:
        atexit.register(time.sleep, 1000)


class LeavesThread(Harmless):
    """Starts a non-daemon thread that never ends."""

    def disturb(self) -> None:
        if threading.active_count() < 20:
            threading.Thread(target=time.sleep, args=(1000,)).start()


class BusyThread(Harmless):
    """Starts a daemon thread that computes without end."""

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        self.over = False
        threading.Thread(target=self.compute, daemon=True).start()

    def compute(self) -> None:
        while not self.over:
            sum(range(100))
            time.sleep(0.001)


class SwitchInterval(Harmless):
    """sys.setswitchinterval(5): other threads wait for seconds."""

    def disturb(self) -> None:
        sys.setswitchinterval(5.0)


class NumPyErrors(Harmless):
    """numpy.seterr(all="raise") and print options; decimal context."""

    def disturb(self) -> None:
        np.seterr(all="raise")
        np.set_printoptions(precision=1, threshold=1)
        decimal.getcontext().prec = 1


class Print(Harmless):
    """Replaces the built-in print."""

    def disturb(self) -> None:
        builtins.print = lambda *_, **__: None  # type: ignore[assignment]


class Hooks(Harmless):
    """Sets sys.excepthook and threading.excepthook to None, and a trace function."""

    def disturb(self) -> None:
        sys.excepthook = None  # type: ignore[assignment]
        threading.excepthook = None
        sys.settrace(lambda *_: None)
        sys.setprofile(lambda *_: None)


class SocketTimeout(Harmless):
    """socket.setdefaulttimeout(0.001)"""

    def disturb(self) -> None:
        socket.setdefaulttimeout(0.001)


class FileLimit(Harmless):
    """Lowers the limits of open files and of file sizes."""

    def disturb(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))


class ProcessGroup(Harmless):
    """Leaves its process group or session."""

    def disturb(self) -> None:
        with contextlib.suppress(OSError):
            os.setsid()
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)


class TrainsNetwork(Harmless):
    """Trains a network of its own with torch in `reset` and `step`."""

    def __init__(self, when: str = "") -> None:
        super().__init__(when)
        with torch.random.fork_rng():
            self.network = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1)

    def step(self, action: Any) -> Any:
        values = super().step(action)
        loss = self.network(torch.from_numpy(values[0])).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return values


class ClosesRealOutput(Harmless):
    """Closes sys.__stdout__ and sys.__stderr__, and sets them to None."""

    def disturb(self) -> None:
        for name in ("__stdout__", "__stderr__"):
            stream = getattr(sys, name)
            if stream is not None:
                stream.close()
            setattr(sys, name, None)


class OutputRaises(Harmless):
    """Puts objects whose write() raises in place of sys.stdout and sys.stderr."""

    def disturb(self) -> None:
        sys.stdout = sys.stderr = _Raises()  # type: ignore[assignment]


class _Raises:
    def write(self, text: str) -> int:
        raise RuntimeError("no output")

    def flush(self) -> None:
        raise RuntimeError("no output")


class ClosesDescriptors(Harmless):
    """os.close of the descriptors 0, 1 and 2."""

    def disturb(self) -> None:
        for number in (0, 1, 2):
            with contextlib.suppress(OSError):
                os.close(number)


class Builtins(Harmless):
    """Replaces the built-in functions open, input and __import__, and adds one, as gettext does."""

    def disturb(self) -> None:
        builtins.open = builtins.input = _refuse  # type: ignore[assignment]
        builtins.__import__ = _import
        builtins._ = str  # type: ignore[attr-defined]


def _refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("not here")


IMPORT = builtins.__import__


def _import(name: str, *args: Any, **kwargs: Any) -> Any:
    return IMPORT(name, *args, **kwargs)


class FrozenClock(Harmless):
    """Replaces time.time, time.monotonic, time.perf_counter and time.sleep: the clock stands."""

    def disturb(self) -> None:
        for name in ("time", "monotonic", "perf_counter"):
            setattr(time, name, lambda: 1.0)
        time.sleep = lambda seconds: None


class RoundsUp(Harmless):
    """Sets the processor to round up."""

    def disturb(self) -> None:
        ctypes.CDLL(None).fesetround(0x800)


class NumPyCalls(Harmless):
    """numpy.seterrcall with a function that raises, a small buffer, and an errstate that it never leaves."""

    def disturb(self) -> None:
        np.errstate(all="call", call=_refuse).__enter__()
        np.seterrcall(_refuse)
        np.setbufsize(16)


class Limits(Harmless):
    """Lowers the limits of memory, stack, processes and core files."""

    def disturb(self) -> None:
        import resource

        for number, soft in ((resource.RLIMIT_AS, None), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0),
                             (resource.RLIMIT_STACK, 2**20), (resource.RLIMIT_DATA, None)):  # fmt: skip
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (soft if soft is not None else 2**40, hard))


class NoMemory(Harmless):
    """Limits the memory of its process to what it has."""

    def disturb(self) -> None:
        pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**20, hard))


class OneProcessor(Harmless):
    """Binds its process to one processor, and gives it a low priority."""

    def disturb(self) -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.nice(1)


class WakeUp(Harmless):
    """signal.set_wakeup_fd, siginterrupt, and a handler of SIGCHLD that raises."""

    def disturb(self) -> None:
        with contextlib.suppress(ValueError):
            _, writes = os.pipe()
            os.set_blocking(writes, False)
            signal.set_wakeup_fd(writes)
            signal.siginterrupt(signal.SIGTERM, True)
            signal.signal(signal.SIGCHLD, _refuse)


class ForgetsModules(Harmless):
    """Removes modules of Gymnasium and of json from sys.modules."""

    def disturb(self) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("gymnasium", "json")]:
            del sys.modules[name]


class EnvironType(Harmless):
    """Puts a plain dict in the place of os.environ."""

    def disturb(self) -> None:
        os.environ = dict(os.environ)  # type: ignore[assignment]  # noqa: B003


class TorchDefaults(Harmless):
    """torch.set_printoptions, interop threads, a compile backend; numpy legacy print mode."""

    def disturb(self) -> None:
        torch.set_printoptions(precision=1)
        torch.set_warn_always(True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.mkldnn.set_flags(False)
        torch.set_autocast_enabled("cpu", True)
        torch.utils.deterministic.fill_uninitialized_memory = False


class TorchMode(Harmless):
    """Enters a TorchFunctionMode that raises, and never leaves it."""

    def disturb(self) -> None:
        if not self.entered:
            self.entered = True
            _Mode().__enter__()

    entered = False


class _Mode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("no torch here")


class Everything(Harmless):
    """All of the above together that does not end the process."""

    EXPECT = {"workers": (0, 1, 2, 8)}

    def disturb(self) -> None:
        for kind in TOGETHER:
            kind.disturb(self)  # type: ignore[arg-type]


TOGETHER: tuple[Any, ...] = (
    DefaultDtype, DefaultDevice, GradientsOff, InferenceMode, TorchThreads, TorchModes, Seeds, Draws, TakesSignals,
    Alarms, ReplacesOutput, WarningsToErrors, Locale, NoLogging, Arguments, ImportPath, TemporaryFolder,
    ClearsEnviron, Umask, NoGarbageCollection, StartMethod, NumPyErrors, Print, SocketTimeout, RemovesItsDirectory,
)  # fmt: skip
