"""What a process does not pass on to its children: handlers of SIGINT and SIGTERM, connections, a lock.

An ignored signal (SIG_IGN) stays ignored in a program that the process starts; a handler written in Python does not.
A fork keeps both, so the handlers that are registered here are replaced in a forked child. The connections that are
registered here are closed there, so that the end of this process alone shows at their other ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

NUMBERS = (signal.SIGINT, signal.SIGTERM)
set_handler = signal.signal  # with --workers 0, code of an environment finds another function under this name
DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

Handler = Callable[[int, Any], Any]


@contextlib.contextmanager
def kept_from_children(handler: Handler) -> Iterator[None]:
    """In this block, forked children get the default handler in place of this one."""
    _own.append(handler)
    try:
        yield
    finally:
        _own.remove(handler)


def no_reaction(signum: int, frame: Any) -> None:
    """Handler in place of SIG_IGN."""


_own: list[Handler] = [no_reaction]
_local = threading.local()
_turn = threading.RLock()
_connections: weakref.WeakSet[Any] = weakref.WeakSet()


def ignore() -> None:
    """Ignore SIGINT and SIGTERM in this process, and let no signal be blocked. Its children do not inherit that."""
    for number in NUMBERS:
        signal.signal(number, no_reaction)
        signal.siginterrupt(number, False)  # code in C that does not expect it is not interrupted
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@contextlib.contextmanager
def without_signals() -> Iterator[None]:
    """SIGINT and SIGTERM have no effect in the block. Outside the main thread nothing changes."""
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        for number in NUMBERS:
            before[number] = set_handler(number, no_reaction)
    try:
        yield
    finally:
        for changed, former in before.items():
            set_handler(changed, signal.SIG_DFL if former is None else former)


def closed_in_children(*connections: Any) -> None:
    """Close these connections in children that are forked from now on."""
    _connections.update(connections)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread at a time is in this block. It may change for a while what all threads share, such as os.environ."""
    with _turn:
        yield


@contextlib.contextmanager
def reported_forks(descriptor: int) -> Iterator[None]:
    """Children that this thread forks in this block write their pid to a pipe first."""
    _local.report = descriptor
    try:
        yield
    finally:
        _local.report = None


@contextlib.contextmanager
def ends_forks() -> Iterator[None]:
    """A child that code in this block forks ends where it leaves the block, and runs nothing of this process."""
    pid = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() != pid:
            _end(error)
        raise
    if os.getpid() != pid:
        os._exit(0)


def _end(error: BaseException) -> NoReturn:
    """End this process as Python does for an exception. An EnvFault may have been made from it meanwhile."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, SystemExit):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        traceback.print_exception(error)
    code = 1 if cause is None else cause.code
    if code is not None and not isinstance(code, int):
        with contextlib.suppress(Exception):  # stderr is closed, or an object of the environment
            print(code, file=sys.stderr, flush=True)
        code = 1
    os._exit((code or 0) & 0xFF)


def _before() -> None:
    """Hold back signals until the child has its handlers."""
    _local.mask = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)


def _in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _local.mask)


def _in_child() -> None:
    global _turn
    _turn = threading.RLock()  # another thread may have held it, and does not run here
    for connection in _connections:
        connection.close()
    for number in NUMBERS:
        if signal.getsignal(number) in _own:
            with contextlib.suppress(ValueError):  # the fork happened in another interpreter's thread
                signal.signal(number, DEFAULTS[number])
    report: int | None = getattr(_local, "report", None)
    if report is not None:
        _local.report = None
        with contextlib.suppress(OSError):
            os.write(report, b"%d\n" % os.getpid())
            os.close(report)
    signal.pthread_sigmask(signal.SIG_SETMASK, _local.mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
