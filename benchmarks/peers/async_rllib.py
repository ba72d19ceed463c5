"""RLlib's IMPALA and APPO (new API stack), 2 runners: async_rllib.py impala|appo ENV SEED [--seconds N] [--envs N]"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from importlib.metadata import version

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

RUNNERS = 2
LIFETIME = "num_env_steps_sampled_lifetime"
TRAINED = "num_env_steps_trained_lifetime"
WARM = 3  # iterations of a second with steps before the clock starts


def settings(algo: str, env: str, learners: int, envs: int, unroll: int) -> IMPALAConfig:
    """Batches of the unrolls of one runner, each used once, two separate nets of two layers of 64."""
    config = (APPOConfig() if algo == "appo" else IMPALAConfig()).environment(env)
    net = DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False)
    config = config.env_runners(num_env_runners=RUNNERS, num_envs_per_env_runner=envs, rollout_fragment_length=unroll)
    config = config.training(
        train_batch_size_per_learner=envs * unroll,
        lr=5e-4,
        gamma=0.99,
        vf_loss_coeff=0.5,
        entropy_coeff=0.01,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    if algo == "appo":
        config = config.training(circular_buffer_num_batches=1, circular_buffer_iterations_per_batch=1)
    config = config.rl_module(model_config=net).learners(num_learners=learners)
    return config.reporting(min_time_s_per_iteration=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algo", choices=["impala", "appo"])
    parser.add_argument("env")
    parser.add_argument("seed", type=int)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--learners", type=int, default=1, help="processes that learn; 0: the driver does")
    parser.add_argument("--envs", type=int, default=16, help="of a runner")
    parser.add_argument("--unroll", type=int, default=32)
    options = parser.parse_args()
    ray.init(num_cpus=RUNNERS + 3, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    config = settings(options.algo, options.env, options.learners, options.envs, options.unroll)
    algorithm = config.debugging(seed=options.seed).build_algo()
    steps = trained = 0
    began, first, iteration = time.perf_counter(), (0, 0), 0
    while True:
        result = algorithm.train()
        steps = int(result["env_runners"].get(LIFETIME, result.get(LIFETIME, 0)))
        iteration += steps > 0
        trained = int(result.get("learners", {}).get("__all_modules__", {}).get(TRAINED, 0))
        if iteration == WARM:
            began, first = time.perf_counter(), (steps, trained)
        elif iteration > WARM and time.perf_counter() - began >= options.seconds:
            break
    seconds = time.perf_counter() - began
    names = {"ray": "rllib", "gymnasium": "rllib gymnasium", "numpy": "rllib numpy", "torch": "rllib torch"}
    numbers = {
        "steady_steps_per_second": (steps - first[0]) / seconds,
        "trained": (trained - first[1]) / max(steps - first[0], 1),
        "steps": steps,
        "return": result["env_runners"].get("episode_return_mean"),
        "versions": {short: version(name) for name, short in names.items()},
    }
    print(json.dumps(numbers), flush=True)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
