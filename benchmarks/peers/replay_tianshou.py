"""Tianshou's buffers: replay_tianshou.py vector|images ROWS [--priorities] [--lean]

--lean keeps one frame of a stack and no obs_next, as Tianshou's Atari examples do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sampling import ALPHA, BATCH, BETA, PIXELS, STACK, arguments, chunks, errors, tell, timed
from tianshou.data import Batch, PrioritizedReplayBuffer, ReplayBuffer


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    more: dict[str, Any] = {"ignore_obs_next": True} if options.lean else {}
    if options.lean and options.obs == "images":
        more |= {"save_only_last_obs": True, "stack_num": STACK}
    if options.priorities:
        buffer: Any = PrioritizedReplayBuffer(options.rows, alpha=ALPHA, beta=BETA, **more)
    else:
        buffer = ReplayBuffer(options.rows, **more)
    whole: dict[str, np.ndarray] = {}
    for begin, rows in chunks(options.obs, options.rows):
        seen = rows["obs"] if options.obs == "vector" else rows["frame"]
        if options.obs == "images" and not options.lean:
            seen = np.broadcast_to(seen[:, None], (len(seen), STACK, PIXELS, PIXELS))
        arrays = {"obs": seen, "act": rows["action"], "rew": rows["reward"].astype(float)}
        arrays |= {"done": rows["done"], "terminated": rows["done"], "truncated": np.zeros_like(rows["done"])}
        if not options.lean:
            arrays["obs_next"] = seen
        for name, array in arrays.items():
            if name not in whole:
                whole[name] = np.empty((options.rows, *array.shape[1:]), array.dtype)
            whole[name][begin : begin + len(array)] = array
    buffer.set_batch(Batch(**whole))
    buffer._size = options.rows
    if options.priorities:
        buffer.init_weight(np.arange(options.rows))

    def sample() -> list[torch.Tensor]:
        batch, _ = buffer.sample(BATCH)
        return [torch.from_numpy(x) for x in (batch.obs, batch.act, batch.rew, batch.obs_next, batch.terminated)]

    numbers = {"us_per_batch": timed(sample, options.seconds)}
    if options.priorities:
        index, error = buffer.sample(BATCH)[1], errors()
        numbers["us_per_update"] = timed(lambda: buffer.update_weight(index, error), options.seconds / 4)
    tell("tianshou", "tianshou", **numbers)


if __name__ == "__main__":
    main()
