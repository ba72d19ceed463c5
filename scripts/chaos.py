"""Kills a random actor every two seconds for a minute, with one that hangs and one that raises once; the run must live.

.venv/bin/python scripts/chaos.py [--seconds 60]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ENV = '''
import time
from pathlib import Path
import gymnasium

HERE = Path(__file__).parent


class Troubled(gymnasium.Wrapper):
    """CartPole that, once in the whole run each, hangs for ever and raises."""

    steps = 0

    def step(self, action):
        self.steps += 1
        for name, at in (("hung", 4000), ("raised", 5000)):
            if self.steps == at and not (HERE / name).exists():
                (HERE / name).touch()
                if name == "hung":
                    time.sleep(10**6)
                raise RuntimeError("once")
        return super().step(action)


def make():
    return Troubled(gymnasium.make("CartPole-v1"))
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "troubled.py").write_text(ENV)
        words = (
            "--algo ppo --env troubled.py:make --workers 4 --steps 1_000_000_000 --actor-timeout 5 --max-restarts 50"
        )
        settings = (
            "--streams 16 --unroll 32 --lr 1e-3 --lr-end none --gamma 0.98 --entropy 0 --eval-every 0 --json --out ."
        )
        command = [str(Path(sys.executable).parent / "rltrain"), *words.split(), *settings.split()]
        run = subprocess.Popen([*command, "--max-seconds", str(seconds)], cwd=folder, stdout=subprocess.PIPE, text=True)
        rng, killed, end = random.Random(0), 0, time.monotonic() + seconds
        while run.poll() is None:
            time.sleep(2.0)
            tree = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
            actors = [p for p in tree if p.parent() is not None and p.parent().pid != run.pid]
            if actors and time.monotonic() < end - 4:
                os.kill(rng.choice(actors).pid, signal.SIGKILL)
                killed += 1
        text = run.communicate()[0]
        result = json.loads(text.splitlines()[-1]) if run.returncode == 0 else {}
        rows = [json.loads(row) for row in next(Path(folder).glob("ppo-*/metrics.jsonl")).read_text().splitlines()]
        returns = [row["rollout/return_mean"] for row in rows if "rollout/return_mean" in row]
        seen = [name for name in ("hung", "raised") if (Path(folder) / name).exists()]
    time.sleep(1.0)
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if folder in " ".join(p.info["cmdline"] or [])]
    files = [name for name in os.listdir("/dev/shm") if f"-{run.pid}-" in name]
    print(f"status {run.returncode}, killed {killed}, {' and '.join(seen)}, restarts {result.get('restarts')}")
    print(f"return {returns[0]:.0f} at first, {returns[-1]:.0f} at last; left behind: {left} {files}")
    return 0 if run.returncode == 0 and result["restarts"] >= killed and not left and not files else 1


if __name__ == "__main__":
    sys.exit(main())
