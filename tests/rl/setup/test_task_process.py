"""A child process with user code in it: what it returns, and how each bad ending is reported."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rltrain.config.load import load
from rltrain.envs.errors import EnvError, EnvFault
from rltrain.envs.problems.probes import Counter
from rltrain.setup import task_process
from rltrain.setup.environment import open_environment
from rltrain.setup.first_look import look_at

ENDINGS: dict[str, Any] = {
    "sys.exit(0)": lambda: sys.exit(0),
    "sys.exit()": sys.exit,
    "os._exit(0)": lambda: os._exit(0),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "KeyboardInterrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt),
    "GeneratorExit": lambda: (_ for _ in ()).throw(GeneratorExit),
    "hang": lambda: time.sleep(3600),
}


class Ends(Counter):
    """Does something bad in one of its calls."""

    def __init__(self, where: str, how: str) -> None:
        super().__init__()
        self.where, self.how = where, how
        self._in("constructor")

    def _in(self, where: str) -> None:
        if self.where == where:
            ENDINGS[self.how]()

    def reset(self, **kwargs: Any) -> Any:
        self._in("reset")
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self._in("step")
        return super().step(action)


def config(env: Any, **settings: Any) -> Any:
    return load({"algo": "ppo", "env": env, "workers": 0, "preset": "none", **settings})


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize(
    "where",
    [pytest.param("constructor", marks=pytest.mark.sweep), "reset", pytest.param("step", marks=pytest.mark.sweep)],
)
def test_the_line_says_which_call_ended_the_program_and_how(where: str, how: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(task_process, "LEAST_SECONDS", {})
    limit = 1.0 if how == "hang" else 20.0  # seconds; only a hang may meet it, also on a busy machine
    asked = config(Ends, env_args={"where": where, "how": how}, actor_timeout=limit)

    with pytest.raises(EnvError) as raised:
        open_environment(asked)

    call = where if where == "constructor" else rf"{where}\(\)"
    ways = {
        "sys.exit(0)": r"ended the program with sys\.exit\(0\) at .*test_task_process\.py, line \d+",
        "sys.exit()": r"ended the program with sys\.exit\(\) at .*test_task_process\.py, line \d+",
        "os._exit(0)": r"ended the process with exit code 0, as os\._exit does",
        "SIGSEGV": "ended the process by SIGSEGV",
        "hang": r"did not return within 1 s \(--actor-timeout\)",
    }
    start = rf"Ends: (its {call}|in its {call} it)"
    assert re.fullmatch(rf"{start} {ways.get(how, rf'raised {how} at .*')}", str(raised.value))


def test_the_place_of_an_exit_is_the_one_that_called_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that puts its own function there, as wandb does, is not the place."""

    def replaced(code: Any = None) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(sys, "exit", replaced)
    line = ENDINGS["sys.exit(0)"].__code__.co_firstlineno

    with pytest.raises(EnvError, match=rf"with sys\.exit\(0\) at .*test_task_process\.py, line {line}$"):
        open_environment(config(Ends, env_args={"where": "step", "how": "sys.exit(0)"}, actor_timeout=20.0))


def test_what_an_environment_changes_stays_in_the_child(tmp_path: Path) -> None:
    class Changes(Counter):
        def reset(self, **kwargs: Any) -> Any:
            os.chdir(tmp_path)
            os.environ["CHANGED"] = "yes"
            np.random.seed(1)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return super().reset(**kwargs)

    def state() -> Any:
        return os.getcwd(), dict(os.environ), np.random.get_state()[1].tolist(), signal.getsignal(signal.SIGTERM)  # type: ignore[index, union-attr]

    before = state()
    assert open_environment(config(Changes))[0].spec.id.endswith("Changes")
    assert state() == before


def test_an_answer_for_which_no_process_waits_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    class Slow(Counter):
        def __init__(self) -> None:
            super().__init__()
            time.sleep(0.3)

    look = look_at(config(Slow))
    look._pipe.close()  # as at the begin of `close`
    look._process.join(30)
    look.close()

    assert capfd.readouterr().err == ""


class _NoOutput:
    def write(self, text: str) -> int:
        raise RuntimeError("no output")

    flush = write


class ReplacesOutput(Counter):
    """Puts objects that raise in place of the standard streams."""

    def reset(self, **kwargs: Any) -> Any:
        sys.stdout = sys.stderr = _NoOutput()  # type: ignore[assignment]
        return super().reset(**kwargs)


def test_the_child_answers_if_its_output_raises() -> None:
    environment, notes = open_environment(config(ReplacesOutput))

    assert (environment.restore_method, notes) == ("rng", [])


def test_an_exception_keeps_its_traceback() -> None:
    class Raises(Counter):
        def step(self, action: Any) -> Any:
            raise ValueError("the wheel is off")

    with pytest.raises(EnvFault, match="the wheel is off") as raised:
        open_environment(config(Raises))
    assert "in step" in raised.value.detail


def test_an_environment_that_cannot_be_pickled_is_examined_in_a_fork(monkeypatch: Any) -> None:
    monkeypatch.setattr(task_process, "start_method", lambda: "spawn")
    lock = threading.Lock()

    assert open_environment(config(lambda: Counter() if lock else None))[0].kind == "serial"


def test_processes_that_an_environment_starts_end_with_the_examination() -> None:
    class Simulator(Counter):
        def __init__(self) -> None:
            import subprocess

            super().__init__()
            subprocess.Popen(["sleep", "3600"])

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    look = look_at(config(Simulator))
    look.result()
    sleeping = [child for child in psutil.Process().children(recursive=True) if child.name() == "sleep"]
    look.close()

    assert sleeping
    assert not [child for child in psutil.wait_procs(sleeping, 5)[1] if child.status() != psutil.STATUS_ZOMBIE]
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
