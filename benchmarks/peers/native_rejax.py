"""rejax's PPO (JAX) on 1,024 of gymnax's CartPole-v1: native_rejax.py SEED [--steps N] [--cores N]"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=1_572_864)
    parser.add_argument("--cores", type=int, default=1, help="cores that this process may use [1]")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # before JAX makes its threads
    import jax
    from rejax import PPO

    algo = PPO.create(
        env="CartPole-v1",
        agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
        num_envs=1024,
        num_steps=32,
        num_epochs=4,
        num_minibatches=8,
        total_timesteps=options.steps,
        eval_freq=options.steps,
        skip_initial_evaluation=True,
        learning_rate=2.5e-4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_eps=0.2,
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=0.5,
    )
    key = jax.random.PRNGKey(options.seed)
    started = time.perf_counter()
    train = jax.jit(algo.train).lower(key).compile()
    began = time.perf_counter()
    jax.block_until_ready(train(key))
    seconds = time.perf_counter() - began
    names = {"rejax": "rejax", "gymnax": "rejax gymnax", "jax": "rejax jax"}
    numbers = {
        "steps": options.steps,
        "steps_per_second": options.steps / seconds,
        "compile_s": began - started,
        "versions": {short: version(name) for name, short in names.items()},
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
