"""Stable-Baselines3's SAC and TD3 on Pendulum-v1, one update a step: updates_sb3.py sac|td3 SEED [--steps N]"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algo", choices=["sac", "td3"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=3_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        "learning_rate": 3e-4,
        "buffer_size": 100_000,
        "learning_starts": 100,
        "batch_size": 256,
        "tau": 0.005,
        "gamma": 0.99,
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": [256, 256]},
        "seed": options.seed,
        "device": "cpu",
    }
    env = gymnasium.make("Pendulum-v1")
    model: SAC | TD3
    if options.algo == "sac":
        model = SAC("MlpPolicy", env, **settings)
    else:
        model = TD3("MlpPolicy", env, action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), **settings)
    began = time.perf_counter()
    model.learn(options.steps)
    seconds = time.perf_counter() - began
    names = {"stable-baselines3": "sb3", "gymnasium": "sb3 gymnasium", "numpy": "sb3 numpy", "torch": "sb3 torch"}
    numbers = {
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "updates_per_second": model._n_updates / seconds,
        "versions": {short: version(name) for name, short in names.items()},
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
