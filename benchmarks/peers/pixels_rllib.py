"""RLlib's PPO on Pong (new API stack), 2 runners of 4 games: pixels_rllib.py SEED [--steps N]"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from importlib.metadata import version

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ale_py
import gymnasium
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
from ray.tune.registry import register_env

RUNNERS = 2
LIFETIME = "num_env_steps_sampled_lifetime"


def pong(_: object) -> gymnasium.Env:
    gymnasium.register_envs(ale_py)
    game = gymnasium.make("ALE/Pong-v5", frameskip=1, render_mode="rgb_array")
    return wrap_atari_for_new_api_stack(game, dim=84, frameskip=4, framestack=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=4096)
    parser.add_argument("--max-seconds", type=float, default=180.0)
    options = parser.parse_args()
    register_env("pong", pong)
    ray.init(num_cpus=RUNNERS + 2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    nature = DefaultModelConfig(
        conv_filters=[[32, 8, 4], [64, 4, 2], [64, 3, 1]],
        conv_activation="relu",
        head_fcnet_hiddens=[512],
        vf_share_layers=True,
    )
    algorithm = (
        PPOConfig()
        .environment("pong", clip_rewards=True)
        .learners(num_learners=0)
        .env_runners(num_env_runners=RUNNERS, num_envs_per_env_runner=4, rollout_fragment_length="auto")
        .training(
            train_batch_size_per_learner=1024,
            minibatch_size=256,
            num_epochs=4,
            lr=2.5e-4,
            gamma=0.99,
            lambda_=0.95,
            entropy_coeff=0.01,
            clip_param=0.1,
            vf_loss_coeff=0.5,
            grad_clip=0.5,
        )
        .rl_module(model_config=nature)
        .debugging(seed=options.seed)
        .build_algo()
    )
    steps, began = 0, time.perf_counter()
    while steps < options.steps and time.perf_counter() - began < options.max_seconds:
        result = algorithm.train()
        steps = int(result["env_runners"].get(LIFETIME, result.get(LIFETIME, 0)))
    numbers = {"steps_per_second": steps / (time.perf_counter() - began), "steps": steps}
    names = {"ray": "rllib", "ale-py": "rllib ale-py", "torch": "rllib torch"}
    print(json.dumps(numbers | {"versions": {short: version(name) for name, short in names.items()}}), flush=True)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
