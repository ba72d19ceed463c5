"""SIGKILL at random moments of searches whose trials are runs of PPO: is the winner the same, each trial once?

scripts/bench search_kills [--kills 20] [--seed 0]; exit status 0 if all are equal and nothing is left behind.

A moment is uniform in the wall time of the uninterrupted search. In every second search it is the search that is
killed, and `rltune --resume` continues it; in the others it is one of its workers, and the search itself goes on.
Compared are the trials, their settings, values and fingerprints, and the runs that confirm the winner. Afterwards no
process of the search may run, and no shared memory of it may exist.
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
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from kills import left, tree

SPACE = "lr=1e-4..1e-2:log,gamma=0.95..0.999"
WORDS = f"""--algo ppo --env CartPole-v1 --steps 2048 --trials 6 --seeds 2 --confirm 1 --sampler random --deterministic
    --round 4 --parallel 2 --retries 2 --preset none --streams 4 --unroll 64 --json --space {SPACE}""".split()
LIMIT = 600.0  # seconds after which a search counts as hung
SHARED_MEMORY = Path("/dev/shm")


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A search in a session of its own."""
    program = [str(Path(sys.executable).parent / "rltune"), *words]
    with log.open("ab") as file:
        return subprocess.Popen(program, stdout=file, stderr=file, start_new_session=True)


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on kills. ValueError if a part of a trial has two results."""
    points: dict[int, Any] = {}
    results: dict[tuple[int, int, int], Any] = {}
    confirmed: dict[tuple[str, int], Any] = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "trial":
            if event["number"] in points:
                raise ValueError(f"trial {event['number']} was begun twice")
            points[event["number"]] = event["point"]
        for result in event.get("results", ()):
            key = result["number"], result["rung"], result["seed"]
            if key in results:
                raise ValueError(f"part {key} has two results")
            results[key] = result["value"], result["steps"], result["fingerprint"], result["error"]
        if event["event"] == "confirmed":
            confirmed[event["who"], event["seed"]] = event["value"], event["fingerprint"]
    return {"points": points, "results": results, "confirmed": confirmed}


def shared_memory() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()


def _parent(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return int(process.ppid())
    return 0


def trial(number: int, folder: Path, moment: float, expected: dict[str, Any], draw: random.Random) -> str:
    """One search with one kill; returns what happened."""
    log, before = folder.with_suffix(".log"), shared_memory()
    search = start([*WORDS, "--name", str(folder)], log)
    until, seen = time.monotonic() + moment, dict[int, psutil.Process]()
    while time.monotonic() < until:
        seen |= {process.pid: process for process in tree(search.pid)}
        time.sleep(0.05)
    seen |= {process.pid: process for process in tree(search.pid)}
    what = "search"
    if number % 2:
        processes = tree(search.pid)
        parents = set(map(_parent, processes))
        workers = [process for process in processes if process.pid not in parents]
        what = "worker" if workers else "no worker yet"
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if workers:
                draw.choice(workers).kill()
    else:
        search.kill()
    try:
        status = search.wait(LIMIT)
        if status == -signal.SIGKILL:
            again = ["--resume", str(folder), "--json"] if (folder / "journal.jsonl").exists() else None
            words = again or [*WORDS, "--name", str(folder.with_name(f"{folder.name}-again"))]
            folder = folder if again else folder.with_name(f"{folder.name}-again")
            search = start(words, log)
            until = time.monotonic() + LIMIT
            while search.poll() is None and time.monotonic() < until:
                seen |= {process.pid: process for process in tree(search.pid)}
                time.sleep(0.1)
            status = search.wait(1.0)
    except subprocess.TimeoutExpired:
        os.killpg(search.pid, signal.SIGKILL)
        return f"{what}: hung"
    if status:
        return f"{what}: ended with {status}: {log.read_text()[-300:]}"
    try:
        found = outcome(folder)
    except ValueError as error:
        return f"{what}: {error}"
    if found != expected:
        wrong = [name for name in expected if found[name] != expected[name]]
        return f"{what}: other {', '.join(wrong)}"
    if alive := left(list(seen.values())):
        return f"{what}: {len(alive)} processes are left: {' '.join(alive[0].cmdline())[:200]}"
    if files := shared_memory() - before:
        return f"{what}: shared memory is left: {sorted(files)[:3]}"
    return f"{what}: equal"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, counts = random.Random(given.seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="rltrain-kills-") as scratch:
        whole = Path(scratch, "whole")
        began = time.monotonic()
        if start([*WORDS, "--name", str(whole)], whole.with_suffix(".log")).wait(LIMIT):
            print(whole.with_suffix(".log").read_text()[-2000:])
            return 1
        seconds = time.monotonic() - began
        expected = outcome(whole)
        print(f"uninterrupted: {seconds:.0f} s, {len(expected['results'])} parts of trials", flush=True)
        for number in range(given.kills):
            moment = draw.uniform(0, seconds)
            said = trial(number, Path(scratch, f"{number:03d}"), moment, expected, draw)
            counts[said if said.endswith("equal") else "wrong"] += 1
            print(f"{number:3d}  {moment:5.1f} s  {said}", flush=True)
    print(", ".join(f"{said}: {count}" for said, count in counts.items()))
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
