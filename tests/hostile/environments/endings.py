"""Environments that end their process, or try to, in each of their methods."""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

from harmless import Harmless

EVERYWHERE = ["init", "reset", "step", "later"]


class Exits(Harmless):
    """sys.exit(0)"""

    EXPECT = {"when": EVERYWHERE, "says": r"SystemExit|sys\.exit|exit"}

    def disturb(self) -> None:
        sys.exit(0)


class ExitsWithText(Harmless):
    """sys.exit("no licence")"""

    EXPECT = {"when": EVERYWHERE, "says": "no licence"}

    def disturb(self) -> None:
        sys.exit("no licence")


class ExitsAtOnce(Harmless):
    """os._exit(0)"""

    EXPECT = {"when": EVERYWHERE, "says": "ended|exit"}

    def disturb(self) -> None:
        os._exit(0)


class ExitsWithStatus(Harmless):
    """os._exit(42)"""

    EXPECT = {"when": ["init", "later"], "says": "42"}

    def disturb(self) -> None:
        os._exit(42)


class Segfault(Harmless):
    """Reads from address 0."""

    EXPECT = {"when": EVERYWHERE, "says": "SIGSEGV", "dies": True}

    def disturb(self) -> None:
        ctypes.string_at(0)


class KillsItself(Harmless):
    """SIGKILL to its own process."""

    EXPECT = {"when": EVERYWHERE, "says": "SIGKILL"}

    def disturb(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Aborts(Harmless):
    """abort(), as an assertion in C does."""

    EXPECT = {"when": ["reset", "later"], "says": "SIGABRT|os.abort"}

    def disturb(self) -> None:
        os.abort()


class TerminatesItself(Harmless):
    """SIGTERM to its own process."""

    EXPECT = {  # workers ignore it, as they do Ctrl-C of a terminal
        "when": ["reset", "step"],
        "alone": {"status": 143, "says": "interrupted; checkpoint"},
    }

    def disturb(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class KillsParent(Harmless):
    """SIGKILL to its process group."""

    EXPECT = {"when": ["reset"], "says": "SIGKILL", "dies": True}

    def disturb(self) -> None:
        os.killpg(0, signal.SIGKILL)


class Recursion(Harmless):
    """Recursion without end."""

    EXPECT = {"when": EVERYWHERE, "says": "RecursionError", "traceback": True}

    def disturb(self) -> None:
        self.disturb()


class Memory(Harmless):
    """MemoryError"""

    EXPECT = {"when": EVERYWHERE, "says": "MemoryError", "traceback": True}

    def disturb(self) -> None:
        bytearray(1 << 60)


class Interrupt(Harmless):
    """KeyboardInterrupt"""

    EXPECT = {"when": EVERYWHERE, "says": "KeyboardInterrupt", "traceback": None}

    def disturb(self) -> None:
        raise KeyboardInterrupt


class Stop(Harmless):
    """StopIteration"""

    EXPECT = {"when": EVERYWHERE, "says": "StopIteration", "traceback": True}

    def disturb(self) -> None:
        next(iter(()))


class Generator(Harmless):
    """GeneratorExit"""

    EXPECT = {"when": EVERYWHERE, "says": "GeneratorExit", "traceback": None}

    def disturb(self) -> None:
        raise GeneratorExit


class Broken(BaseException):
    """Not an Exception, without a text, and cannot be pickled."""

    def __init__(self, first: Any, second: Any) -> None:
        self.values = first, second, lambda: None

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class RaisesBase(Harmless):
    """A subclass of BaseException whose text raises and that cannot be pickled."""

    EXPECT = {"when": EVERYWHERE, "says": "Broken", "traceback": None}

    def disturb(self) -> None:
        raise Broken(1, 2)


class Group(Harmless):
    """An ExceptionGroup."""

    EXPECT = {"when": ["reset", "later"], "says": "two", "traceback": True}

    def disturb(self) -> None:
        raise ExceptionGroup("two", [ValueError("one"), KeyError("other")])


class Surrogates(Harmless):
    """An error text that is no valid UTF-8, with colour codes and brackets."""

    EXPECT = {"when": ["reset", "later"], "says": "wrong", "traceback": True}

    def disturb(self) -> None:
        raise ValueError("wrong \udcff \x1b[31m [red] [/] {x} %s")


class LongText(Harmless):
    """An error text of 3 MB."""

    EXPECT = {"when": ["reset", "later"], "says": "ValueError", "traceback": True}

    def disturb(self) -> None:
        raise ValueError("long " * 600_000)


class Asserts(Harmless):
    """A plain assertion."""

    EXPECT = {"when": EVERYWHERE, "says": "AssertionError", "traceback": True}

    def disturb(self) -> None:
        raise AssertionError


class ImportsLate(Harmless):
    """Imports a module that is not installed."""

    EXPECT = {"when": EVERYWHERE, "says": "no_such_module", "traceback": True}

    def disturb(self) -> None:
        __import__("no_such_module")


class CloseRaises(Harmless):
    """close() raises."""

    EXPECT = {"when": ["close"], "status": 0, "notes": "close"}

    def disturb(self) -> None:
        raise RuntimeError("cannot close")


class CloseExits(Harmless):
    """close() calls sys.exit(3)."""

    EXPECT = {"when": ["close"], "status": 0, "notes": "close"}

    def disturb(self) -> None:
        sys.exit(3)


class CloseInterrupts(Harmless):
    """close() raises KeyboardInterrupt."""

    EXPECT = {"when": ["close"], "status": 0, "notes": "close"}

    def disturb(self) -> None:
        raise KeyboardInterrupt


class CloseTwice(Harmless):
    """A second close() raises."""

    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


class CloseKills(Harmless):
    """close() reads from address 0."""

    EXPECT = {"when": ["close"], "says": "SIGSEGV"}

    def disturb(self) -> None:
        ctypes.string_at(0)


class DiesWhenDeleted(Harmless):
    """__del__ raises."""

    def __del__(self) -> None:
        raise RuntimeError("deleted")


class InEvaluation(Harmless):
    """SIGTERM to its own process in an evaluation."""

    EXPECT = {"alone": {"status": 143, "says": "interrupted; checkpoint"}}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        from rltrain.evaluation.background import evaluation_seeds

        if seed in evaluation_seeds(0, 5):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().reset(seed=seed)


class DiesInEvaluation(Harmless):
    """os._exit(0) in an evaluation."""

    EXPECT = {"status": 1, "says": "evaluating worker"}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        from rltrain.evaluation.background import evaluation_seeds

        if seed in evaluation_seeds(0, 5):
            os._exit(0)
        return super().reset(seed=seed)


class RaisesInEvaluation(Harmless):
    """Raises in an evaluation."""

    EXPECT = {"status": 1, "says": "only in training", "traceback": True}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        from rltrain.evaluation.background import evaluation_seeds

        if seed in evaluation_seeds(0, 5):
            raise RuntimeError("only in training")
        return super().reset(seed=seed)


class TerminatesInClose(Harmless):
    """SIGTERM and SIGINT to its own process in close()."""

    EXPECT = {  # the environment of an evaluation is closed while the run goes on
        "when": ["close"],
        "alone": {"status": [130, 143], "says": "interrupted; checkpoint"},
    }

    def disturb(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


class TerminatesInConstructor(Harmless):
    """SIGTERM to its own process in the constructor."""

    EXPECT = {"when": ["init"], "alone": {"status": 143, "says": "interrupted"}}

    def disturb(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class InterruptsMain(Harmless):
    """_thread.interrupt_main() from a thread of its own."""

    EXPECT = {"when": ["later"], "alone": {"status": 130, "says": "interrupted"}, "twin": "harmless"}

    def disturb(self) -> None:
        thread = threading.Thread(target=_thread.interrupt_main)
        thread.start()
        thread.join()


class ThreadExits(Harmless):
    """os._exit(0) in a thread of its own."""

    EXPECT = {"when": ["later"], "says": r"ended|exit|os\._exit"}

    def disturb(self) -> None:
        thread = threading.Thread(target=os._exit, args=(0,))
        thread.start()
        thread.join()
        time.sleep(0.1)


class ThreadRaises(Harmless):
    """A thread of its own raises at each reset."""

    EXPECT = {"twin": "harmless", "traceback": None}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        thread = threading.Thread(target=self.fail)
        thread.start()
        thread.join()
        return super().reset(seed=seed)

    def fail(self) -> None:
        raise RuntimeError("in a thread")


class Daemonizes(Harmless):
    """Forks, and the parent ends with os._exit(0), as daemons do."""

    EXPECT = {"when": ["init", "later"], "says": r"ended|exit"}

    def disturb(self) -> None:
        if os.fork():
            os._exit(0)


class ClosesAllDescriptors(Harmless):
    """os.closerange(3, 500), as daemons do."""

    EXPECT = {"when": ["init", "reset", "later"], "says": r"rltrain", "status": [1, 2], "dies": True}

    def disturb(self) -> None:
        os.closerange(3, 500)


class Breakpoint(Harmless):
    """breakpoint(), which reads from the standard input."""

    EXPECT = {"when": ["reset", "later"], "says": "BdbQuit", "traceback": True}

    def disturb(self) -> None:
        breakpoint()


class ReplacesProcess(Harmless):
    """os.execv: another program in the place of its process."""

    EXPECT = {"when": ["reset", "later"], "says": r"ended|exit", "dies": True}

    def disturb(self) -> None:
        os.execv("/bin/true", ["true"])
