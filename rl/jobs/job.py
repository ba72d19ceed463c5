"""A job: its function and arguments, what it requests, and its future result."""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
from concurrent.futures import Future, InvalidStateError
from typing import Any, Protocol

from rltrain.errors import JobLost
from rltrain.jobs.arrays import Pickled
from rltrain.jobs.resources import Request

TOO_MUCH_MEMORY = "it used"  # begins the reason why a job's process was lost, if that was its memory


class JobTraceback(Exception):
    """The traceback of a job's exception, as text: the cause of the exception that `Job.result` raises."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Jobs(Protocol):
    """Runs jobs: on this machine, or on the nodes of a cluster."""

    def refuse(self, request: Request) -> None:
        """ConfigError in one line if the request can never be granted."""

    def room(self, request: Request) -> int:
        """How many jobs with this request can run at a time."""

    def dumps(self, value: Any) -> Pickled:
        """A function or arguments, as `submit` takes them."""

    def submit(self, function: Pickled, arguments: Any, request: Request, retries: int) -> Job:
        """Queue a job. `arguments` are (positional, keywords)."""

    def is_running(self, job: Job) -> bool:
        """True if a process works on the job."""

    def cancelled(self, job: Job) -> None:
        """The job was cancelled: end its process, if it has one."""

    def close(self) -> None:
        """Cancel all jobs and end all their processes."""


class Job(Future[Any]):
    """The future result of a job. `cancel` also ends a job that runs, with its process.

    Attributes:
        attempts: how often the job was started.
    """

    def __init__(self, jobs: Jobs, payload: tuple[Pickled, Pickled], request: Request, retries: int) -> None:
        super().__init__()
        self._jobs = jobs
        self.payload: tuple[Pickled, Pickled] | None = payload  # function and arguments; None when it has ended
        self.request, self.retries, self.attempts = request, retries, 0

    def cancel(self) -> bool:
        """Cancel the job and end its process if it runs; False if it is finished."""
        before = self.cancelled()
        done = super().cancel()  # the job is pending until it has a result
        if done and not before:
            self.set_running_or_notify_cancel()
            self._jobs.cancelled(self)
            self.payload = None  # frees shared memory; not before, since the job could still be taken from a queue
        return done

    def running(self) -> bool:
        """True if a process works on it."""
        return not self.done() and self._jobs.is_running(self)

    # --- for those who run it ---

    def can_start_again(self, reason: str) -> bool:
        """True if a job whose process was lost for this reason is started again."""
        return self.attempts <= self.retries and not reason.startswith(TOO_MUCH_MEMORY)

    def lose(self, reason: str) -> None:
        """The process of the job was lost, and it is not started again."""
        times = "" if self.attempts <= 1 else f"; it was started {self.attempts} times"
        self.fail(JobLost(f"the process of the job is lost: {reason}{times}"))

    def finish(self, kind: str, value: Any) -> None:
        """The answer of `JobRunner.run` has arrived."""
        if kind != "result":
            self.fail(_exception_of(*value))
            return
        try:
            result = unpickled(value)
        except Exception as unreadable:
            self.fail(unreadable)
        except BaseException as unreadable:  # sys.exit in code of the user; not one of this process
            self.fail(JobLost(f"the result of the job cannot be unpickled: {unreadable!r}"))
        else:
            self.succeed(result)

    def fail(self, error: BaseException) -> None:
        """The job ends with this exception."""
        self.payload = None  # frees shared memory
        with contextlib.suppress(InvalidStateError):  # it was cancelled meanwhile
            self.set_exception(error)

    def succeed(self, result: Any) -> None:
        """The job ends with this result."""
        self.payload = None
        with contextlib.suppress(InvalidStateError):
            self.set_result(result)


def _exception_of(pickled: bytes | None, text: str) -> Exception:
    """The exception of a job, whose cause is its traceback.

    sys.exit or a KeyboardInterrupt in a job is not one of this process: it becomes a JobLost.
    """
    raised: Any = None
    if pickled is not None:
        with contextlib.suppress(BaseException):
            raised = unpickled(pickled)
    what = "an exception that cannot be pickled" if raised is None else type(raised).__name__
    error = raised if isinstance(raised, Exception) else JobLost(f"the job raised {what}:\n{text}")
    error.__cause__ = JobTraceback(text)
    return error


class _Unpickler(pickle.Unpickler):
    """Leaves classes as they are that this process has already: cloudpickle would replace their methods by copies."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_class_setstate" and module.startswith("cloudpickle"):
            return _class_setstate
        return super().find_class(module, name)


def _class_setstate(kind: type, state: Any) -> type:
    found: object = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is kind:
        return kind
    from cloudpickle import cloudpickle

    set_up: type = cloudpickle._class_setstate(kind, state)
    return set_up


def unpickled(data: bytes) -> Any:
    """A value from a job."""
    return _Unpickler(io.BytesIO(data)).load()
