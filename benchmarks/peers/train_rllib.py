"""RLlib's PPO on CartPole-v1 (new API stack), 2 runners: train_rllib.py throughput|solve SEED [--steps N]"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from importlib.metadata import version
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import gymnasium
import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

GOAL = 475.0
WORTH_A_LOOK = 50.0  # training return from which on it is evaluated
RUNNERS = 2
LIFETIME = "num_env_steps_sampled_lifetime"


def greedy(module: Any, episodes: int = 20) -> float:
    """Mean return of whole episodes, stepped side by side so that the policy is asked for all at once."""
    envs = [gymnasium.make("CartPole-v1") for _ in range(episodes)]
    obs = [env.reset(seed=10_000 + index)[0] for index, env in enumerate(envs)]
    returns, live = np.zeros(episodes), list(range(episodes))
    while live:
        rows = torch.from_numpy(np.stack([obs[index] for index in live]).astype(np.float32))
        with torch.no_grad():
            logits = module.forward_inference({Columns.OBS: rows})[Columns.ACTION_DIST_INPUTS]
        for index, action in zip(list(live), logits.argmax(-1).numpy(), strict=True):
            obs[index], reward, terminated, truncated, _ = envs[index].step(action)
            returns[index] += float(reward)
            if terminated or truncated:
                live.remove(index)
    return float(returns.mean())


def settings(work: str) -> PPOConfig:
    """Equal settings for throughput; RLlib's own tuned example for CartPole otherwise."""
    config = PPOConfig().environment("CartPole-v1").learners(num_learners=0)
    if work == "solve":
        net = DefaultModelConfig(fcnet_hiddens=[32], fcnet_activation="linear", vf_share_layers=True)
        config = config.env_runners(num_env_runners=RUNNERS, num_envs_per_env_runner=16)
        return config.training(lr=3e-4, num_epochs=6, vf_loss_coeff=0.01).rl_module(model_config=net)
    net = DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False)
    config = config.env_runners(num_env_runners=RUNNERS, num_envs_per_env_runner=4, rollout_fragment_length="auto")
    return config.training(
        train_batch_size_per_learner=1024,
        minibatch_size=256,
        num_epochs=4,
        lr=2.5e-4,
        gamma=0.99,
        lambda_=0.95,
        entropy_coeff=0.01,
        clip_param=0.2,
        vf_loss_coeff=0.5,
        grad_clip=0.5,
    ).rl_module(model_config=net)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["throughput", "solve"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--max-seconds", type=float, default=180.0)
    options = parser.parse_args()
    ray.init(num_cpus=RUNNERS + 2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    algorithm = settings(options.work).debugging(seed=options.seed).build_algo()
    numbers: dict[str, Any] = {}
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < options.max_seconds:
        result = algorithm.train()
        steps = int(result["env_runners"].get(LIFETIME, result.get(LIFETIME, 0)))
        if options.work == "throughput":
            if steps >= options.steps:
                break
        elif result["env_runners"].get("episode_return_mean", 0.0) > WORTH_A_LOOK:
            numbers["eval_return"] = greedy(algorithm.get_module())
            if numbers["eval_return"] >= GOAL:
                break
    if options.work == "throughput":
        numbers["steps_per_second"] = steps / (time.perf_counter() - began)
    else:
        numbers["solved"] = numbers.get("eval_return", 0.0) >= GOAL
    numbers["steps"] = steps
    names = {"ray": "rllib", "gymnasium": "rllib gymnasium", "numpy": "rllib numpy", "torch": "rllib torch"}
    print(json.dumps(numbers | {"versions": {short: version(name) for name, short in names.items()}}), flush=True)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
