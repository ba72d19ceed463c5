"""Stable-Baselines3's PPO on CartPole-v1: train_sb3.py throughput|solve|start SEED [--vec dummy|subproc] [--steps N]"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

EVERY = 2048  # steps between evaluations
GOAL = 475.0


class UntilSolved(BaseCallback):
    """Ends training at the first greedy evaluation that reaches the goal."""

    def __init__(self) -> None:
        super().__init__()
        self.due = EVERY
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        if self.num_timesteps < self.due:
            return True
        self.due = self.num_timesteps + EVERY
        self.returns.append(greedy(lambda obs: self.model.predict(obs, deterministic=True)[0]))
        return self.returns[-1] < GOAL


def greedy(act: Callable[[np.ndarray], np.ndarray], episodes: int = 20) -> float:
    """Mean return of whole episodes, stepped side by side so that the policy is asked for all at once."""
    envs = [gymnasium.make("CartPole-v1") for _ in range(episodes)]
    obs = [env.reset(seed=10_000 + index)[0] for index, env in enumerate(envs)]
    returns, live = np.zeros(episodes), list(range(episodes))
    while live:
        actions = act(np.stack([obs[index] for index in live]).astype(np.float32))
        for index, action in zip(list(live), actions, strict=True):
            obs[index], reward, terminated, truncated, _ = envs[index].step(action)
            returns[index] += float(reward)
            if terminated or truncated:
                live.remove(index)
    return float(returns.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["throughput", "solve", "start"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--vec", choices=["dummy", "subproc"], default="dummy")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    env: Any = "CartPole-v1"
    if options.work == "start":
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        import stamped

        env = stamped.make
    kind = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[options.vec]
    envs = make_vec_env(env, n_envs=8, seed=options.seed, vec_env_cls=kind)
    numbers: dict[str, Any] = {}
    if options.work == "solve":  # the tuned settings of RL Zoo
        model = PPO(
            "MlpPolicy",
            envs,
            n_steps=32,
            batch_size=256,
            n_epochs=20,
            gamma=0.98,
            gae_lambda=0.8,
            ent_coef=0.0,
            learning_rate=lambda left: 1e-3 * left,
            clip_range=lambda left: 0.2 * left,
            seed=options.seed,
            device="cpu",
        )
        until = UntilSolved()
        model.learn(100_000, callback=until)
        numbers = {"eval_return": until.returns[-1], "solved": until.returns[-1] >= GOAL}
    else:
        model = PPO(
            "MlpPolicy",  # two separate nets of two layers of 64, tanh
            envs,
            n_steps=128,
            batch_size=256,
            n_epochs=4,
            gamma=0.99,
            gae_lambda=0.95,
            ent_coef=0.01,
            learning_rate=2.5e-4,
            clip_range=0.2,
            seed=options.seed,
            device="cpu",
        )
        began = time.perf_counter()
        model.learn(options.steps)
        numbers["steps_per_second"] = model.num_timesteps / (time.perf_counter() - began)
    envs.close()
    names = {"stable-baselines3": "sb3", "gymnasium": "sb3 gymnasium", "numpy": "sb3 numpy", "torch": "sb3 torch"}
    numbers |= {"steps": model.num_timesteps, "versions": {short: version(name) for name, short in names.items()}}
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
