"""Examines an environment in a child process with a time limit: the run's own process gets data and runs no user code.

The child needs gymnasium but not torch. So it works while the learner's process still imports torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, Self

from rltrain.config.run_config import RunConfig
from rltrain.envs import closing
from rltrain.envs.check import Problem, check_env
from rltrain.envs.errors import EnvError, EnvFault, Watch, exit_text
from rltrain.envs.lookup import EnvSource
from rltrain.envs.make import read_spec, resolve, vector_kind
from rltrain.envs.names import register_env, registered_names
from rltrain.envs.spec import EnvSpec
from rltrain.envs.vector.native import verify_native
from rltrain.envs.vector.restore_check import verify
from rltrain.errors import CheckpointError, ConfigError
from rltrain.rollout.workers.fork_server import has_fork_server, without_main
from rltrain.rollout.workers.forks import closed_in_children, ends_forks, ignore
from rltrain.rollout.workers.parent_state import ParentState, starting_python
from rltrain.rollout.workers.worker_process import KILL, leave_fork_server, run_supervised

CALLS = ("import", "constructor", "reset", "step", "close")  # user code that the child may be executing
LEAST_SECONDS = {"import": 30.0, "constructor": 30.0, "close": closing.CLOSE_SECONDS + 2.0}  # of the time limit
RESTORE_SECONDS = 300.0  # allowed for the whole decision how to restore an environment
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
        """In messages."""


class Findings(NamedTuple):
    """The result of an examination."""

    spec: EnvSpec
    problems: tuple[Problem, ...]
    kind: str  # serial or native; see `vector_kind`


class Examination:
    """The tasks of the child. Runs the code of one environment.

    Args:
        watch: gets the name of each call of the environment before it is made.
    """

    def __init__(self, source: EnvSource, watch: Watch) -> None:
        self._source, self._watch = source, watch

    def read_spec(self, seed: int) -> EnvSpec:
        return read_spec(self._source, seed, self._watch)

    def examine(self, seed: int, streams: int, vector: str) -> Findings:
        """The spec of the environment, its problems, and how the streams of a run are stepped."""
        source, watch = self._source, self._watch
        spec = read_spec(source, seed, watch)
        problems = tuple(check_env(source, spec, seed, watch=watch))
        fatal = any(problem.fatal for problem in problems)
        self._findings = Findings(spec, problems, "serial" if fatal else vector_kind(source, streams, vector, watch))
        return self._findings

    def restore_method(self, seed: int) -> str:
        """How a stream is restored on resume. It uses the findings of `examine`."""
        spec, _, kind = self._findings
        if kind == "native":
            return verify_native(self._source.make_block, spec, seed, watch=self._watch)
        return verify(self._source.make, spec, seed, watch=self._watch)


def may_fork() -> None:
    """Allow to fork this process until it imports torch. Only for commands: they have no other threads."""
    global _may_fork
    _may_fork = hasattr(os, "fork") and sys.platform != "darwin"


def start_method() -> str:
    """How multiprocessing starts the child: the quickest way that is safe in this process."""
    if _may_fork and "torch" not in sys.modules:
        return "fork"
    return "forkserver" if has_fork_server() else "spawn"


class FirstLook:
    """A child process that executes the methods of a class, one after the other. A context that ends it.

    Args:
        source:  the first argument of the class; the second one is a `Watch`.
        timeout: seconds that one call of the environment may take.
        tasks:   the class.
    """

    def __init__(self, source: Subject, timeout: float, tasks: Callable[[Any, Watch], Any] = Examination) -> None:
        self.source: Any = source
        self.timeout = timeout
        method = start_method()
        payload: Subject | bytes = source
        if method != "fork":
            try:
                payload = _pickled(source)
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
        arguments = theirs, calls, link, payload, registered_names(), state, tasks
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

    def result(self, seconds: float = math.inf) -> Any:
        """The result of the oldest task, which may take so many seconds in all.

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
                raise EnvLost(
                    f"{self.source.name}: in {seconds:g} s it could not be decided how to restore it on resume; "
                    "its steps are too slow"
                )
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
        """True if there is an answer, or will be none. The pipe alone does not show that: others may hold its end."""
        return self._pipe.poll(POLL) or (not self._process.is_alive() and not self._pipe.poll(0.0))

    def _read_calls(self) -> bool:
        """Read which calls were made; False if there was none."""
        try:
            calls = os.read(self._calls.fileno(), 1 << 16)
        except OSError:
            return False
        if calls:
            self._call = CALLS[calls[-1]]
        return bool(calls)

    def _what(self) -> str:
        return f"{self.source.name}: its {_name(self._call)}"

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


def look_at(config: RunConfig, new: bool = True) -> FirstLook:
    """Begin to examine the environment of a run.

    Args:
        new: nothing is known about how its streams are restored.
    """
    source = resolve(config.env, config.env_args, config.share, config.action_bound, config.folder)
    look = FirstLook(source, config.actor_timeout)
    look.start("examine", config.seed, config.streams, config.vector)
    if new and config.replay_from is None:
        look.start("restore_method", config.seed)
    return look


def _pickled(source: Subject) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(source))
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
    source: Subject = state.load(payload)
    return source


def _supervise(
    pipe: Connection,
    calls: Connection,
    link: Connection,
    payload: Subject | bytes,
    registered: list[str],
    state: ParentState | None,
    tasks: Callable[[Any, Watch], Any],
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
        _serve(pipe, calls, payload, state, tasks)

    code = run_supervised(run, link, pipe)
    with contextlib.suppress(OSError):
        link.send(code)
    os._exit(0)


def _serve(
    pipe: Connection,
    calls: Connection,
    payload: Subject | bytes,
    state: ParentState | None,
    tasks: Callable[[Any, Watch], Any],
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
        except Exception:
            error = EnvFault(-1, -1, 0, traceback.format_exc())
        except BaseException as ending:
            error = EnvError(f"{name}: in its {_name(call)} {exit_text(ending)}")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        try:
            pipe.send((answer, error))
        except OSError:  # the parent has closed it, for example since something else is wrong with the run
            return


def _name(call: str) -> str:
    return call if call in CALLS[:2] else f"{call}()"
