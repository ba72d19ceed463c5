"""Chaos test on a cluster: every ten seconds one of three nodes is killed and another joins. The run must learn.

.venv/bin/python scripts/chaos_cluster.py [--algo impala] [--seconds 60]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

NODES, SLOTS, EVERY = 3, 2, 10.0
TAIL = 15.0  # seconds without attacks at the end of the run
PATIENCE = 10.0  # seconds after the run in which all its processes must end
FLAGS = """--env CartPole-v1 --workers 4 --steps 1_000_000_000 --eval-every 0 --checkpoint-every 0 --actor-timeout 10
    --json --out .""".split()


class Fleet:
    """A scheduler and its workers, started and killed by this script."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.seen: dict[int, float] = {}  # pid -> start time, of all processes of the cluster
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not self.file.exists():
            time.sleep(0.1)

    def add(self) -> None:
        flags = ("--nthreads", str(SLOTS), "--no-nanny", "--death-timeout", "10")
        self.nodes.append(self._start("worker", *flags))

    def kill(self, rng: random.Random) -> None:
        node = self.nodes.pop(rng.randrange(len(self.nodes)))
        node.kill()
        node.wait()

    def look(self) -> None:
        """Records all current processes."""
        for root in [*self.nodes, self.scheduler]:
            try:
                tree = [psutil.Process(root.pid), *psutil.Process(root.pid).children(recursive=True)]
                self.seen |= {process.pid: process.create_time() for process in tree}
            except psutil.NoSuchProcess:
                continue

    def close(self) -> None:
        """Ends the workers first: a worker whose scheduler is gone waits for it."""
        for group in (self.nodes, [self.scheduler]):
            for process in group:
                process.terminate()
            for process in group:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def left(self) -> list[int]:
        """Processes that are still alive and should not be."""
        return [pid for pid, began in self.seen.items() if alive(pid, began)]

    def _start(self, command: str, *flags: str) -> subprocess.Popen[bytes]:
        dask = Path(sys.executable).parent / "dask"
        log = (self.folder / "dask.log").open("ab")
        words = [str(dask), command, "--scheduler-file", str(self.file), "--no-dashboard", *flags]
        return subprocess.Popen(words, stdout=log, stderr=log)


def alive(pid: int, began: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="impala", choices=["impala", "ppo"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of chaos")
    options = parser.parse_args()
    rng, folder = random.Random(0), Path(tempfile.mkdtemp(prefix="rltrain-chaos-"))
    fleet = Fleet(folder)
    for _ in range(NODES):
        fleet.add()
    rltrain = [str(Path(sys.executable).parent / "rltrain"), "--algo", options.algo, "--cluster", str(fleet.file)]
    most = ["--max-seconds", f"{options.seconds + TAIL + EVERY:g}"]
    run = subprocess.Popen(
        [*rltrain, *FLAGS, *most], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    began, due, killed = time.monotonic(), EVERY, 0
    while run.poll() is None:
        time.sleep(0.5)
        fleet.look()
        now = time.monotonic() - began
        if due <= now < options.seconds + EVERY:
            due += EVERY
            fleet.kill(rng)
            fleet.add()
            killed += 1
    out, err = run.communicate()
    fleet.look()
    fleet.close()
    until = time.monotonic() + PATIENCE
    while fleet.left() and time.monotonic() < until:
        time.sleep(0.2)
    found: dict[str, Any] = json.loads(out.splitlines()[-1]) if run.returncode == 0 else {}
    print(err[-4000:], file=sys.stderr)
    lines = [json.loads(line) for file in folder.glob("*/metrics.jsonl") for line in file.read_text().splitlines()]
    if run.returncode or not lines:
        print(f"NOT as it should be: status {run.returncode}")
        return 1
    returns = [line["rollout/return_mean"] for line in lines if "rollout/return_mean" in line]
    first, last = returns[0], returns[-1]
    joined = err.count("a node joined")
    print(f"status {run.returncode}; {killed} nodes killed, {joined} joined; {found.get('restarts')} restarts")
    print(f"return {first:.0f} at first, {last:.0f} at the end, {found.get('steps'):,} steps")
    print(f"left behind: {fleet.left() or 'nothing'}")
    fine = run.returncode == 0 and not fleet.left() and joined >= killed - 1 and last > 2 * first
    fine = fine and found["restarts"] >= killed
    print("as it should be" if fine else "NOT as it should be")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
