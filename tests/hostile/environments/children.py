"""Environments with processes and threads of their own. Each trains, and leaves none of them behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory
from typing import Any

import gymnasium
from harmless import Harmless

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]
STUBBORN = ["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"]


def echo(pipe: Any) -> None:
    """Answers each number with its double, until None comes."""
    while (value := pipe.recv()) is not None:
        pipe.send(value * 2)


def double(value: int) -> int:
    return value * 2


class Simulator(Harmless):
    """A simulator started by Popen, ended by terminate() and wait()."""

    def __init__(self, when: str = "") -> None:
        self.process = subprocess.Popen(SLEEP)
        super().__init__(when)

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(10) == -signal.SIGTERM


class ShellSimulator(Harmless):
    """A simulator started by a shell, in a group of its own, ended with SIGINT to its group."""

    def __init__(self, when: str = "") -> None:
        self.process = subprocess.Popen("exec sleep 1000", shell=True, start_new_session=True)
        super().__init__(when)

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.wait(10) == -signal.SIGINT


class PerReset(Harmless):
    """A simulator that is started again at each reset, after terminate() and wait()."""

    process: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.end()
        self.process = subprocess.Popen(SLEEP)
        return super().reset(seed=seed)

    def end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(10) == -signal.SIGTERM
            self.process = None

    def close(self) -> None:
        self.end()


class Forgotten(Harmless):
    """A simulator that close() does not end."""

    def __init__(self, when: str = "") -> None:
        self.process = subprocess.Popen(SLEEP)
        super().__init__(when)


class ForgottenPerReset(Harmless):
    """A new simulator at each third reset; none is ended."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.resets += 1
        if self.resets % 3 == 1:
            subprocess.Popen(["sleep", "1000"])
        return super().reset(seed=seed)


class ForgottenStubborn(Harmless):
    """A simulator that ignores SIGTERM, SIGINT and SIGHUP and is not ended."""

    def __init__(self, when: str = "") -> None:
        subprocess.Popen(STUBBORN)
        super().__init__(when)


class ForgottenSession(Harmless):
    """A simulator in a session of its own that is not ended."""

    def __init__(self, when: str = "") -> None:
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        super().__init__(when)


class ForgottenDouble(Harmless):
    """A simulator that forks twice, as daemons do, in a session of its own, and is not ended."""

    def __init__(self, when: str = "") -> None:
        subprocess.run(["sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 &"], check=True)
        super().__init__(when)


class ForgottenOutput(Harmless):
    """A simulator that keeps our output open and is not ended."""

    def __init__(self, when: str = "") -> None:
        subprocess.Popen(["sh", "-c", "sleep 1000; echo late"])
        super().__init__(when)


class DiesWithSimulator(Harmless):
    """os._exit(1) during training, while its simulator runs."""

    EXPECT = {"when": ["later"], "says": "ended|exit", "dies": True}

    def __init__(self, when: str = "") -> None:
        self.process = subprocess.Popen(SLEEP)
        super().__init__(when)

    def disturb(self) -> None:
        os._exit(1)


class RaisesWithSimulator(Harmless):
    """Raises in a constructor after its simulator was started."""

    EXPECT = {"when": ["init", "step", "later"], "says": "no display", "traceback": True}

    def __init__(self, when: str = "") -> None:
        self.process = subprocess.Popen(SLEEP)
        super().__init__(when)

    def disturb(self) -> None:
        raise RuntimeError("no display")


class InterruptedSimulators(Harmless):
    """Ctrl-C during training, with simulators that ignore it."""

    EXPECT = {"signal": "SIGINT", "status": 130, "says": "checkpoint"}

    def __init__(self, when: str = "") -> None:
        subprocess.Popen(STUBBORN, start_new_session=True)
        super().__init__(when)

    def disturb(self) -> None:
        time.sleep(0.01)


class KilledSimulators(Harmless):
    """SIGKILL of the run, with simulators in sessions of their own."""

    EXPECT = {"signal": "SIGKILL", "status": -9, "workers": [2, 8]}

    def __init__(self, when: str = "") -> None:
        subprocess.Popen(STUBBORN, start_new_session=True)
        super().__init__(when)

    def disturb(self) -> None:
        time.sleep(0.01)


class Forks(Harmless):
    """os.fork at each reset; the child has default signal handlers, and SIGTERM ends it."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        child = os.fork()
        if child == 0:
            try:
                time.sleep(1000)
            finally:
                os._exit(1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        return super().reset(seed=seed)


class ForkLeaves(Harmless):
    """A forked child that leaves the method by sys.exit, through all of our frames."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.steps == 0:
            child = os.fork()
            if child == 0:
                sys.exit(5)
            os.waitpid(child, 0)
        return super().reset(seed=seed)


