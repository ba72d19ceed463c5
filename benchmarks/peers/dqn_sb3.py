"""Stable-Baselines3's DQN on CartPole-v1 with RL Zoo's tuned settings: dqn_sb3.py updates|solve SEED [--steps N]"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from typing import Any

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from train_sb3 import GOAL, greedy

EVERY = 1024  # steps between evaluations
EPISODES = 50  # of each
ROW = 2  # evaluations in a row that must reach the goal


class UntilSolved(BaseCallback):
    """Ends training after two greedy evaluations in a row that reach the goal: the rule of our --stop-return."""

    def __init__(self) -> None:
        super().__init__()
        self.due = EVERY
        self.seconds = self.processor = 0.0  # spent evaluating: of the clock, of the processor
        self.returns: list[float] = [0.0]

    def _on_step(self) -> bool:
        if self.num_timesteps < self.due:
            return True
        began, worked = time.perf_counter(), time.process_time()
        self.due = self.num_timesteps + EVERY
        self.returns.append(greedy(lambda obs: self.model.predict(obs, deterministic=True)[0], EPISODES))
        self.seconds += time.perf_counter() - began
        self.processor += time.process_time() - worked
        return not self.solved

    @property
    def solved(self) -> bool:
        return len(self.returns) > ROW and min(self.returns[-ROW:]) >= GOAL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["updates", "solve"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=50_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    env = make_vec_env("CartPole-v1", n_envs=1, seed=options.seed)
    model = DQN(
        "MlpPolicy",
        env,
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=256,
        gradient_steps=128,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        seed=options.seed,
        device="cpu",
    )
    until = UntilSolved() if options.work == "solve" else None
    began = time.perf_counter()
    model.learn(options.steps, callback=until)
    seconds = time.perf_counter() - began - (until.seconds if until else 0.0)
    numbers: dict[str, Any] = {
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "updates_per_second": model._n_updates / seconds,
    }
    if until:
        numbers |= {"eval_return": until.returns[-1], "solved": until.solved}
        numbers |= {"evaluating_s": until.seconds, "evaluating_cpu_s": until.processor}
    names = {"stable-baselines3": "sb3", "gymnasium": "sb3 gymnasium", "numpy": "sb3 numpy", "torch": "sb3 torch"}
    numbers["versions"] = {short: version(name) for name, short in names.items()}
    print(json.dumps(numbers, default=float))


if __name__ == "__main__":
    main()
