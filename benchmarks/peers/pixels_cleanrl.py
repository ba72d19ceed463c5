"""CleanRL's PPO on Pong: pixels_cleanrl.py SEED [--threads N] [--steps N]

Its program runs as it is, with its own settings, which are those of the others too. The gym that it is written for has
games for older Pythons only, so it is given one that asks today's ale-py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import runpy
import sys
import tempfile
from importlib.metadata import version
from typing import Any

import ale_py
import gym
import numpy as np
import torch
from ale_py import roms
from torch.utils.tensorboard import SummaryWriter


class Pong(gym.Env):
    """Every frame, in colour, without sticky actions: PongNoFrameskip-v4."""

    def __init__(self) -> None:
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(roms.get_rom_path("pong"))
        self.actions = self.ale.getMinimalActionSet()
        self.observation_space = gym.spaces.Box(0, 255, (*self.ale.getScreenDims(), 3), np.uint8)
        self.action_space = gym.spaces.Discrete(len(self.actions))

    def get_action_meanings(self) -> list[str]:
        return [action.name for action in self.actions]

    def reset(self, **_: Any) -> np.ndarray:
        self.ale.reset_game()
        return self.ale.getScreenRGB()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        reward = self.ale.act(self.actions[action])
        return self.ale.getScreenRGB(), float(reward), self.ale.game_over(), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8192)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gym.register("PongNoFrameskip-v4", entry_point=Pong)
    found = importlib.util.find_spec("cleanrl.ppo_atari")
    assert found is not None
    assert found.origin is not None
    told: dict[str, tuple[float, int]] = {}
    real = SummaryWriter.add_scalar

    def add_scalar(self: SummaryWriter, tag: str, value: float, step: int, *rest: Any) -> None:
        told[tag] = float(value), step
        real(self, tag, value, step, *rest)

    SummaryWriter.add_scalar = add_scalar
    asked = f"--env-id PongNoFrameskip-v4 --total-timesteps {options.steps} --seed {options.seed} --cuda False"
    sys.argv = [found.origin, *asked.split()]
    out = sys.stdout
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        os.chdir(folder)
        sys.stdout = nowhere
        runpy.run_path(found.origin, run_name="__main__")
        sys.stdout = out
        os.chdir("/")
    speed, steps = told["charts/SPS"]  # since the first reset
    names = {"cleanrl": "cleanrl", "ale-py": "cleanrl ale-py", "torch": "cleanrl torch"}
    versions = {short: version(name) for name, short in names.items()}
    print(json.dumps({"steps_per_second": speed, "steps": steps, "versions": versions}))


if __name__ == "__main__":
    main()
