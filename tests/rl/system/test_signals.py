"""Ctrl-C and SIGTERM: while a run starts, while it runs, and when it hangs in this process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain import cli
from rltrain.envs.problems.probes import Counter
from rltrain.errors import Interrupted, RunFailed, Stop
from rltrain.rollout.workers import process_state
from rltrain.system import signals as signals_module
from rltrain.system.signals import Signals, held, sigterm_stops

HANGS = """
import time
from pathlib import Path
from rltrain.envs.problems.probes import Counter

class Hangs(Counter):
    def step(self, action):
        if any(Path("runs").glob("*/metrics.jsonl")):
            time.sleep(0.5)  # the run has started by now
            print("hangs", flush=True)
            while True:
                try: time.sleep(0.1)
                except SWALLOWED: pass
        return super().step(action)
"""


TINY: dict[str, Any] = {
    "algo": "ppo", "preset": "none", "workers": 0, "streams": 2, "unroll": 16, "epochs": 1, "minibatches": 1,
    "widths": [8], "steps": 96, "eval_every": 0, "quiet": True,
}  # fmt: skip


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_starting_it_raises_once_and_then_it_asks(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals_module, "REACTION_SECONDS", 0.0)
    before = signal.getsignal(number)
    asked: list[bool] = []
    with Signals() as signals:
        with pytest.raises(Stop) as stop:
            send(number)
        send(number)  # nothing more: what was opened is being closed
    assert stop.value.status == 128 + number

    with Signals() as signals:
        signals.ask = asked.append
        send(number)
        assert signal.getsignal(number) == signals._on
        send(number)
        assert signal.getsignal(number) == signal.SIG_DFL, "a third one is not ours"
    assert asked == [False, True]
    assert signal.getsignal(number) == before


def test_signals_within_a_moment_do_not_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with Signals() as signals:
        signals.ask = lambda again: None
        for _ in range(10):
            send(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signals._on
        monkeypatch.setattr(signals_module, "REACTION_SECONDS", 0.0)
        send(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_start_closes_everything(
    number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It comes when the actors are open; also when nothing is (in `parse`)."""
    from rltrain.rollout.scheduler import Rollout

    closed: list[Rollout] = []

    def close(self: Rollout) -> None:
        closed.append(self)

    monkeypatch.setattr(Rollout, "close", close)
    monkeypatch.setattr("rltrain.run.BackgroundEvaluation", lambda *_: send(number))
    asked: dict[str, Any] = {"algo": "ppo", "env": "probe:counter", "workers": 0, "quiet": True, "out": str(tmp_path)}

    with pytest.raises(Interrupted) as interrupted:
        rltrain.train(**asked)
    assert interrupted.value.status == status
    assert len(closed) == 1

    monkeypatch.setattr(cli, "parse", lambda _: send(number))
    assert cli.main(["--quiet"]) == status
    assert capsys.readouterr().err == "rltrain: interrupted while it started; no checkpoint was written\n"


@pytest.mark.parametrize("swallows", [pytest.param(False, marks=pytest.mark.sweep), True])
def test_a_hang_in_this_process_is_given_up_at_the_second_signal(swallows: bool, tmp_path: Path) -> None:
    """If the environment swallows the exception that ends its call, the fourth one ends the process."""
    (tmp_path / "mine.py").write_text(HANGS.replace("SWALLOWED", "BaseException" if swallows else "Exception"))
    flags = "--algo ppo --env mine.py:Hangs --workers 0 --streams 4 --unroll 16 --eval-every 0 --quiet".split()
    text = "import sys; from rltrain.cli import main; sys.exit(main())"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", text, *flags], cwd=tmp_path, stdout=pipe, stderr=pipe) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        try:
            assert command.stdout.readline() == b"hangs\n"
            command.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert command.poll() is None
            command.send_signal(signal.SIGTERM)
            for _ in range(2 if swallows else 0):
                time.sleep(1.1)
                assert command.poll() is None
                command.send_signal(signal.SIGTERM)
            assert command.wait(10) == (-signal.SIGTERM if swallows else 143)
            error = command.stderr.read()
            assert error.startswith(b"" if swallows else b"rltrain: interrupted; checkpoint ")
            assert error.count(b"\n") == (0 if swallows else 2)  # the second line: the command that continues
        finally:
            command.kill()


