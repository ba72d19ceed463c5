"""sbx's SAC, CrossQ and DroQ (JAX): efficiency_sbx.py ALGO ENV SEED --steps N --widths N --widths-q N --warmup N"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from typing import Any

from episodes import returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algo", choices=["sac", "crossq", "droq"])
    parser.add_argument("env")
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--widths", type=int, required=True, help="units of each of the policy's two hidden layers")
    parser.add_argument("--widths-q", type=int, required=True, help="units of each of the critics' two hidden layers")
    parser.add_argument("--warmup", type=int, required=True, help="random steps before the first update")
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # before JAX makes its threads
    from sbx import SAC, CrossQ

    layers = {"pi": [options.widths] * 2, "qf": [options.widths_q] * 2}
    settings: dict[str, Any] = {"learning_starts": options.warmup, "batch_size": 256, "seed": options.seed}
    if options.algo == "crossq":
        model: Any = CrossQ("MlpPolicy", options.env, policy_kwargs={"net_arch": layers}, **settings)
    elif options.algo == "sac":
        model = SAC("MlpPolicy", options.env, policy_kwargs={"net_arch": layers}, **settings)
    else:  # as the README of sbx makes DroQ from its SAC
        regularised = {"net_arch": layers, "dropout_rate": 0.01, "layer_norm": True}
        settings |= {"gradient_steps": 20, "policy_delay": 20}
        model = SAC("MlpPolicy", options.env, policy_kwargs=regularised, **settings)
    began = time.perf_counter()
    model.learn(options.steps)
    numbers: dict[str, Any] = {"steps": model.num_timesteps, "seconds": time.perf_counter() - began}
    numbers["returns"] = returns(options.env, lambda obs: model.predict(obs, deterministic=True)[0], options.episodes)
    names = {"sbx-rl": "sbx", "jax": "sbx jax", "gymnasium": "sbx gymnasium", "mujoco": "sbx mujoco"}
    numbers["versions"] = {short: version(name) for name, short in names.items()}
    print(json.dumps(numbers, default=float))


if __name__ == "__main__":
    main()