class _Process(Harmless):
    method = ""

    def __init__(self, when: str = "") -> None:
        context: Any = multiprocessing.get_context(self.method)
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=echo, args=(other,))
        self.process.start()
        super().__init__(when)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.pipe.send(21)
        assert self.pipe.recv() == 42
        return super().reset(seed=seed)

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join(20)
        assert self.process.exitcode == 0


class ProcessFork(_Process):
    """multiprocessing.Process, start method fork."""

    method = "fork"


class ProcessSpawn(_Process):
    """multiprocessing.Process, start method spawn."""

    method = "spawn"


class ProcessForkServer(_Process):
    """multiprocessing.Process, start method forkserver."""

    method = "forkserver"


class ProcessDefault(_Process):
    """multiprocessing.Process, the default start method."""

    method: Any = None


class ProcessTerminated(_Process):
    """multiprocessing.Process ended by terminate() and join()."""

    method = "fork"

    def close(self) -> None:
        self.process.terminate()
        self.process.join(10)
        assert self.process.exitcode == -signal.SIGTERM


class ProcessForgotten(_Process):
    """multiprocessing.Process, not a daemon, that close() does not end."""

    method = "fork"

    def close(self) -> None:
        pass


class Pool(Harmless):
    """multiprocessing.Pool, used at each reset, closed by its context."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.steps == 0:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                assert pool.map(double, [1, 2]) == [2, 4]
        return super().reset(seed=seed)


class PoolForgotten(Harmless):
    """multiprocessing.Pool that is kept and never closed."""

    def __init__(self, when: str = "") -> None:
        self.pool = multiprocessing.get_context("fork").Pool(1)
        super().__init__(when)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert self.pool.map(double, [1, 2]) == [2, 4]
        return super().reset(seed=seed)


class Executor(Harmless):
    """ProcessPoolExecutor with spawn, shut down by close()."""

    def __init__(self, when: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        self.executor = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
        super().__init__(when)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert self.executor.submit(double, 21).result() == 42
        return super().reset(seed=seed)

    def close(self) -> None:
        self.executor.shutdown()


class ExecutorForgotten(Executor):
    """ProcessPoolExecutor with fork, never shut down."""

    def __init__(self, when: str = "") -> None:
        Harmless.__init__(self, when)
        context = multiprocessing.get_context("fork")
        self.executor = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)

    def close(self) -> None:
        pass


class Threads(Harmless):
    """ThreadPoolExecutor that is never shut down."""

    def __init__(self, when: str = "") -> None:
        self.executor = concurrent.futures.ThreadPoolExecutor(2)
        super().__init__(when)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert self.executor.submit(double, 21).result() == 42
        return super().reset(seed=seed)


class ThreadForgotten(Harmless):
    """A non-daemon thread that waits without end."""

    def __init__(self, when: str = "") -> None:
        threading.Thread(target=threading.Event().wait).start()
        super().__init__(when)


class Manager(Harmless):
    """multiprocessing.Manager that is never shut down."""

    def __init__(self, when: str = "") -> None:
        self.manager = multiprocessing.get_context("fork").Manager()
        self.values = self.manager.dict()
        super().__init__(when)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.values["resets"] = self.values.get("resets", 0) + 1
        return super().reset(seed=seed)


class NamedMemory(Harmless):
    """A named block of shared memory, unlinked by close()."""

    def __init__(self, when: str = "") -> None:
        self.memory = shared_memory.SharedMemory(create=True, size=100)
        super().__init__(when)

    def close(self) -> None:
        self.memory.close()
        self.memory.unlink()


class EventLoop(Harmless):
    """An asyncio loop with a subprocess at its first reset."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.steps == 0:
            asyncio.run(self.ask())
        return super().reset(seed=seed)

    async def ask(self) -> None:
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0


class VectorInside(Harmless):
    """Keeps an AsyncVectorEnv of Gymnasium inside."""

    def __init__(self, when: str = "") -> None:
        self.inner = gymnasium.vector.AsyncVectorEnv([Harmless])
        super().__init__(when)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.inner.reset(seed=seed)
        return super().reset(seed=seed)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.inner.close()


class ReapsAll(Harmless):
    """os.waitpid(-1) takes the status of each child of its process."""

    def disturb(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


class IgnoresChildren(Harmless):
    """Ignores SIGCHLD, so that no child leaves a status."""

    def disturb(self) -> None:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
