"""Stable-Baselines3's PPO on Pong: pixels_sb3.py SEED [--vec dummy|subproc] [--threads N] [--steps N]"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version

import ale_py
import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

gymnasium.register_envs(ale_py)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--vec", choices=["dummy", "subproc"], default="subproc")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8192)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    envs = VecFrameStack(
        make_atari_env(
            "ALE/Pong-v5",
            n_envs=8,
            seed=options.seed,
            vec_env_cls={"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[options.vec],
            env_kwargs={"frameskip": 1, "repeat_action_probability": 0.0},
            wrapper_kwargs={"terminal_on_life_loss": False, "action_repeat_probability": 0.25},
        ),
        4,
    )
    model = PPO(
        "CnnPolicy",  # Nature CNN, shared
        envs,
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        gamma=0.99,
        gae_lambda=0.95,
        ent_coef=0.01,
        vf_coef=0.5,
        learning_rate=2.5e-4,
        clip_range=0.1,
        seed=options.seed,
        device="cpu",
    )
    began = time.perf_counter()
    model.learn(options.steps)
    seconds = time.perf_counter() - began
    envs.close()
    names = {"stable-baselines3": "sb3", "ale-py": "sb3 ale-py", "torch": "sb3 torch"}
    numbers = {"steps_per_second": model.num_timesteps / seconds, "steps": model.num_timesteps}
    print(json.dumps(numbers | {"versions": {short: version(name) for name, short in names.items()}}))


if __name__ == "__main__":
    main()
