"""Time of a command until all 8 actors have made a step, and their memory, against Stable-Baselines3."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import psutil
from paired import BIN, HERE, Bench, Ratio, Variant, arguments

METRICS = {"first_step_s": "s", "pss_mib": "MiB", "processes": "", "wall_s": "s"}
STAMPED = HERE / "peers" / "stamped.py"  # an environment that records the time of its first step
ACTORS = 8
SETTINGS = """--preset none --unroll 128 --epochs 4 --minibatches 4 --lr-end 0 --entropy 0.01
    --no-normalize-obs --no-normalize-return""".split()
SAMPLE_SECONDS = 0.2
NOTE = (
    "`first_step_s`: from exec to the moment the last of 8 processes has made its first training step. `pss_mib`: peak "
    "of the proportional set size summed over the process tree, sampled every 0.2 s in runs of their own, since "
    "sampling takes time; ours includes the evaluating actor, which Stable-Baselines3's run does not have."
)


def first_step(bench: Bench, command: Sequence[str]) -> dict[str, Any]:
    """Seconds until all actors have made a step. Steps in the command's own process do not count.

    Of our processes, the one that examines the environment makes a step before all actors, and the evaluating actor
    makes one after them if the run evaluates.
    """
    later = int("--eval-every" in command)
    stamps = bench.scratch / f"stamps-{time.time_ns()}"
    began = time.time()
    process = subprocess.Popen(
        command,
        cwd=bench.scratch,
        env={**os.environ, "BENCH_STAMPS": str(stamps)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout, stderr = process.communicate(timeout=300)
    wall = time.time() - began
    if process.returncode:
        raise RuntimeError(f"{bench.shown(command)} ended with {process.returncode}:\n{stderr[-3000:]}")
    bench.numbers(stdout)
    first: dict[int, float] = {}
    for line in stamps.read_text().splitlines():
        pid, stamp = int(line.split()[0]), float(line.split()[1])
        if pid != process.pid:
            first[pid] = min(stamp, first.get(pid, stamp))
    if len(first) < ACTORS + later:
        raise RuntimeError(f"{bench.shown(command)}: {len(first)} processes made a step, not {ACTORS}")
    return {"first_step_s": sorted(first.values())[-1 - later] - began, "wall_s": wall}


def memory(bench: Bench, command: Sequence[str]) -> dict[str, Any]:
    """The peak PSS of the process tree during the run."""
    env = {**os.environ, "BENCH_STAMPS": os.devnull}
    with (bench.scratch / "memory.log").open("w+") as log:
        process = psutil.Popen(command, cwd=bench.scratch, env=env, stdout=log, stderr=log)
        peak, most = 0.0, 0
        while process.poll() is None:
            sampled = time.monotonic()
            total, count = 0.0, 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for each in [process, *process.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                        total += each.memory_full_info().pss
                        count += 1
            peak, most = max(peak, total), max(most, count)
            time.sleep(max(0.0, SAMPLE_SECONDS - (time.monotonic() - sampled)))
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{bench.shown(command)} ended with {process.returncode}:\n{log.read()[-3000:]}")
    return {"pss_mib": peak / 2**20, "processes": most}


def main() -> None:
    options = arguments(__doc__)
    bench = Bench("start", options, METRICS)
    steps = 8_192 if options.quick else 32_768
    mine = [str(BIN / "rltrain"), *f"--algo ppo --env {STAMPED}:make --workers {ACTORS}".split(), *SETTINGS]
    mine += f"--streams {ACTORS} --eval-every {steps // 2} --checkpoint-every 0 --quiet --json --steps {steps}".split()
    commands = {f"rltrain --workers {ACTORS}": mine}
    if options.peers:
        words = ("start", 0, "--vec", "subproc", "--steps", steps)
        commands["sb3 subproc"] = bench.peer("train_sb3.py", *words)
    variants = []
    for what, measure in {"time": first_step, "memory": memory}.items():
        for name, command in commands.items():

            def run(_: int, command: list[str] = command, measure: Any = measure) -> dict[str, Any]:
                numbers: dict[str, Any] = measure(bench, command)
                return numbers

            variants.append(Variant(f"{name}, {what}", bench.shown(command), run))
    ours = f"rltrain --workers {ACTORS}"
    ratios = [
        Ratio("first step of all actors", [f"{ours}, time"], "sb3 subproc, time", "first_step_s", "at most", 0.4),
        Ratio("memory", [f"{ours}, memory"], "sb3 subproc, memory", "pss_mib", "at most", 0.6),
    ]
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