class SendsSignals(Counter):
    """Sends a signal to its own process in some of its calls, once a run trains."""

    def __init__(self, runs: str, calls: Sequence[str], number: int, way: str = "kill") -> None:
        super().__init__()
        self.runs, self.calls, self.number, self.way = Path(runs), calls, number, way

    def send(self, call: str) -> None:
        if call in self.calls and any(self.runs.glob("*/metrics.jsonl")):
            if self.way == "kill":
                os.kill(os.getpid(), self.number)
            else:
                os.system(f"kill -{int(self.number)} {os.getpid()}")  # a shell's; not `run`, which would leave a zombie

    def reset(self, **kwargs: Any) -> Any:
        self.send("reset")
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.send("step")
        return super().step(action)

    def close(self) -> None:
        self.send("close")


@pytest.mark.parametrize(
    ("calls", "number", "way"),
    [
        ("reset", signal.SIGTERM, "kill"),
        pytest.param("step", signal.SIGINT, "kill", marks=pytest.mark.sweep),
        pytest.param("step", signal.SIGTERM, "a process of its own", marks=pytest.mark.sweep),
        pytest.param("close", signal.SIGTERM, "kill", marks=pytest.mark.sweep),
        ("close", signal.SIGTERM, "a process of its own"),
        pytest.param("reset step close", signal.SIGINT, "kill", marks=pytest.mark.sweep),
        pytest.param("reset step close", signal.SIGTERM, "a process of its own", marks=pytest.mark.sweep),
    ],
)
def test_an_environment_that_stops_its_own_process_again_and_again(
    calls: str, number: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --workers 0. The run ends once, with a checkpoint that can be resumed. Signals of close() never end it."""
    ended: list[int] = []
    if calls == "close":
        monkeypatch.setattr(signals_module, "REACTION_SECONDS", 0.0)
        monkeypatch.setattr(signals_module, "_end_at_next", lambda: ended.append(1))
    args = {"runs": str(tmp_path), "calls": calls.split(), "number": int(number), "way": way}
    asked: dict[str, Any] = {"env": SendsSignals, "env_args": args, "out": str(tmp_path)} | TINY
    before = signal.getsignal(number)
    if calls == "close":
        assert rltrain.train(**asked | {"streams": 4}).stopped == "steps"
        assert not ended
    else:
        with pytest.raises(Interrupted, match="interrupted; checkpoint") as interrupted:
            rltrain.train(**asked)
        assert interrupted.value.status == 128 + number
        (run,) = tmp_path.iterdir()
        (tmp_path / "elsewhere").mkdir()
        moved = run.rename(tmp_path / "elsewhere" / run.name)  # where the environment does not look for a run
        assert rltrain.train(resume=moved, env=SendsSignals).stopped == "steps"
    assert signal.getsignal(number) == before


FATAL: dict[str, Any] = {
    "SIGHUP": lambda: os.kill(os.getpid(), signal.SIGHUP),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGQUIT": lambda: os.killpg(os.getpgrp(), signal.SIGQUIT),
    "SIGUSR1": lambda: os.kill(0, signal.SIGUSR1),
    "SIGVTALRM": lambda: signal.raise_signal(signal.SIGVTALRM),
    "SIGSEGV": lambda: signal.raise_signal(signal.SIGSEGV),
    "os.abort": lambda: os.abort(),
    "os.execv": lambda: os.execv("/bin/true", ["true"]),
    "os.execve": lambda: os.execvpe("true", ["true"], {}),
    "os._exit": lambda: _in_thread(os._exit, 0),
}


def _in_thread(function: Any, *args: Any) -> None:
    def work() -> None:
        with contextlib.suppress(SystemExit):  # pytest does not expect it in a thread
            function(*args)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    time.sleep(0.01)


class EndsItself(SendsSignals):
    """Ends its own process in some of its calls."""

    def send(self, call: str) -> None:
        if call in self.calls and any(self.runs.glob("*/metrics.jsonl")):
            FATAL[self.way]()


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(name, marks=() if name in ("SIGKILL", "SIGQUIT", "os.execv", "os._exit") else pytest.mark.sweep)
        for name in FATAL
    ],
)
def test_a_signal_that_would_end_the_process_gives_a_line_and_a_checkpoint(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent(*_: Any) -> None:
        raise AssertionError("the signal was sent to the process of the tests, or to all of its group")

    for function in ("_kill", "_raise_signal", "_abort", "_exit", "_execv", "_execve"):
        monkeypatch.setattr(process_state, function, sent)
    monkeypatch.setattr(process_state, "_handled_in_c", lambda number: False)  # another test may have set a handler
    numbers = [signal.SIGHUP, signal.SIGQUIT]  # ignored where the tests run in the background
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    args = {"runs": str(tmp_path), "calls": ["step"], "number": 0, "way": way}
    place = "in a thread of its own" if way == "os._exit" else r"at .*test_signals\.py, line \d+"
    text = rf"it ended the program (by|with) {way}.* {place}(.|\n)*checkpoint /"
    try:
        with pytest.raises(RunFailed, match=text):
            rltrain.train(env=EndsItself, env_args=args, out=str(tmp_path), max_restarts=0, **TINY)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Waits(Counter):
    """Blocks a signal, sends it to its own process, and takes it."""

    def step(self, action: Any) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.sigwait((signal.SIGUSR1,)) == signal.SIGUSR1
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return super().step(action)


def test_a_signal_that_an_environment_blocks_reaches_no_other_thread(tmp_path: Path) -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)  # with the default action of the signal, which ends the process
    other.start()
    try:
        assert rltrain.train(env=Waits, out=str(tmp_path), **TINY).stopped == "steps"
    finally:
        done.set()
        other.join()


def test_a_process_that_an_environment_forks_sends_signals_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that the process blocks: it must not send the signal to itself."""
    reads, writes = os.pipe()
    monkeypatch.setattr(process_state, "_kill", lambda pid, number: os.write(writes, f"{pid} {int(number)}".encode()))
    parent = os.getpid()
    settings = process_state.LocalSettings()
    with settings():
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2,))
            os.kill(parent, signal.SIGUSR2)
            os._exit(0)
        os.waitpid(child, 0)
    monkeypatch.undo()
    settings.end()
    os.close(writes)
    assert os.read(reads, 100).decode() == f"{parent} {int(signal.SIGUSR2)}"
    os.close(reads)


