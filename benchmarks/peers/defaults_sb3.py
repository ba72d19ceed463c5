"""Stable-Baselines3 with its defaults: defaults_sb3.py ALGO ENV SEED --steps N --episodes N"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from typing import Any

import stable_baselines3
import torch
from episodes import returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algo", choices="ppo a2c dqn sac td3".split())
    parser.add_argument("env")
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    make: Any = getattr(stable_baselines3, options.algo.upper())
    model = make("MlpPolicy", options.env, seed=options.seed, device="cpu")
    began = time.perf_counter()
    model.learn(options.steps)
    numbers: dict[str, Any] = {"steps": model.num_timesteps, "seconds": time.perf_counter() - began}
    numbers["returns"] = returns(options.env, lambda obs: model.predict(obs, deterministic=True)[0], options.episodes)
    names = {"stable-baselines3": "sb3", "gymnasium": "sb3 gymnasium", "numpy": "sb3 numpy", "torch": "sb3 torch"}
    numbers["versions"] = {short: version(name) for name, short in names.items()}
    print(json.dumps(numbers, default=float))


if __name__ == "__main__":
    main()
