"""CleanRL's SAC and TD3 on Pendulum-v1, one update a step: updates_cleanrl.py sac|td3 SEED [--steps N]

Its programs run as they are, with their own settings but for the size of the buffer and the steps before the first
update; both networks are two layers of 256. An update is counted and timed by its sampling of the replay.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import runpy
import sys
import tempfile
import time
from importlib.metadata import version

import torch
from stable_baselines3.common.buffers import ReplayBuffer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algo", choices=["sac", "td3"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=3_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = importlib.util.find_spec(f"cleanrl.{options.algo}_continuous_action")
    assert found is not None
    assert found.origin is not None
    times: list[float] = []
    real = ReplayBuffer.sample

    def sample(self: ReplayBuffer, *args: object, **named: object) -> object:
        times.append(time.perf_counter())
        return real(self, *args, **named)

    ReplayBuffer.sample = sample
    asked = f"--env-id Pendulum-v1 --total-timesteps {options.steps} --learning-starts 100 --buffer-size 100000"
    sys.argv = [found.origin, *asked.split(), "--seed", str(options.seed)]
    told = sys.stdout
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        os.chdir(folder)
        sys.stdout = nowhere
        runpy.run_path(found.origin, run_name="__main__")
        sys.stdout = told
        os.chdir("/")
    names = {"cleanrl": "cleanrl", "gym": "cleanrl gym", "numpy": "cleanrl numpy", "torch": "cleanrl torch"}
    numbers = {
        "steps": options.steps,
        "updates": len(times),
        "updates_per_second": (len(times) - 1) / (times[-1] - times[0]),
        "versions": {short: version(name) for name, short in names.items()},
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