class OwnStop(KeyboardInterrupt):
    """An exception of the environment's own."""


class Stops(SendsSignals):
    def send(self, call: str) -> None:
        if call in self.calls and any(self.runs.glob("*/metrics.jsonl")):
            raise OwnStop("no further")


def test_an_exception_of_the_environment_is_not_taken_for_ctrl_c(tmp_path: Path) -> None:
    args = {"runs": str(tmp_path), "calls": ["step"], "number": 0}
    with pytest.raises(RunFailed, match=r"OwnStop.* at .*test_signals\.py, line \d+(.|\n)*checkpoint /"):
        rltrain.train(env=Stops, env_args=args, out=str(tmp_path), max_restarts=0, **TINY)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_must_not_be_left(number: int) -> None:
    done = False

    def work() -> None:
        nonlocal done
        with sigterm_stops(), held():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            done = True

    with pytest.raises(KeyboardInterrupt) as stop:
        work()

    assert done
    assert isinstance(stop.value, Stop) == (number == signal.SIGTERM)


def test_who_ignores_a_signal_ignores_it_afterwards_too() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_torch_is_imported_whole_before_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    """Its C++ aborts, with status 134, if KeyboardInterrupt comes up in the midst: here one does, at its first file."""
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch._C': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from rltrain.cli import main\n"
        "status = main(['--algo', 'ppo', '--env', 'CartPole-v1', '--backend', 'local', '--quiet'])\n"
        "print(status, 'torch.nn' in sys.modules, 'rltrain.training_loop' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)

    assert done.stdout == "130 True True\n", done.stderr
    assert done.stderr == "rltrain: interrupted while it started; no checkpoint was written\n"
