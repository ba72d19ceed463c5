"""TorchRL's TensorDictReplayBuffer over LazyTensorStorage: replay_torchrl.py vector|images ROWS [--priorities]"""

from __future__ import annotations

import torch
from sampling import ALPHA, BATCH, BETA, PIXELS, STACK, arguments, chunks, errors, tell, timed
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import PrioritizedSampler, RandomSampler


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    sampler = PrioritizedSampler(options.rows, alpha=ALPHA, beta=BETA) if options.priorities else RandomSampler()
    storage = LazyTensorStorage(options.rows)
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=BATCH, priority_key="td_error")
    for _, rows in chunks(options.obs, options.rows):
        count = len(rows["done"])
        seen = torch.from_numpy(rows["obs"] if options.obs == "vector" else rows["frame"])
        if options.obs == "images":
            seen = seen[:, None].expand(count, STACK, PIXELS, PIXELS)
        reward, done = (torch.from_numpy(rows[name])[:, None] for name in ("reward", "done"))
        after = {"observation": seen, "reward": reward, "done": done, "terminated": done}
        action = torch.from_numpy(rows["action"])
        buffer.extend(TensorDict({"observation": seen, "action": action, "next": after}, [count]))
    numbers = {"us_per_batch": timed(buffer.sample, options.seconds)}
    if options.priorities:
        batch = buffer.sample()
        batch["td_error"] = torch.from_numpy(errors())
        numbers["us_per_update"] = timed(lambda: buffer.update_tensordict_priority(batch), options.seconds / 4)
    tell("torchrl", "torchrl", **numbers)


if __name__ == "__main__":
    main()
