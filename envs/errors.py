"""Errors of environments: one cannot be made as asked, or one fails while it is used."""

from __future__ import annotations

import difflib
import signal
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

Watch = Callable[[str], None]  # gets the name of each call of an environment's code before the call is made


def unwatched(call: str) -> None:
    """The `Watch` that does nothing."""


class EnvError(Exception):
    """The environment cannot be made or used. The message is one line for the user."""


class InvalidValue(Exception):
    """An environment returned a value that breaks its interface: its spaces, or Gymnasium's API. One line."""


class ProcessExit(BaseException):
    """The environment ended a process that must continue, for example `with os._exit(0)` or `by SIGABRT`.

    No Exception, so that it does not catch it.
    """


NOT_THEIRS = (sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))  # folders of code that no user wrote
INVALID = "the environment broke its interface"  # in the detail of an EnvFault: no restart can help


class EnvFault(Exception):
    """An environment raised an exception or returned unusable values during a run. Can be pickled.

    Attributes:
        stream: the stream; -1 outside a run.
        seed:   that the stream was seeded with.
        row:    of the unroll.
        detail: the traceback of the environment's exception; of an `InvalidValue` one line, which begins with INVALID.
    """

    def __init__(self, stream: int, seed: int, row: int, detail: str) -> None:
        super().__init__(stream, seed, row, detail)
        self.stream, self.seed, self.row, self.detail = stream, seed, row, detail

    def __str__(self) -> str:
        return f"stream {self.stream} (seed {self.seed}), row {self.row}: {self.detail.strip().splitlines()[-1]}"


def fault_of(error: BaseException, stream: int, seed: int, row: int) -> EnvFault:
    """The EnvFault for an exception of an environment, SystemExit too. Ctrl-C is raised as it is."""
    if by_user(error):
        raise error
    return EnvFault(stream, seed, row, detail_of(error))


def describe(fault: EnvFault) -> str:
    """Message with the place of the failure and the environment's traceback."""
    where = "the environment" if fault.stream < 0 else f"the environment of stream {fault.stream} (seed {fault.seed})"
    what = f"{where} failed at step {fault.row}:"
    return f"{what}{chr(10) if chr(10) in fault.detail else ' '}{fault.detail}"


def by_user(error: BaseException) -> bool:
    """True if Ctrl-C raised this, and not the environment itself."""
    if type(error) is KeyboardInterrupt:
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, KeyboardInterrupt) and type(error).__module__.startswith("rltrain.")


def detail_of(error: BaseException) -> str:
    """The detail of an EnvFault for an exception: one line if the environment's code did not raise it itself."""
    if isinstance(error, EnvFault):
        return error.detail
    if isinstance(error, InvalidValue):
        return f"{INVALID}: {error}"
    if not isinstance(error, Exception):
        return exit_text(error)
    return "".join(traceback.format_exception(error))


def exit_text(error: BaseException) -> str:
    """What an exception did that is no Exception, such as SystemExit, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)] or frames
    place = f"{own[-1].filename}, line {own[-1].lineno}" if own else "an unknown place"
    if isinstance(error, ProcessExit):
        return f"it ended the program {error} at {place}"
    if isinstance(error, SystemExit):
        status = error.args[0] if error.args else None
        return f"it ended the program with sys.exit({'' if status is None else repr(status)}) at {place}"
    return f"it raised {type(error).__name__} at {place}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most similar to `name`, ignoring case; None below a similarity of `cutoff`."""
    names = {other.lower(): other for other in known}
    match = difflib.get_close_matches(name.lower(), names, 1, cutoff)
    return names[match[0]] if match else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: " Did you mean 'NEAREST'?", or "" if no known name is similar."""
    match = nearest(name, known)
    return f" Did you mean {match!r}?" if match else ""
