"""A worker in its own process: a loky executor with one process that runs one long task.

The task reads commands from a pipe, because a stateful object must not live between two tasks: loky may replace
a process that has grown. The executor's future shows how the process ended. The commands of this package fork processes
from a server that has already imported torch (`start_fork_server`). From a user's script, which may have no `__main__`
guard, loky starts them with its own method.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context, process
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from rltrain.envs.errors import EnvError, EnvFault
from rltrain.rollout.workers.fork_server import has_fork_server, without_main
from rltrain.rollout.workers.handle import ActorLost
from rltrain.rollout.workers.in_process import describe

CLOSE_SECONDS = 2.0  # allowed for a worker to end after it was asked
CLOSE_POLL = 0.005
PIPE_BYTES = 32 * 1024  # a pipe accepts so much without a reader; 64 KiB on Linux


def let_have_children() -> None:
    """Allow this process to have children although it is daemonic, as a Dask worker is; ours end with it."""
    process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def before_exit(call: Callable[[], Any]) -> None:
    """Call a function when the interpreter exits, before loky waits for its processes to end."""
    from loky import process_executor as theirs

    register: Any = getattr(threading, "_register_atexit", None) or atexit.register
    with contextlib.suppress(RuntimeError):  # the interpreter is exiting already
        if (
            theirs.process_pool_executor_at_exit is None
        ):  # loky registers itself with its first process; the last one registered is called first
            theirs.process_pool_executor_at_exit = True
            register(theirs._python_exit)
        register(call)


class ProcessHandle:
    """An object in another process; calls and answers go through a pipe.

    Args:
        worker:  its number, for messages.
        build:   makes the object from the tickets, in the process; is cloudpickled.
        tickets: objects that can only be sent when a process starts, as connections.

    Raises:
        EnvError:  `build` cannot be pickled.
        ActorLost: the process could not be started.
    """

    def __init__(self, worker: int, build: Callable[..., Any], *tickets: Any) -> None:
        import cloudpickle
        import loky

        from rltrain.rollout.workers.cleanup import restore_semaphore_prefix

        try:
            payload = cloudpickle.dumps(build)
        except Exception as error:
            raise EnvError(
                f"the environment cannot be sent to the actors' processes: {error}. Create the objects that it "
                "holds inside its constructor, or use --workers 0"
            ) from None

        restore_semaphore_prefix()
        self.worker = worker
        self._why: str | None = None
        self._stopping = False
        if has_fork_server():
            context: Any = get_context("forkserver")
            guard: Any = without_main()
        else:
            context, guard = loky.backend.get_context("loky"), contextlib.nullcontext()
        try:
            self._pipe, child = context.Pipe()
            with guard:
                self._executor = loky.ProcessPoolExecutor(
                    1, context=context, timeout=None, initializer=_remember, initargs=(child, tickets, list(sys.path))
                )
                self._future = self._executor.submit(_serve, payload)
                self._process = next(iter(self._executor._processes.values()))
        except (OSError, EOFError) as error:
            raise ActorLost(worker, f"its process could not be started: {error!r}") from None
        loky.process_executor.process_pool_executor_at_exit = True  # otherwise each executor registers a handler
        child.close()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def waitable(self) -> Any:
        return self._pipe

    @property
    def exit_reason(self) -> str | None:
        """Why there will be no more answers, if the pipe does not show it; None while the task runs."""
        if not self._future.done():
            return None
        error = self._future.exception()
        return f"its task ended: {error}" if error is not None else "its task ended"

    def call(self, method: str, *args: Any) -> None:
        message = ForkingPickler.dumps((method, args))
        if len(message) < PIPE_BYTES:
            self._send(message)
        else:  # sending blocks until the worker reads, and a worker that hangs does not
            threading.Thread(target=self._send, args=(message,), daemon=True).start()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # the process is gone; `result` reports it
            self._pipe.send_bytes(message)

    def result(self) -> Any:
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise ActorLost(self.worker, self._why or self._ending()) from None
        if kind == "ok":
            return answer
        raise ActorLost(self.worker, answer)

    def kill(self, why: str) -> None:
        self._why = why
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ask the worker to end, without waiting. Workers end in parallel if all are asked before `close`."""
        if not self._stopping:
            self._stopping = True
            self.call("close")

    def close(self) -> None:
        self.stop()
        until = time.monotonic() + CLOSE_SECONDS
        with contextlib.suppress(
            OSError, EOFError
        ):  # the worker may have to send an answer before it reads the request
            while not self._future.done() and time.monotonic() < until:
                if self._pipe.poll(CLOSE_POLL):
                    self._pipe.recv_bytes()
        try:
            self._future.exception(max(0.0, until - time.monotonic()))
        except TimeoutError:
            self.kill("it did not stop when asked")
        self._pipe.close()
        self._executor.shutdown(wait=False, kill_workers=False)

    def _ending(self) -> str:
        self._process.join(1.0)
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", most likely because memory ran out" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{hint}"
        if code in (None, 255):  # loky has read the exit code before us
            return "its process was ended from outside, by SIGKILL or the like, most likely because memory ran out"
        return f"its process ended with exit code {code}"


_inbox: tuple[Connection, tuple[Any, ...]] | None = None


def _remember(pipe: Connection, tickets: tuple[Any, ...], path: list[str]) -> None:
    """Runs first in the process: stores the pipe and the tickets for the task.

    If the parent is killed before it sends the task, this process must end too; the queue of tasks would not show it.
    """
    global _inbox
    die_with_parent()
    _inbox = (pipe, tickets)
    sys.path[:] = path + [entry for entry in sys.path if entry not in path]


def _serve(payload: bytes) -> None:
    """The one long task: make the object, answer calls until the pipe closes."""
    import cloudpickle

    assert _inbox is not None
    pipe, tickets = _inbox
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # may be sent to the whole process group
    import torch

    torch.set_num_threads(1)
    worker: Any = None
    failed: tuple[str, str] | None = None
    while True:
        try:
            method, args = pipe.recv()
        except (EOFError, OSError):
            return
        if method == "close":
            if worker is not None:
                worker.close()
            return
        try:
            if failed is not None:  # later calls may be in the pipe already
                answer = failed
            else:
                if worker is None:
                    worker = cloudpickle.loads(payload)(*tickets)
                answer = ("ok", getattr(worker, method)(*args))
        except EnvFault as fault:
            failed = answer = ("error", describe(fault))
        except BaseException:  # also sys.exit in an environment
            failed = answer = ("error", traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            return
        except Exception:  # the answer cannot be pickled
            pipe.send(("error", traceback.format_exc()))


def die_with_parent() -> None:
    """Let a SIGKILL of the parent end this process too, even while it hangs in C code.

    A child of the fork server dies with the server, which ends when no process has its "alive" pipe open; so this
    process closes the descriptor that it inherited.
    """
    from multiprocessing import forkserver

    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
