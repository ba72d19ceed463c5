"""What a network of images allows alone: pixels_network.py SEED [--threads N] [--steps N] [--torso nature|impala]

Forward and backward of it on minibatches that lie ready, as often as PPO with 4 epochs asks for each step; and nothing
else: no environment, no actions, no values, no loss to speak of, no optimiser.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch

from algorithms.networks import MLP, load_torso
from envs.spec import ActionSpec, EnvSpec, Leaf

EPOCHS, ROWS = 4, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4096)
    parser.add_argument("--torso", default="nature")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(options.seed)
    spec = EnvSpec("Pong", Leaf("image", (4, 84, 84), "uint8"), ActionSpec("discrete", (), (6,)))
    torso = load_torso(options.torso, spec, generator)
    head = MLP(torso.features, (), 7, generator=generator)
    images = torch.randint(256, (ROWS, 4, 84, 84), dtype=torch.uint8, generator=generator)

    def work() -> None:
        head.forward(torso.forward(images)).square().mean().backward()  # type: ignore[no-untyped-call]

    work()
    times = options.steps * EPOCHS // ROWS
    began = time.perf_counter()
    for _ in range(times):
        work()
    seconds = time.perf_counter() - began
    print(json.dumps({"steps_per_second": times * ROWS / EPOCHS / seconds, "ms_per_minibatch": 1000 * seconds / times}))


if __name__ == "__main__":
    main()
