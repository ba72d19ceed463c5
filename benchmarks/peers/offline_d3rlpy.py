"""One algorithm of d3rlpy on a file of `rldata export`: ALGO ENV FILE UPDATES SEED EPISODES. Prints its return as JSON.

Networks of two layers of 256, batches of 256, one thread, the other defaults of d3rlpy; states normalised for TD3+BC.
The actions of the file are those of the policy, in [-1, 1].
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings

import numpy as np
import torch

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
torch.set_num_threads(1)

import d3rlpy  # noqa: E402
import gymnasium  # noqa: E402
from d3rlpy import algos  # noqa: E402
from d3rlpy.models import VectorEncoderFactory  # noqa: E402


def read(path: str, discrete: bool) -> d3rlpy.dataset.MDPDataset:
    arrays = np.load(path)
    lengths = arrays["lengths"]
    rows = np.concatenate([[0], np.cumsum(lengths + 1)])
    obs = np.delete(arrays["observations.0"], rows[1:] - 1, axis=0)  # without the last ones
    last = np.cumsum(lengths) - 1
    terminals, timeouts = np.zeros(len(obs), np.float32), np.zeros(len(obs), np.float32)
    terminals[last] = arrays["terminated"]
    timeouts[last] = ~arrays["terminated"]
    actions = arrays["actions"]
    actions = actions.reshape(-1, 1).astype(np.int64) if discrete else actions.astype(np.float32)
    return d3rlpy.dataset.MDPDataset(
        obs.astype(np.float32), actions, arrays["rewards"].astype(np.float32).reshape(-1, 1), terminals, timeouts,
        action_space=d3rlpy.ActionSpace.DISCRETE if discrete else d3rlpy.ActionSpace.CONTINUOUS,
    )  # fmt: skip


def main() -> None:
    name, env_id, path, updates, seed, episodes = sys.argv[1:]
    env = gymnasium.make(env_id)
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    scale = 1.0 if discrete else float(np.abs(env.action_space.high).max())
    d3rlpy.seed(int(seed))
    net = VectorEncoderFactory([256, 256])
    actor_critic = {"batch_size": 256, "actor_encoder_factory": net, "critic_encoder_factory": net}
    one = {"batch_size": 256, "encoder_factory": net}
    makers = {
        "bc": lambda: algos.DiscreteBCConfig(**one) if discrete else algos.BCConfig(**one),
        "td3_bc": lambda: algos.TD3PlusBCConfig(
            **actor_critic, observation_scaler=d3rlpy.preprocessing.StandardObservationScaler()
        ),
        "implicit_q": lambda: algos.IQLConfig(**actor_critic, value_encoder_factory=net),
        "cql": lambda: algos.DiscreteCQLConfig(**one) if discrete else algos.CQLConfig(**actor_critic),
        "awac": lambda: algos.AWACConfig(**actor_critic),
    }
    data = read(path, discrete)
    learner = makers[name]().create(device="cpu")
    learner.build_with_dataset(data)
    if learner.observation_scaler is not None:  # `fit` does this, `update` does not
        learner.observation_scaler.fit_with_transition_picker(data.episodes, data.transition_picker)
    began = time.process_time()
    for _ in range(int(updates)):
        learner.update(data.sample_transition_batch(256))
    seconds = time.process_time() - began
    returns = []
    for episode in range(int(episodes)):
        obs, _ = env.reset(seed=10_000 + episode)
        total, over = 0.0, False
        while not over:
            action = learner.predict(np.asarray(obs, np.float32)[None])[0]
            obs, reward, terminated, truncated, _ = env.step(int(action) if discrete else action * scale)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    print(json.dumps({"return": float(np.mean(returns)) if returns else None, "cpu_s": seconds}))


if __name__ == "__main__":
    main()
