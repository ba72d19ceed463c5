"""Sample Factory's synchronous APPO on Pong, 2 workers of 4 games: pixels_sf.py SEED [--steps N]

Its own settings for Atari are those of CleanRL: 128 steps, 4 epochs of 4 minibatches of 256, Nature CNN.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version

FRAMES = 4  # for each step; Sample Factory counts frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=4096)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = {
            "algo": "APPO",
            "env": "atari_pong",
            "experiment": "pong",
            "train_dir": folder,
            "device": "cpu",
            "num_workers": 2,
            "num_envs_per_worker": 4,
            "seed": options.seed,
            "train_for_env_steps": FRAMES * options.steps,
        }
        command = [sys.executable, "-m", "sf_examples.atari.train_atari"]
        command += [f"--{name}={value}" for name, value in asked.items()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = re.findall(r"Collected \{0: (\d+)\}, FPS: ([\d.]+)", done.stdout + done.stderr)
    if not said:
        sys.exit(f"it ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    frames, rate = said[-1]
    numbers = {"steps_per_second": float(rate) / FRAMES, "steps": int(frames) // FRAMES}
    names = {"sample-factory": "sf", "ale-py": "sf ale-py", "torch": "sf torch"}
    print(json.dumps(numbers | {"versions": {short: version(name) for name, short in names.items()}}))


if __name__ == "__main__":
    main()
