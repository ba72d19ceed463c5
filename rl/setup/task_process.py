"""A child process that runs user code in tasks with a time limit. The process that starts it gets data only."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol, Self

from rltrain.envs import closing
from rltrain.envs.errors import EnvError, EnvFault, Watch, exit_text, whole_traceback
from rltrain.envs.names import register_env, registered_names
from rltrain.errors import CheckpointError, ConfigError
from rltrain.rollout.workers.fork_server import has_fork_server, without_main
from rltrain.rollout.workers.forks import closed_in_children, ends_forks, ignore
from rltrain.rollout.workers.parent_state import ParentState, starting_python
from rltrain.rollout.workers.worker_process import KILL, leave_fork_server, run_supervised

CALLS = ("import", "constructor", "reset", "step", "close")  # user code that the child may be executing
LEAST_SECONDS = {"import": 30.0, "constructor": 30.0, "close": closing.CLOSE_SECONDS + 2.0}  # of the time limit
CLOSE_SECONDS = 2.0
END_SECONDS = 6.0  # for the end of the child and of all that it started
POLL = 0.05

_may_fork = False


class EnvLost(EnvError):
    """The environment hangs, or has ended the child; one line."""


class Subject(Protocol):
    """What a child works on."""

    @property
    def name(self) -> str:
        """Its name in messages."""


def may_fork() -> None:
    """Allow to fork this process until it imports torch. Only for commands: they have no other threads."""
    global _may_fork
    _may_fork = hasattr(os, "fork") and sys.platform != "darwin"


def start_method() -> str:
    """How multiprocessing starts the child: the quickest way that is safe in this process."""
    if _may_fork and "torch" not in sys.modules:
        return "fork"
    return "forkserver" if has_fork_server() else "spawn"


class TaskProcess:
    """A child process that executes the methods of a class, one after the other. A context that ends it.

    Args:
        tasks:   the class. Its arguments are `subject`, and a function that gets the name of each call of the
            environment before it is made.
        timeout: seconds that one call of the environment may take.
    """

    def __init__(self, tasks: Callable[[Any, Watch], object], subject: Subject, timeout: float) -> None:
        self.subject: Any = subject
        self.timeout = timeout
        method = start_method()
        payload: Subject | bytes = subject
        if method != "fork":
            try:
                payload = _pickled(subject)
            except EnvError:
                if not hasattr(os, "fork"):
                    raise
                method = "fork"  # acting in this process needs no pickle; actors in others will raise this error again
        context: Any = get_context(method)
        self._pipe, theirs = context.Pipe()
        self._calls, calls = context.Pipe(duplex=False)
        os.set_blocking(self._calls.fileno(), False)
        os.set_blocking(calls.fileno(), False)
        self._link, link = context.Pipe()
        closed_in_children(self._pipe, self._link)
        state = None if method == "fork" else ParentState.of_this_process()
        arguments = tasks, theirs, calls, link, payload, registered_names(), state
        self._process = context.Process(target=_supervise, args=arguments, daemon=False)
        guard = contextlib.nullcontext() if method == "fork" else starting_python()
        try:
            with warnings.catch_warnings(), without_main(), guard:
                warnings.simplefilter("ignore", DeprecationWarning)  # of a fork: numpy has threads of its own
                self._process.start()
        except BaseException:  # also Ctrl-C: the child ends when these are closed
            for connection in (self._pipe, self._calls, self._link):
                connection.close()
            raise
        finally:
            for connection in (theirs, calls, link):
                connection.close()
        self._call = CALLS[0]
        self._unanswered = 0

    def start(self, task: str, *args: Any) -> None:
        """Call a method of the tasks; `result` returns its result."""
        self._unanswered += 1
        with contextlib.suppress(OSError):  # the child is gone; `result` reports it
            self._pipe.send((task, args))

    def result(self, seconds: float = math.inf, undone: str = "") -> Any:
        """The result of the oldest task.

        Args:
            seconds: the time limit of the whole task.
            undone:  what is not finished after that time, for the message.

        Raises:
            EnvError: the environment cannot be used; one line.
            EnvLost:  it hangs, or has ended the child.
            EnvFault: its own code raised an exception.
        """
        progress = began = time.monotonic()
        while not self._ready():
            now = time.monotonic()
            if self._read_calls():
                progress = now
            limit = max(self.timeout, LEAST_SECONDS.get(self._call, 0.0))
            if now - progress > limit:
                raise EnvLost(f"{self._what()} did not return within {limit:g} s (--actor-timeout)")
            if now - began > seconds:
                raise EnvLost(f"{self.subject.name}: in {seconds:g} s {undone}; its steps are too slow")
        try:
            answer, error = self._pipe.recv()
        except (EOFError, OSError):
            raise EnvLost(self._ending()) from None
        self._unanswered -= 1
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """End the child and the processes that the environment has started in it."""
        if self._process.exitcode is not None and self._pipe.closed:
            return
        self._pipe.close()
        if not self._unanswered:
            self._process.join(CLOSE_SECONDS)
        with contextlib.suppress(OSError):
            self._link.send_bytes(KILL)
        self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()
        self._calls.close()
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _ready(self) -> bool:
        """True if there is an answer, or none can come. The pipe alone does not show this: others may keep it open."""
        return self._pipe.poll(POLL) or (not self._process.is_alive() and not self._pipe.poll(0.0))

    def _read_calls(self) -> bool:
        """Read which calls the child has made since the last time; False if it has made none."""
        try:
            calls = os.read(self._calls.fileno(), 1 << 16)
        except OSError:
            return False
        if calls:
            self._call = CALLS[calls[-1]]
        return bool(calls)

    def _what(self) -> str:
        return f"{self.subject.name}: its {_name(self._call)}"

    def _ending(self) -> str:
        while self._read_calls():
            pass
        self._process.join(END_SECONDS)
        code = None
        with contextlib.suppress(EOFError, OSError):
            while self._link.poll(0):
                code = int(self._link.recv())  # first its pid, then its exit code
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", most likely because memory ran out" if name == "SIGKILL" else ""
            return f"{self._what()} ended the process by {name}{hint}"
        return f"{self._what()} ended the process with exit code {code}, as os._exit does"


def _pickled(subject: Subject) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(subject))
    except Exception as error:
        raise EnvError(
            f"the environment cannot be sent to another process: {error}. Create the objects that it holds inside its "
            "constructor"
        ) from None


def _registered_elsewhere(**_: Any) -> Any:
    raise EnvError("the environment is registered in another process")


def _unpickled(payload: Subject | bytes, state: ParentState | None) -> Subject:
    if not isinstance(payload, bytes):
        return payload
    assert state is not None
    subject: Subject = state.load(payload)
    return subject


def _supervise(
    tasks: Callable[[Any, Watch], object],
    pipe: Connection,
    calls: Connection,
    link: Connection,
    payload: Subject | bytes,
    registered: list[str],
    state: ParentState | None,
) -> None:
    """multiprocessing's process: runs the child that works, and ends all that this one started."""
    with contextlib.suppress(OSError):
        os.setsid()  # Ctrl-C in a terminal is for the command, which ends this process
    ignore()
    leave_fork_server()

    def run() -> None:
        for known in registered:
            register_env(known, _registered_elsewhere)
        if state is not None:
            state.take_over()
        _serve(tasks, pipe, calls, payload, state)

    code = run_supervised(run, link, pipe)
    with contextlib.suppress(OSError):
        link.send(code)
    os._exit(0)


