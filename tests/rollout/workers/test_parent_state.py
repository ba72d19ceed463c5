"""What can be found by name in the learner's process can be found in its workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, os
import gymnasium, numpy as np
import rltrain

def double(number):
    return 2 * number

class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        assert open("beside.txt").read() == "here"
        assert multiprocessing.get_start_method() == "spawn"
        assert multiprocessing.current_process().name == "MainProcess"
        assert gymnasium.make("Registered-v0").unwrapped is not None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if not os.path.exists("computed"):
            with multiprocessing.Pool(1) as pool:
                assert pool.map(double, [21]) == [42]
            open("computed", "a").close()
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t == 5, False, {}

class Plain(Mine):
    def __init__(self):
        pass

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    gymnasium.register("Registered-v0", entry_point="__main__:Plain")
    gymnasium.register("Mine-v0", entry_point=Mine)
    flags = dict(streams=2, unroll=16, epochs=1, steps=64, eval_every=0, quiet=True)
    print(rltrain.train(algo="ppo", env="Mine-v0", workers=1, out="runs", **flags).steps)
"""


def test_a_script_with_registered_ids_and_processes_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "beside.txt").write_text("here")
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 64


NAMES = ("envs", "rollout", "random", "types", "queue", "torch", "numpy")
ENV = """
import random
import gymnasium, numpy as np

class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), random.random(), self.t == 5, False, {}
"""


@pytest.mark.parametrize("file", [pytest.param("mine.py", marks=pytest.mark.sweep), "queue.py"])
def test_files_of_the_working_folder_do_not_break_workers(file: str, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong file')")
    (tmp_path / file).write_text(ENV)
    words = "--streams 2 --workers 1 --unroll 16 --epochs 1 --steps 64 --eval-every 0 --quiet".split()
    command = [str(Path(sys.executable).parent / "rltrain"), "--algo", "ppo", "--env", f"{file}:Mine", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ)

    assert done.returncode == 0, done.stderr
