"""An environment that hangs during `rleval`, or ends its process, is one line; errors keep their kind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psutil
import pytest

import rltrain
from rltrain.cli import main_eval
from rltrain.envs.errors import EnvFault
from rltrain.errors import CheckpointError, RunFailed
from rltrain.evaluation.in_child import evaluate_in_child

CODE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from rltrain.envs.problems.probes import Counter

HOW = Path(__file__).with_name("how")  # a call, and what it does in the evaluation

class Ends(Counter):
    def __init__(self):
        super().__init__()
        self._in("constructor")

    def reset(self, **kwargs):
        self._in("reset")
        return super().reset(**kwargs)

    def step(self, action):
        self._in("step")
        return super().step(action)

    def _in(self, call):
        if HOW.exists() and HOW.read_text().splitlines()[0] == call:
            exec(HOW.read_text().partition(chr(10))[2])
"""
SETTINGS: dict[str, Any] = {"episodes": 2, "seed": 0, "stochastic": False, "video": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("child")
    (folder / "ends.py").write_text(CODE)
    result = rltrain.train(
        algo="ppo", env=f"{folder}/ends.py:Ends", workers=0, streams=1, unroll=8, epochs=1, minibatches=1, steps=8,
        widths=(4,), eval_every=0, preset="none", quiet=True, out=str(folder / "runs"), actor_timeout=2.0,
    )  # fmt: skip
    return result.run


def does(run: Path, call: str, code: str) -> None:
    (run.parents[1] / "how").write_text(f"{call}\n{code}\n")


def test_it_is_the_evaluation_of_the_api(run: Path) -> None:
    does(run, "never", "")

    assert evaluate_in_child(str(run), [], SETTINGS) == rltrain.evaluate(run, episodes=2)


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        pytest.param(
            "reset",
            "time.sleep(99)",
            r"its reset\(\) did not return within 2 s \(--actor-timeout\)",
            marks=pytest.mark.sweep,
        ),
        ("step", "time.sleep(99)", r"its step\(\) did not return within 2 s \(--actor-timeout\)"),
        pytest.param(
            "step",
            "while True: pass",
            r"its step\(\) did not return within 2 s \(--actor-timeout\)",
            marks=pytest.mark.sweep,
        ),
        ("constructor", "os._exit(0)", r"it ended the program with os\._exit\(0\) at"),
        ("step", "__import__('ctypes').string_at(0)", r"its step\(\) ended the process by SIGSEGV"),
        pytest.param(
            "step",
            "os.system(f'kill -9 {os.getpid()}'); time.sleep(99)",
            "SIGKILL, most likely because memory ran out",
            marks=pytest.mark.sweep,
        ),
    ],
)
def test_an_environment_that_hangs_or_ends_the_process_is_one_line(
    run: Path, call: str, code: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(77)'], start_new_session=True)"
    does(run, call, f"{simulator}\n{code}")

    status = main_eval([str(run), "--episodes", "2"])

    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line), line
    assert line.startswith("rleval: ")
    assert status == RunFailed.status
    assert not [
        child for child in psutil.Process().children(recursive=True) if "time.sleep(77)" in child.cmdline()[-1:]
    ]


def test_errors_of_the_child_keep_their_kind(run: Path, tmp_path: Path) -> None:
    does(run, "step", "raise RuntimeError('no licence')")
    with pytest.raises(EnvFault, match="no licence") as caught:
        evaluate_in_child(str(run), [], SETTINGS)
    assert "ends.py" in caught.value.detail
    assert "Traceback" in caught.value.detail
    with pytest.raises(CheckpointError):
        evaluate_in_child(str(tmp_path), [], SETTINGS)
