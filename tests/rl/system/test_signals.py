"""Ctrl-C and SIGTERM: while a run starts, while it runs, and when it hangs in this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain import cli
from rltrain.errors import Interrupted, Stop
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
            while True: time.sleep(0.1)
        return super().step(action)
"""


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_starting_it_raises_once_and_then_it_asks(number: int) -> None:
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
    assert cli.main([]) == status
    assert capsys.readouterr().err == "rltrain: interrupted while it started; no checkpoint was written\n"


def test_the_third_ends_what_hangs_in_this_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HANGS)
    flags = "--algo ppo --env mine.py:Hangs --workers 0 --streams 4 --unroll 16 --eval-every 0 --quiet".split()
    text = "import sys; from rltrain.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", text, *flags], cwd=tmp_path, stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        try:
            assert command.stdout.readline() == b"hangs\n"
            for _ in range(2):
                command.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            assert command.poll() is None, "the first two wait"
            command.send_signal(signal.SIGTERM)
            assert command.wait(10) == -signal.SIGTERM
        finally:
            command.kill()


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
        "status = main(['--algo', 'ppo', '--env', 'CartPole-v1', '--backend', 'local'])\n"
        "print(status, 'torch.nn' in sys.modules, 'rltrain.training_loop' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)

    assert done.stdout == "130 True True\n", done.stderr
    assert done.stderr == "rltrain: interrupted while it started; no checkpoint was written\n"
