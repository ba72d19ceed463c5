"""A worker in its own processes: a loky executor with one process, which runs one long task (worker_process.py).

Calls go through a pipe, because a stateful object must not live between two tasks: loky may replace a process that has
grown. The executor's future shows how the worker ended. The commands of this package fork processes from a server that
has already imported torch (`start_fork_server`). From a user's script, which may have no `__main__` guard, loky starts
them with its own method.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context, process
from multiprocessing.reduction import ForkingPickler
from typing import Any

from rltrain.envs.errors import EnvError
from rltrain.rollout.workers.cleanup import name_prefix, sweep, use_own_semaphore_names
from rltrain.rollout.workers.fork_server import has_fork_server, without_main
from rltrain.rollout.workers.forks import closed_in_children
from rltrain.rollout.workers.handle import ActorLost
from rltrain.rollout.workers.parent_state import ParentState, starting_python
from rltrain.rollout.workers.process_tree import end_marked
from rltrain.rollout.workers.worker_process import CLOSE_SECONDS, KILL, MARKER, remember, supervise

CLOSE_POLL = 0.005
END_SECONDS = 6.0  # for a supervisor to end its worker and all that this one started
PIPE_BYTES = 32 * 1024  # a pipe accepts so much without a reader; 64 KiB on Linux

_numbers = itertools.count()


def let_have_children() -> None:
    """Allow this process to have children although it is daemonic, as a Dask worker is; ours end with it."""
    process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def before_exit(call: Callable[[], Any]) -> None:
    """Call a function when the interpreter exits, before loky waits for its processes to end."""
    from loky import process_executor as theirs

    register: Any = getattr(threading, "_register_atexit", None) or atexit.register
    with contextlib.suppress(RuntimeError):  # the interpreter is exiting already
        # loky registers itself with its first process; the last one registered is called first
        if theirs.process_pool_executor_at_exit is None:
            theirs.process_pool_executor_at_exit = True
            register(theirs._python_exit)
        register(call)


def join_closed(seconds: float = END_SECONDS) -> None:
    """Wait at most `seconds` for the threads of closed handles, which unlink and unregister semaphores."""
    from loky import process_executor as theirs

    until = time.monotonic() + seconds
    for thread in list(theirs._threads_wakeups):
        thread.join(max(until - time.monotonic(), 0.0))


class ProcessHandle:
    """An object in another process; calls and answers go through a pipe.

    Args:
        worker:  its number, for messages.
        build:   makes the object from the tickets, in the process; is cloudpickled.
        tickets: objects that can only be sent when a process starts, as connections.
        torch:   the process imports torch first.

    Raises:
        EnvError:  `build` cannot be pickled.
        ActorLost: the process could not be started.
    """

    def __init__(self, worker: int, build: Callable[..., Any], *tickets: Any, torch: bool = True) -> None:
        import cloudpickle
        import loky

        try:
            payload = cloudpickle.dumps(build)
        except Exception as error:
            raise EnvError(
                f"the environment cannot be sent to the actors' processes: {error}. Create the objects that it "
                "holds inside its constructor, or use --workers 0"
            ) from None

        state = ParentState.of_this_process()
        use_own_semaphore_names()
        self.worker = worker
        self._why: str | None = None
        self._stopping: float | None = None  # time of the request to end
        self._pid: int | None = None
        self._marker = f"{MARKER}={name_prefix()}{next(_numbers)}"
        if has_fork_server():
            context: Any = get_context("forkserver")
            guard: Any = without_main()
        else:
            sweep()  # with a fork server, its start did that
            context, guard = loky.backend.get_context("loky"), contextlib.nullcontext()
        try:
            self._pipe, child = context.Pipe()
            self._link, other = context.Pipe()
            closed_in_children(self._pipe, self._link)
            with guard, starting_python():
                self._executor = loky.ProcessPoolExecutor(
                    1, context=context, timeout=None, initializer=remember, initargs=(child, other, tickets)
                )
                self._future = self._executor.submit(supervise, payload, state, self._marker.partition("=")[2], torch)
                self._process = next(iter(self._executor._processes.values()))
        except (OSError, EOFError) as error:
            raise ActorLost(worker, f"its process could not be started: {error!r}") from None
        loky.process_executor.process_pool_executor_at_exit = True  # otherwise each executor registers a handler
        child.close()
        other.close()

    @property
    def pid(self) -> int:
        """Of the worker; of its supervisor if the worker could not be started."""
        if self._pid is None:
            with contextlib.suppress(EOFError, OSError):
                self._pid = int(self._link.recv())  # sent when it starts
        return int(self._process.pid) if self._pid is None else self._pid

    @property
    def waitable(self) -> Any:
        return self._pipe

    @property
    def exit_reason(self) -> str | None:
        """Why there will be no more answers, if the pipe does not show it; None while the task runs."""
        return self._ending() if self._future.done() else None

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
        with contextlib.suppress(OSError):
            self._link.send_bytes(KILL)

    def stop(self) -> None:
        """Ask the worker to end, without waiting. Workers end in parallel if all are asked before `close`."""
        if self._stopping is None:
            self._stopping = time.monotonic()
            self.call("close")

    def close(self) -> None:
        self.stop()
        assert self._stopping is not None
        until = self._stopping + CLOSE_SECONDS
        while not self._future.done() and time.monotonic() < until:
            with contextlib.suppress(OSError, EOFError):
                if self._pipe.poll(CLOSE_POLL):
                    self._pipe.recv_bytes()  # the worker may have to send an answer before it reads the request
                    continue
            self._ended(CLOSE_POLL)
        if not self._future.done():
            self.kill("it did not stop when asked")
        if not self._ended(END_SECONDS):
            self._process.kill()
            self._ended(END_SECONDS)
        if self._future.exception() is not None:  # the supervisor was killed, and could not end the others
            end_marked(self._marker, session=self.pid)
        self._pipe.close()
        self._link.close()
        self._executor.shutdown(wait=False, kill_workers=False)
        if process.current_process().daemon:  # as those of a pool, which end without notice
            join_closed()

    def _ended(self, seconds: float) -> bool:
        """Wait at most so long for the supervisor's task to end."""
        with contextlib.suppress(TimeoutError):
            self._future.exception(seconds)
        done: bool = self._future.done()
        return done

    def _ending(self) -> str:
        if not self._ended(END_SECONDS):
            return "its process ended"
        if self._future.exception() is not None:
            return "its process was ended from outside, by SIGKILL or the like, most likely because memory ran out"
        code = self._future.result()
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", most likely because memory ran out" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{hint}"
        return f"its process ended with exit code {code}"
