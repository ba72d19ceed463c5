"""A worker in a process of its own: one single-worker loky executor that runs one long task.

The task serves commands from a pipe, because a stateful object must not live between loky's tasks (it may replace a
worker that has grown); the executor's future tells how the process ended. Under our own commands processes are forked
from a server that has already imported torch (`start_fork_server`); from a user's script, which may have no
`__main__` guard, loky starts them in its own way.
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

CLOSE_SECONDS = 2.0  # that a worker may take to end, once asked
CLOSE_POLL = 0.005
PIPE_BYTES = 32 * 1024  # that a pipe takes without being read; 64 KiB on Linux


def let_have_children() -> None:
    """Lift multiprocessing's rule that a daemonic process has none, which a Dask worker is; ours end with it."""
    process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def before_exit(call: Callable[[], Any]) -> None:
    """Call this when the interpreter ends, before loky waits for processes that nobody has ended."""
    from loky import process_executor as theirs

    register: Any = getattr(threading, "_register_atexit", None) or atexit.register
    with contextlib.suppress(RuntimeError):  # it ends already
        if theirs.process_pool_executor_at_exit is None:  # else with its first process; the last one is called first
            theirs.process_pool_executor_at_exit = True
            register(theirs._python_exit)
        register(call)


class ProcessHandle:
    """The object lives in a process; commands and answers go over a pipe.

    Args:
        worker: its number, for messages.
        build:  makes the object, in the process; travels by cloudpickle.
    """

    def __init__(self, worker: int, build: Callable[..., Any], *tickets: Any) -> None:
        import cloudpickle
        import loky

        from rltrain.rollout.workers.cleanup import name_semaphores

        try:
            payload = cloudpickle.dumps(build)
        except Exception as error:
            raise EnvError(
                f"the environment cannot be sent to the actors' processes: {error}. Make what it holds inside its "
                "constructor, or use --workers 0"
            ) from None

        name_semaphores()
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
        loky.process_executor.process_pool_executor_at_exit = True  # else each one leaves a handler of its own
        child.close()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def waitable(self) -> Any:
        return self._pipe

    @property
    def exit_reason(self) -> str | None:
        """Why it can answer no more, where its pipe does not tell; None while its task runs."""
        if not self._future.done():
            return None
        error = self._future.exception()
        return f"its task ended: {error}" if error is not None else "its task ended"

    def call(self, method: str, *args: Any) -> None:
        message = ForkingPickler.dumps((method, args))
        if len(message) < PIPE_BYTES:
            self._send(message)
        else:  # a pipe takes more only while it is read, and a worker that hangs does not read
            threading.Thread(target=self._send, args=(message,), daemon=True).start()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone; `result` says so
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
        """Ask it to end, without waiting; several workers end side by side if all are asked before `close`."""
        if not self._stopping:
            self._stopping = True
            self.call("close")

    def close(self) -> None:
        self.stop()
        until = time.monotonic() + CLOSE_SECONDS
        with contextlib.suppress(OSError, EOFError):  # it may have to get rid of an answer before it listens again
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
        if code in (None, 255):  # loky has read the status before us
            return "its process was ended from outside, by SIGKILL or the like, most likely because memory ran out"
        return f"its process ended with exit code {code}"


_inbox: tuple[Connection, tuple[Any, ...]] | None = None


def _remember(pipe: Connection, tickets: tuple[Any, ...], path: list[str]) -> None:
    """Runs first in the process: keeps what can only be handed over at its start.

    Who started it may be killed before there is a task, and the queue of tasks would not tell.
    """
    global _inbox
    die_with_parent()
    _inbox = (pipe, tickets)
    sys.path[:] = path + [entry for entry in sys.path if entry not in path]


def _serve(payload: bytes) -> None:
    """The one long task: make the object, answer commands until the pipe closes."""
    import cloudpickle

    assert _inbox is not None
    pipe, tickets = _inbox
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may have been sent to the whole group
    import torch

    torch.set_num_threads(1)
    servant: Any = None
    failed: tuple[str, str] | None = None
    while True:
        try:
            method, args = pipe.recv()
        except (EOFError, OSError):
            return
        if method == "close":
            if servant is not None:
                servant.close()
            return
        try:
            if failed is not None:  # it may have been asked ahead, and is to end now
                answer = failed
            else:
                if servant is None:
                    servant = cloudpickle.loads(payload)(*tickets)
                answer = ("ok", getattr(servant, method)(*args))
        except EnvFault as fault:
            failed = answer = ("error", describe(fault))
        except BaseException:  # sys.exit in an environment too: who asked must hear of it
            failed = answer = ("error", traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            return
        except Exception:  # the answer cannot be pickled
            pipe.send(("error", traceback.format_exc()))


def die_with_parent() -> None:
    """Let a SIGKILL of the parent end this process too, even while it hangs in C code.

    A child of the fork server dies with the server, which ends when nobody holds its "alive" pipe any more; so the
    descriptor inherited here is closed.
    """
    from multiprocessing import forkserver

    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
