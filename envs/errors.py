"""Errors of environments: one cannot be made as asked, or one fails while it is used."""

from __future__ import annotations

import difflib
import re
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

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


# Beginnings of the names of files with code that no user wrote.
NOT_THEIRS = ("<frozen ", sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))
INSTALLED = (*NOT_THEIRS, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
ENVIRONMENT = "the environment"  # the first words of `describe`
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
        return describe(self).rstrip()


def fault_of(error: BaseException, stream: int, seed: int, row: int) -> EnvFault:
    """The EnvFault for an exception of an environment, SystemExit too. Ctrl-C is raised as it is."""
    if by_user(error):
        raise error
    return EnvFault(stream, seed, row, detail_of(error))


def describe(fault: EnvFault) -> str:
    """Message with the place of the failure and the environment's traceback."""
    where = ENVIRONMENT if fault.stream < 0 else f"{ENVIRONMENT} of stream {fault.stream} (seed {fault.seed})"
    what = f"{where} failed at step {fault.row}:"
    return f"{what}{chr(10) if chr(10) in fault.detail else ' '}{fault.detail}"


def place_of(detail: str) -> str | None:
    """What two faults of a user's code have in common if they are the same one: place, step and kind of exception.

    Args:
        detail: text with a traceback, as of `describe`. Its message and the seed may differ.

    Returns:
        None if there is no traceback, or none of its frames is of a user's code.
    """
    lines = detail.strip().splitlines()
    frames = [line for line in lines if line.startswith('  File "')]
    if all(line.removeprefix('  File "').startswith((*INSTALLED, "<frozen ")) for line in frames):
        return None
    kind = next((line for line in reversed(lines) if line[:1] not in ("", " ")), "").partition(":")[0]
    return "\n".join([re.sub(r"\(seed -?\d+\)", "", lines[0]), *frames, kind])


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
    return user_traceback(error)


def user_traceback(error: BaseException) -> str:
    """The traceback of an exception, from the first frame of code that is not ours on; also of its causes.

    Frames of installed packages before the first one of the user's own code are left out too.
    """
    whole = traceback.TracebackException.from_exception(error)
    chain: list[traceback.TracebackException] = [whole]
    for part in chain:
        chain += [other for other in (part.__cause__, part.__context__) if other is not None]
        files = [frame.filename for frame in part.stack]
        for ours in (INSTALLED, NOT_THEIRS):
            first = next((place for place, file in enumerate(files) if _is_code(file) and not file.startswith(ours)), 0)
            if first or (files and not files[0].startswith(ours)):
                break
        part.stack = traceback.StackSummary.from_list(part.stack[first:])
    return "".join(whole.format())


def whole_traceback(error: BaseException) -> str:
    """The traceback of an exception: from the first frame of a user's code on, or with all frames if there is none."""
    return user_traceback(error) if in_user_code(error) else "".join(traceback.format_exception(error))


def in_user_code(error: BaseException) -> bool:
    """True if the exception passed through code that is neither ours nor installed."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return any(_is_code(file) and not file.startswith(INSTALLED) for file in files)


def _is_code(file: str) -> bool:
    """True if this names a file or a cell of a notebook, and not a part of Python."""
    return not file.startswith("<frozen ")


def exit_text(error: BaseException) -> str:
    """What an exception did that is no Exception, such as SystemExit, and where."""
    replaced = getattr(sys.exit, "__code__", None)  # a package, such as wandb, has put its own function there
    calls = (frame for frame in traceback.walk_tb(error.__traceback__) if frame[0].f_code is not replaced)
    frames = traceback.StackSummary.extract(calls)
    own = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)]
    place = f"{(own or frames)[-1].filename}, line {(own or frames)[-1].lineno}" if frames else "an unknown place"
    if isinstance(error, ProcessExit):
        return f"it ended the program {error} at {place}" if own else f"it ended the program {error}"
    if isinstance(error, SystemExit):
        status = error.args[0] if error.args else None
        return f"it ended the program with sys.exit({'' if status is None else repr(status)}) at {place}"
    return f"it raised {type(error).__name__} at {place}"


def made_already(env: Any) -> str | None:
    """The message about an environment that is given as an instance; None if it is something else."""
    if isinstance(env, type) or not all(callable(getattr(env, name, None)) for name in ("reset", "step")):
        return None
    spec_id = getattr(getattr(env, "spec", None), "id", None)
    name = f"its id {spec_id!r}, " if isinstance(spec_id, str) else ""
    kind = type(getattr(env, "unwrapped", env)).__name__
    single = " of a single one" if hasattr(env, "num_envs") else ""
    return (
        f"env is an instance of {kind}, and each stream makes an environment of its own: give {name}the class{single}, "
        "or a function that makes one"
    )


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most similar to `name`, ignoring case; None below a similarity of `cutoff`."""
    names = {other.lower(): other for other in known}
    match = difflib.get_close_matches(name.lower(), names, 1, cutoff)
    return names[match[0]] if match else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: " Did you mean 'NEAREST'?", or "" if no known name is similar."""
    match = nearest(name, known)
    return f" Did you mean {match!r}?" if match else ""
