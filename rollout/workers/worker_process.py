"""The two processes of a worker: the supervisor, and below it the worker, which holds the object and answers calls.

The supervisor is loky's process. It imports nothing heavy and runs no code of a user, so it can always end the worker
and everything that the worker started. It does so when the worker ends, when the learner asks, and when the learner is
gone.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing.util
import os
import select
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from multiprocessing import forkserver, process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from rltrain.envs.errors import EnvFault, describe, whole_traceback
from rltrain.rollout.workers.cleanup import folder_of_worker, use_folder, use_own_semaphore_names
from rltrain.rollout.workers.forks import closed_in_children, ends_forks, ignore
from rltrain.rollout.workers.parent_state import ParentState
from rltrain.rollout.workers.process_tree import adopt_orphans, die_with_parent, end_descendants, reap, send

MARKER = "RLTRAIN_WORKER"  # environment variable of a worker and of the programs that it starts
CLOSE_SECONDS = 2.0  # for a worker to end after it was asked, or after the learner was killed
REAP_SECONDS = 1.0  # between two looks for adopted processes that have ended
KILL = b"kill"  # from the learner: end the worker at once

_inbox: tuple[Connection, Connection, tuple[Any, ...]] | None = None


def remember(pipe: Connection, link: Connection, tickets: tuple[Any, ...]) -> None:
    """Runs first in loky's process: stores what can only be sent when a process starts.

    If the parent is killed before it sends the task, this process must end too; the queue of tasks would not show it.
    """
    global _inbox
    with contextlib.suppress(OSError):  # it leads a session already
        os.setsid()  # the terminal's Ctrl-C, and signals to the learner's group, do not reach it
    ignore()
    leave_fork_server()
    die_with_parent()
    if _is_closed(link):  # the parent died before it could be watched
        os._exit(1)
    _inbox = (pipe, link, tickets)


def _is_closed(connection: Connection) -> bool:
    """Whether the other end is closed. Reads nothing."""
    poll = select.poll()
    poll.register(connection.fileno(), 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def leave_fork_server() -> None:
    """Let the fork server end without waiting for the end of this process, and show exceptions as usual."""
    sys.excepthook = sys.__excepthook__
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None


def supervise(payload: bytes, state: ParentState, marker: str, torch: bool) -> int:
    """loky's task: start the worker and wait for its end. Returns its exit code.

    Args:
        torch: the worker imports torch before it makes its object.
    """
    assert _inbox is not None
    pipe, link, tickets = _inbox

    def run() -> None:
        os.environ[MARKER] = marker
        state.take_over()
        if torch:
            import_torch()
        _serve(pipe, tickets, payload, state)

    return run_supervised(run, link, pipe)


def run_supervised(run: Callable[[], None], link: Connection, pipe: Connection) -> int:
    """Run a function in a child process, and end everything that it left. Returns its exit code.

    Args:
        link: to the learner. KILL, or the end of the learner, ends the child. The learner gets the child's pid.
        pipe: is closed in this process, so that the end of the child shows at its other end.
    """
    die_with_parent(0)  # from here on the link shows the learner's end
    adopt_orphans()
    status: int | None = None

    def reaped(pid: int, its: int) -> None:
        nonlocal status
        if pid == child:
            status = its

    with folder_of_worker() as folder:
        child = os.fork()
        if child == 0:
            _run(run, link, pipe, folder)
        pipe.close()
        try:
            with contextlib.suppress(OSError):
                link.send(child)
            _wait_for_end(child, link, lambda: reap(reaped) and status is None)
            if status is None:
                send(child, signal.SIGKILL)
        finally:
            end_descendants(reaped)
    die_with_parent()
    if _learner_is_gone(link):  # this process will get no request to end
        os._exit(0)
    return 0 if status is None else os.waitstatus_to_exitcode(status)


def _wait_for_end(child: int, link: Connection, alive: Callable[[], bool]) -> None:
    """Wait until the child ends, or has to be killed."""
    ended: list[Any] = []
    with contextlib.suppress(OSError, AttributeError):
        ended = [os.pidfd_open(child)]
    seconds = REAP_SECONDS if ended else 0.05
    try:
        while alive():
            if link in wait([link, *ended], seconds):
                with contextlib.suppress(EOFError, OSError):
                    if link.recv_bytes() == KILL:
                        return
                until = time.monotonic() + CLOSE_SECONDS  # the learner is gone, and the child notices that too
                while alive() and time.monotonic() < until:
                    wait(ended, 0.05)
                return
    finally:
        for descriptor in ended:
            os.close(descriptor)


def _learner_is_gone(link: Connection) -> bool:
    try:
        while link.poll(0):
            link.recv_bytes()
    except (EOFError, OSError):
        return True
    return False


def _run(run: Callable[[], None], link: Connection, pipe: Connection, folder: str | None) -> NoReturn:
    """The child, from its fork to its end."""
    code = 1
    try:
        supervisor = os.getppid()
        die_with_parent()
        if os.getppid() != supervisor:
            os._exit(1)
        os.setsid()
        link.close()
        closed_in_children(pipe)
        _forget_parent()
        use_folder(folder)
        use_own_semaphore_names()
        ignore()
        run()
        _exit_functions()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def import_torch() -> None:
    """Import torch, with one thread."""
    import torch

    torch.set_num_threads(1)


def _serve(pipe: Connection, tickets: tuple[Any, ...], payload: bytes, state: ParentState) -> None:
    """Make the object, and answer calls until one asks to close, or the learner is gone."""
    worker: Any = None
    failed: tuple[str, str] | None = None
    while True:
        try:
            method, args = pipe.recv()
        except (EOFError, OSError):
            method, args = "close", ()
        if method == "close":
            if worker is not None:
                worker.close()
            return
        try:
            if failed is not None:  # later calls may be in the pipe already
                answer = failed
            else:
                with ends_forks():
                    if worker is None:
                        worker = state.load(payload)(*tickets)
                    answer = ("ok", getattr(worker, method)(*args))
        except EnvFault as fault:
            failed = answer = ("error", describe(fault))
        except BaseException as error:  # also sys.exit in an environment
            failed = answer = ("error", whole_traceback(error))
        with contextlib.suppress(OSError):  # the learner is gone; the next call is to close
            try:
                pipe.send(answer)
            except OSError:
                raise
            except Exception:  # the answer cannot be pickled
                pipe.send(("error", traceback.format_exc()))


def _forget_parent() -> None:
    """Let multiprocessing, and functions at exit, see a process that was started by hand."""
    module: Any = process
    module._parent_process, module._children, module._process_counter = None, set(), itertools.count(1)
    this: Any = process.current_process()
    this._identity, this._name, this._parent_pid = (), "MainProcess", None
    this._config["daemon"] = False
    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is not None:
        os.close(tracker._fd)
    for inherited in (tracker, forkserver._forkserver):
        type(inherited).__init__(inherited)
    hidden: Any = multiprocessing.util
    hidden._finalizer_registry.clear()
    hidden._run_after_forkers()
    finalizers: Any = weakref.finalize
    finalizers._registry.clear()
    finalizers._registered_with_atexit = False
    getattr(threading, "_threading_atexits", []).clear()
    atexit._clear()
    atexit.register(hidden._exit_function)


def _exit_functions() -> None:
    """Call what was registered for the end of the process. The supervisor limits the time."""
    for callback in reversed(getattr(threading, "_threading_atexits", [])):
        callback()  # of executors
    atexit._run_exitfuncs()
