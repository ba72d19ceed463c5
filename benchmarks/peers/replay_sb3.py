"""Stable-Baselines3's ReplayBuffer: replay_sb3.py vector|images ROWS [--lean]. --lean: optimize_memory_usage."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from sampling import ACTION, BATCH, OBS, PIXELS, STACK, arguments, chunks, tell, timed
from stable_baselines3.common.buffers import ReplayBuffer


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    if options.obs == "vector":
        obs, action = spaces.Box(-9, 9, (OBS,), np.float32), spaces.Box(-1, 1, (ACTION,), np.float32)
    else:
        obs, action = spaces.Box(0, 255, (STACK, PIXELS, PIXELS), np.uint8), spaces.Discrete(6)
    lean = {"optimize_memory_usage": True, "handle_timeout_termination": False} if options.lean else {}
    buffer = ReplayBuffer(options.rows, obs, action, device="cpu", **lean)
    for begin, rows in chunks(options.obs, options.rows):
        where = slice(begin, begin + len(rows["done"]))
        seen = rows["obs"] if options.obs == "vector" else rows["frame"][:, None]
        buffer.observations[where, 0] = seen
        if not options.lean:
            buffer.next_observations[where, 0] = seen
        buffer.actions[where, 0] = rows["action"].reshape(len(seen), -1)
        buffer.rewards[where, 0] = rows["reward"]
        buffer.dones[where, 0] = rows["done"]
    buffer.full = True
    tell("sb3", "stable-baselines3", us_per_batch=timed(lambda: buffer.sample(BATCH), options.seconds))


if __name__ == "__main__":
    main()