def _serve(
    tasks: Callable[[Any, Watch], object],
    pipe: Connection,
    calls: Connection,
    payload: Subject | bytes,
    state: ParentState | None,
) -> None:
    """The child: executes tasks until the pipe closes."""
    call = CALLS[0]
    name = "the environment" if isinstance(payload, bytes) else payload.name
    worker: Any = None

    def watch(called: str) -> None:
        nonlocal call
        if sys.exc_info()[0] is None:  # else this is a `close` after the call that failed
            call = called
        with contextlib.suppress(OSError):  # the pipe is full: the parent will see that there were calls
            os.write(calls.fileno(), bytes([CALLS.index(called)]))

    while True:
        answer: Any = None
        error: Exception | None = None
        try:
            task, args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            with ends_forks():
                if worker is None:
                    worker = tasks(_unpickled(payload, state), watch)
                answer = getattr(worker, task)(*args)
        except (EnvError, EnvFault, ConfigError, CheckpointError) as problem:
            error = problem
        except Exception as raised:
            error = EnvFault(-1, -1, 0, whole_traceback(raised))
        except BaseException as ending:
            error = EnvError(f"{name}: in its {_name(call)} {exit_text(ending)}")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # an environment may have put anything there
                stream.flush()
        try:
            pipe.send((answer, error))
        except OSError:  # the parent has closed it, for example since something else is wrong with the run
            return


def _name(call: str) -> str:
    return call if call in CALLS[:2] else f"{call}()"
