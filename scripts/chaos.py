"""Chaos test: actors are killed, hang, raise and become slow. The run must continue, respect --max-lag and clean up.

.venv/bin/python scripts/chaos.py [--seconds 60]                  PPO
.venv/bin/python scripts/chaos.py --algo impala [--seconds 300]   asynchronous: impala, appo, a3c
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ENV = '''
import os
import random
import time
from pathlib import Path
import gymnasium

HERE = Path(__file__).parent
DICE = random.Random(f"{os.getpid()} {time.time()}")  # of this process


class Troubled(gymnasium.Wrapper):
    """CartPole that hangs once per run, raises once per run, and is sometimes slow for a while."""

    steps = slow_until = 0

    def step(self, action):
        self.steps += 1
        for name, at in (("hung", 4000), ("raised", 5000)):
            if self.steps == at and not (HERE / name).exists():
                (HERE / name).touch()
                if name == "hung":
                    time.sleep(10**6)
                raise RuntimeError("once")
        if self.steps % 1000 == 0 and (HERE / "slow").exists() and DICE.random() < 0.1:
            self.slow_until = self.steps + 200
        if self.steps < self.slow_until:
            time.sleep(0.01)
        return super().step(action)


def make(**_):
    return Troubled(gymnasium.make("CartPole-v1"))
'''
TIMEOUT = 5  # seconds without progress after which an actor counts as hung
MAX_LAG = 20  # updates
STEADY = 50.0  # least seconds for the memory check
TOLERATED = 0.01  # MiB per attack on an actor; a leak of twice that is found
PATIENCE = 10.0  # seconds that the fork server has for cleaning up after the run
QUIET_END = 8.0  # last seconds of the run without attacks
COMMON = f"""--env troubled.py:make --workers 4 --steps 1_000_000_000 --actor-timeout {TIMEOUT} --max-restarts 50
    --streams 16 --unroll 32 --lr 1e-3 --lr-end none --gamma 0.98 --entropy 0 --eval-every 0 --json --out .""".split()
ASYNCHRONOUS = f"--preset none --max-in-flight 2 --max-lag {MAX_LAG} --checkpoint-every 100_000".split()


@dataclass
class Observed:
    """The attacks on a run, and measurements during the run."""

    killed: int = 0
    stopped: int = 0
    struck: list[float] = field(default_factory=list)  # seconds at which an actor was killed or stopped
    processes: dict[int, float] = field(default_factory=dict)  # pid -> start time, of all processes of the run
    samples: list[tuple[float, float, int]] = field(default_factory=list)  # (seconds, MiB, open files) of the learner


def trouble(run: subprocess.Popen[str], seconds: float, hangs: bool) -> Observed:
    """Attacks an actor every two seconds, until the run ends."""
    rng, observed, began, due = random.Random(0), Observed(), time.monotonic(), 2.0
    while run.poll() is None:
        time.sleep(0.5)
        now = time.monotonic() - began
        with contextlib.suppress(psutil.NoSuchProcess):
            learner = psutil.Process(run.pid)
            tree = learner.children(recursive=True)
            observed.processes |= {process.pid: process.create_time() for process in tree}
            observed.samples.append((now, learner.memory_full_info().uss / 2**20, learner.num_fds()))
            if not due < now < seconds - QUIET_END:
                continue
            due = now + rng.uniform(1.5, 2.5)
            actors = [p for p in tree if p.ppid() != run.pid and p.status() != psutil.STATUS_STOPPED]
            hang = hangs and rng.random() < 0.4
            if actors:
                os.kill(rng.choice(actors).pid, signal.SIGSTOP if hang else signal.SIGKILL)
                observed.killed, observed.stopped = observed.killed + (not hang), observed.stopped + hang
                observed.struck.append(now)
    return observed


def leak(observed: Observed, seconds: float) -> tuple[str, bool]:
    """A text about the learner's memory in the second half of the run, and True if it grows more than by noise.

    In the first half it grows in any case: the allocator keeps memory for each thread and each size.
    """
    half = [(second, *rest) for second, *rest in observed.samples if seconds / 2 <= second <= seconds]
    if len(half) < 2 or half[-1][0] - half[0][0] < STEADY:
        return "memory: the run is too short for a result", False
    at, memory, files = np.array(half).T
    slope, level = np.polyfit(at, memory, 1)
    noise = float(np.std(memory - (slope * at + level)))
    grown = slope * (at[-1] - at[0])
    struck = sum(at[0] <= second <= at[-1] for second in observed.struck)
    allowed = max(3 * noise, struck * TOLERATED)
    begin, end = (int(np.median(part)) for part in np.array_split(files, 2))
    text = f"memory: {np.median(memory):.1f} MiB; in the second half, with {struck} attacks, {grown:+.2f} MiB, "
    text += f"of which {allowed:.2f} may be noise (one deviation {noise:.2f}); open files {begin}, then {end}"
    return text, bool(grown > allowed or end > begin + 2)


def lag(rows: list[dict[str, Any]]) -> tuple[str, bool]:
    """A text about the age of unrolls, and True unless exactly those older than MAX_LAG were dropped."""
    lines = [row for row in rows if "rollout/policy_lag_max" in row]
    dropped = np.diff([0.0, *(row["rollout/dropped"] for row in lines)])
    over = np.array([row["rollout/policy_lag_max"] > MAX_LAG for row in lines])
    learned = max((row["learner/policy_lag"] for row in lines if "learner/policy_lag" in row), default=0.0)
    wrong = int(np.sum(over != (dropped > 0)))
    most = max((row["rollout/policy_lag_max"] for row in lines), default=0.0)
    text = f"lag: at most {most:.0f} updates as unrolls came, {int(dropped.sum())} over {MAX_LAG} dropped ("
    text += f"{wrong} lines where that does not fit); learned from: at most {learned:.1f} in the mean of a line"
    return text, wrong > 0 or learned > MAX_LAG


def left(observed: Observed, run: int) -> list[object]:
    """Processes of the run that are still alive, and its files in shared memory."""
    alive: list[object] = []
    for pid, born in observed.processes.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).create_time() == born:
                alive.append(pid)
    return alive + [name for name in os.listdir("/dev/shm") if f"-{run}-" in name]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--algo", choices=["ppo", "impala", "appo", "a3c"], default="ppo")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    ahead = options.algo != "ppo"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "troubled.py").write_text(ENV)
        if ahead:
            (Path(folder) / "slow").touch()
        command = [str(Path(sys.executable).parent / "rltrain"), "--algo", options.algo, *COMMON]
        command += [*(ASYNCHRONOUS if ahead else []), "--max-seconds", f"{options.seconds:g}"]
        with (Path(folder) / "stdout").open("w+") as out:  # a file, since no process reads a pipe during the run
            run = subprocess.Popen(command, cwd=folder, stdout=out, text=True)
            observed = trouble(run, options.seconds, hangs=ahead)
            out.seek(0)
            text = out.read()
        result = json.loads(text.splitlines()[-1]) if run.returncode == 0 else {}
        files = list(Path(folder).glob(f"{options.algo}-*/metrics.jsonl"))
        rows = [json.loads(row) for file in files for row in file.read_text().splitlines()]
        named = [name for name in ("hung", "raised") if (Path(folder) / name).exists()]
    ended = time.monotonic()
    while (behind := left(observed, run.pid)) and time.monotonic() < ended + PATIENCE:
        time.sleep(0.2)
    struck = observed.killed + observed.stopped
    returns = [row["rollout/return_mean"] for row in rows if "rollout/return_mean" in row] or [float("nan")]
    itself = " and ".join(named) or "nothing"
    print(
        f"status {run.returncode}; {observed.killed} killed, {observed.stopped} stopped, {itself} by itself", end="; "
    )
    print(f"{result.get('restarts')} restarts; {result.get('steps', 0):,} steps")
    after = time.monotonic() - ended
    print(f"return {returns[0]:.0f} at first, {returns[-1]:.0f} at last; left behind after {after:.1f} s: {behind}")
    failed = run.returncode != 0 or result["restarts"] < struck or bool(behind)
    checks = [leak(observed, options.seconds), lag(rows)] if ahead and rows else []
    for line, bad in checks:
        print(f"{line}: {'WRONG' if bad else 'ok'}")
    return int(failed or any(bad for _, bad in checks))


if __name__ == "__main__":
    sys.exit(main())
