"""rldoctor as a command: text, JSON, exit status, environments that hang or end their process."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

Launch = Any  # of tests/rl/conftest.py
HEAD = """
import os, time
import gymnasium

class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.low + self.np_random.random(2, "float32"), {}
    def step(self, action):
        self.time, self.noise = self.time + 1, 0.0
        self.act(action)
        obs = self.observation_space.low + self.np_random.random(2, "float32")
        return obs, action + self.noise, False, self.time == 9, {}
"""


def written(folder: Path, act: str) -> str:
    (folder / "own.py").write_text(HEAD + f"    def act(self, action):\n{textwrap.indent(act, ' ' * 8)}\n")
    return "own.py:Env"


@pytest.mark.parametrize(
    ("act", "text"),
    [
        ("if self.time == 3: time.sleep(60)", "its step() did not return within 2 s (--timeout)"),
        ("if self.time == 3: os._exit(3)", "its step() ended the process with exit code 3"),
        ("if self.time == 3: os.abort()", "its step() ended the process by SIGABRT"),
    ],
)
def test_a_hang_and_an_exit_are_lines(tmp_path: Path, launch: Launch, act: str, text: str) -> None:
    done = launch(tmp_path, written(tmp_path, act), "--quick", "--timeout", "2", main="main_doctor")

    assert done.status == 1, done.err
    assert f"fault: {text}" in done.out
    assert "not examined because of the fault before: repeat" in done.out


def test_a_sound_environment_has_status_0_and_advice(tmp_path: Path, launch: Launch) -> None:
    done = launch(tmp_path, written(tmp_path, "pass"), "--quick", "--json", main="main_doctor")

    report = done.result
    assert report["sound"] is True
    assert report["measured"]["step_seconds"] < 0.1
    assert report["measured"]["restore"] == "rng"
    assert any(line.startswith("algorithm: ppo") for line in report["advice"])


def test_a_fault_has_status_1_hint_and_how_it_was_seen(tmp_path: Path, launch: Launch) -> None:
    done = launch(tmp_path, written(tmp_path, "import random; self.noise = random.random()"), "--quick",
                  main="main_doctor")  # fmt: skip

    assert done.status == 1
    assert "own.py:Env: not sound (1 fault" in done.out
    assert "fault: it is not deterministic: " in done.out
    assert "    do: call super().reset(seed=seed)" in done.out
    assert "it draws from Python's random" in " ".join(done.out.split())
    assert "    seen: two instances with the same seed" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ENV is needed, as in rldoctor CartPole-v1"),
        (["CartPole-v9"], "unknown environment"),
        (["nowhere.py:Env"], "there is no file"),
        (["CartPole-v1", "--quick", "--deep"], "--quick and --deep: give one of them"),
        (["CartPole-v1", "--seed", "x"], "--seed: must be a whole number"),
        (["CartPole-v1", "--timeout", "0"], "--timeout: must be a number above 0"),
        (["CartPole-v1", "--env-arg", "x"], "--env-arg takes key=value"),
        (["CartPole-v1", "--env-arg", "x=1", "--quick"], "got an unexpected keyword argument 'x'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, launch: Launch, arguments: list[str], message: str) -> None:
    done = launch(tmp_path, *arguments, main="main_doctor")

    assert done.status == 2
    assert message in done.line
    assert done.line.startswith("rldoctor: ")
