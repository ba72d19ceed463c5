"""Kills a run several times, once while it writes a checkpoint, and resumes it each time.

scripts/resume_trial --env CartPole-v1 --kills 10 [more flags of rltrain]; exit status 0 if the fingerprints are equal.
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
from pathlib import Path
from typing import Any

# rltrain in its own process group; it is killed after half of the n-th file that it writes for a checkpoint.
DYING = """
import os, signal, sys
from rltrain import cli
from rltrain.storage import files
n = int(sys.argv.pop(1))
def write(path, data, real=files.write_file):
    global n
    n -= "checkpoints" in path.parts
    if n == 0 and "checkpoints" in path.parts:
        path.write_bytes(data[: len(data) // 2])
        os.killpg(0, signal.SIGKILL)
    real(path, data)
files.write_file = write
sys.exit(cli.main())
"""


def start(argv: list[str], write: int = 0, out: int | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DYING, str(write), *argv, "--json", "--quiet"]
    errors = None if out is None else subprocess.DEVNULL
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=errors, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    text, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"resume_trial: exit status {process.returncode}")
    result: dict[str, Any] = json.loads(text.splitlines()[-1])
    return result


def step_of(out: Path) -> int:
    """The step of the newest checkpoint of the run in `out`."""
    return max((int(link.read_text().strip()[5:17]) for link in out.glob("*/checkpoints/latest")), default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--steps", default="60000")
    parser.add_argument("--kills", type=int, default=10)
    given, more = parser.parse_known_args()
    every = str(max(int(float(given.steps)) // (3 * given.kills), 1))
    argv = ["--algo", given.algo, "--env", given.env, "--steps", given.steps, "--checkpoint-every", every, *more]

    with tempfile.TemporaryDirectory() as folder:
        complete = finished(start([*argv, "--out", f"{folder}/complete"]))
        print(
            f"uninterrupted: {complete['steps']:,} steps, {complete['seconds']:.1f} s, {complete['fingerprint']}",
            flush=True,
        )
        print(f"{'kill':>4}  {'after':>7}  {'when':<24}  resumes from", flush=True)
        speed, chance = complete["steps_per_second"], random.Random(0)
        words, run = [*argv, "--out", f"{folder}/cut"], None
        for kill in range(1, given.kills + 1):
            in_checkpoint = kill == given.kills // 2 + 1
            began = time.monotonic()
            process = start(words, write=5 if in_checkpoint else 0, out=1)
            goal = kill * float(given.steps) / (given.kills + 1)
            while process.poll() is None and (in_checkpoint or step_of(Path(folder, "cut")) < goal):
                time.sleep(0.01)
            if not in_checkpoint:  # at a random time before the next checkpoint
                time.sleep(chance.uniform(0.0, float(every) / speed))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
            assert process.stdout is not None
            process.stdout.close()
            if run is None:
                (run,) = Path(folder, "cut").iterdir()
            words = ["--resume", str(run)]
            when = (
                "inside a checkpoint"
                if in_checkpoint
                else "while running"
                if status == -9
                else f"ended, status {status}"
            )
            print(
                f"{kill:>4}  {time.monotonic() - began:>5.1f} s  {when:<24}  step {step_of(run.parent):,}", flush=True
            )
        cut = finished(start(words))
        print(f"killed {given.kills} times:  {cut['steps']:,} steps, {cut['fingerprint']}", flush=True)
        equal = cut["fingerprint"] == complete["fingerprint"]
        print("equal" if equal else "DIFFERENT")
        return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
