"""sbx's SAC and TD3 (JAX) on Pendulum-v1, one update a step: updates_sbx.py sac|td3 SEED [--steps N] [--cores N]"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from typing import Any

COMPILED = 1_000  # steps in which JAX compiles; they are not in `updates_per_second`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algo", choices=["sac", "td3"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=3_000, help="measured steps, after those in which JAX compiles")
    parser.add_argument("--cores", type=int, default=1, help="cores that this process may use [1]")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # before JAX makes its threads
    import gymnasium
    import numpy as np
    from sbx import SAC, TD3
    from stable_baselines3.common.noise import NormalActionNoise

    settings: dict[str, Any] = {
        "learning_rate": 3e-4,
        "buffer_size": 100_000,
        "learning_starts": 100,
        "batch_size": 256,
        "tau": 0.005,
        "gamma": 0.99,
        "train_freq": (1, "step"),
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": [256, 256]},
        "seed": options.seed,
    }
    env = gymnasium.make("Pendulum-v1")
    if options.algo == "sac":
        model = SAC("MlpPolicy", env, **settings)
    else:
        model = TD3("MlpPolicy", env, action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), **settings)
    started = time.perf_counter()
    model.learn(COMPILED)
    began = time.perf_counter()
    before = model._n_updates
    model.learn(options.steps, reset_num_timesteps=False)
    seconds = time.perf_counter() - began
    names = {"sbx-rl": "sbx", "jax": "sbx jax", "gymnasium": "sbx gymnasium", "numpy": "sbx numpy"}
    numbers = {
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "updates_per_second": (model._n_updates - before) / seconds,
        "first_steps_s": began - started,
        "versions": {short: version(name) for name, short in names.items()},
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
