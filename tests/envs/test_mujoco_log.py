"""MuJoCo's advice to authors of model files stays off the console; its other warnings do not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs the extra mujoco")

SCRIPT = """
import gymnasium, mujoco
from rltrain.envs.make import resolve

for _ in range(3):
    env = resolve("HalfCheetah-v5").make()
if mine:
    mujoco.set_mju_user_warning(None)
    mujoco.set_mju_user_warning(lambda text: print("mine", text))
    resolve("HalfCheetah-v5").make()
env.reset(seed=0)
env.unwrapped.data.qpos[:] = float("nan")
mujoco.mj_step(env.unwrapped.model, env.unwrapped.data)
"""


def told(folder: Path, mine: bool = False) -> tuple[str, str, str]:
    root = Path(__file__).resolve().parents[3]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); mine = {mine}\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr, (folder / "MUJOCO_LOG.TXT").read_text()


def test_advice_stays_in_the_log_and_trouble_is_told(tmp_path: Path) -> None:
    out, err, log = told(tmp_path)

    assert "deprecated" not in out + err
    assert log.count("deprecated") == 1
    assert "WARNING: Nan, Inf or huge value in Q" in err
    assert "Nan, Inf or huge value in Q" in log


def test_somebodys_own_handler_stays(tmp_path: Path) -> None:
    out, _, _ = told(tmp_path, mine=True)

    assert "mine compiler attribute" in out
    assert "mine Nan, Inf or huge value in Q" in out
