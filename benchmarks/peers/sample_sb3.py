"""Random actions through Stable-Baselines3's SubprocVecEnv(8): sample_sb3.py ENV SECONDS"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

STREAMS = 8


def main() -> None:
    envs = make_vec_env(sys.argv[1], n_envs=STREAMS, vec_env_cls=SubprocVecEnv)
    envs.action_space.seed(0)
    actions = [np.array([envs.action_space.sample() for _ in range(STREAMS)]) for _ in range(256)]
    envs.reset()
    for action in actions[:32]:
        envs.step(action)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < float(sys.argv[2]):
        for action in actions[:32]:
            envs.step(action)
        count += 32 * STREAMS
    speed = count / (time.perf_counter() - began)
    envs.close()
    print(json.dumps({"steps_per_second": speed, "versions": {"sb3": version("stable-baselines3")}}))


if __name__ == "__main__":
    main()
