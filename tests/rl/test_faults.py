"""What goes wrong before training, or around it: said in full, without a traceback of ours, and nothing is lost."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile.cases import UNSHARE, own_shared_memory

from rltrain import cli

FLAGS = "--algo ppo --workers 0 --streams 4 --unroll 16 --widths 8 --steps 128 --eval-every 0 --preset none".split()

ENVS = """
import os
import gymnasium, numpy as np
from gymnasium import spaces

class Fine(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 1.0, False, True, {}

class AtOnce(Fine):
    def __init__(self): raise RuntimeError("no licence")

class InStep(Fine):
    def step(self, action): raise RuntimeError("fell over")

class WhenAsked(Fine):
    def step(self, action):
        if os.path.exists("broken"): raise RuntimeError("broke since")
        return super().step(action)

class TwoFaults(Fine):
    def step(self, action): return np.zeros(3, np.float32), float("nan"), False, True, {}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with mine.py, which is the current one."""
    (tmp_path / "mine.py").write_text(ENVS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(here: Path) -> Path:
    (run,) = (here / "runs").iterdir()
    return run


# --- environments ---


@pytest.mark.parametrize(("name", "said"), [("AtOnce", "RuntimeError: no licence"), ("InStep", "fell over")])
def test_an_environment_that_raises_is_not_our_traceback(name: str, said: str, capsys: Any) -> None:
    assert cli.main([*FLAGS, "--env", f"mine.py:{name}"]) == 1

    text = capsys.readouterr().err
    assert text.startswith("rltrain: the environment failed at step ")  # in the first look: it has no stream yet
    assert text.count("Traceback") == 1
    assert said in text.splitlines()[-1]
    assert 'mine.py", line' in text
    assert not Path("runs").exists()


def test_so_does_rleval(here: Path, capsys: Any) -> None:
    assert cli.main([*FLAGS, "--env", "mine.py:WhenAsked"]) == 0
    (here / "broken").touch()

    assert cli.main_eval([str(run_of(here))]) == 1

    text = capsys.readouterr().err
    assert text.startswith("rleval: the environment of stream")
    assert text.splitlines()[-1] == "RuntimeError: broke since"


def test_all_that_is_wrong_with_an_environment_is_said_at_once(capsys: Any) -> None:
    assert cli.main([*FLAGS, "--env", "mine.py:TwoFaults"]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("rltrain: mine.py:TwoFaults: ") for line in lines)
    assert "the reward is nan" in lines[0]
    assert "shape (3,)" in lines[1]


# --- the machine ---

COMMAND = [sys.executable, "-c", "import sys; from rltrain.cli import main; sys.exit(main())"]
SMALL_MEMORY = [*UNSHARE, "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.mark.parametrize(
    ("before", "files", "said"),
    [
        ([], 40, "Too many open files"),
        pytest.param(
            SMALL_MEMORY,
            1024,
            "No space left on device",
            marks=[
                pytest.mark.skipif(not own_shared_memory(), reason="/dev/shm cannot be another one here"),
                pytest.mark.sweep,
            ],
        ),
    ],
    ids=["descriptors", "shared memory"],
)
def test_workers_for_which_the_machine_has_no_room_are_one_line(
    before: list[str], files: int, said: str, here: Path
) -> None:
    words = [*FLAGS, "--workers", "4", "--env", "CartPole-v1", "--quiet"]
    limits = resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])

    done = subprocess.run(
        [*before, *COMMAND, *words], cwd=here, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(*limits),
    )  # fmt: skip

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("rltrain: it could not be started: ")
    assert said in line
