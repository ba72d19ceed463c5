"""SIGKILL at random moments of small runs of every algorithm: does the resumed run end as the uninterrupted one?

scripts/bench kills [--kills 100] [--seed 0] [names]; exit status 0 if all are equal and no process is left.

A moment is uniform in the wall time from the run's folder to its end: the start of the actors, checkpoints and
evaluations included. Before the folder there is nothing to resume. In a third of the runs with workers, the evaluation
worker or an actor is killed before. A lost evaluation worker must change only the number of restarts. A lost actor's
streams begin new episodes, so such a run must only reach its end. A run without a checkpoint begins again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from resume import COMMON, RUNS, outcome

NAMES = [  # each algorithm, in this process and with workers
    "ppo", "ppo-workers", "ppo-gru", "ppo-overlap", "ppo-goal", "ppo-pool", "a2c-gru", "a3c", "impala", "impala-gru",
    "appo", "dqn", "dqn-replay", "dqn-overlap", "sac", "td3", "ddpg", "qmix-gru", "vdn", "iql", "maddpg", "mappo-gru",
]  # fmt: skip
LONGER = {"steps": 3000, "checkpoint_every": 150, "eval_every": 220, "keep": 2}  # so that the start is a part only
PATIENCE = 30.0  # seconds that the processes of a killed run have for ending
LIMIT = 300.0  # seconds after which a run counts as hung
LOST = {"actor lost": r"(?m)^worker \d+ was lost", "evaluation worker lost": "the evaluating worker was lost"}
EQUAL = ("equal", "equal, from step 0", "equal, evaluation worker lost", "ended, actor lost")


def flags(name: str) -> list[str]:
    """The run as flags of rltrain."""
    words = ["--json"]
    for key, value in (COMMON | RUNS[name] | LONGER).items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words


def start(argv: Sequence[str], log: Path) -> int:
    """Starts rltrain in a fork of this process, which has imported everything; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        from rltrain import cli

        sys.argv = ["rltrain", *argv]
        status = cli.main(argv)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(pid: int, seconds: float) -> int | None:
    """The exit status of the process; None if it is still running after some seconds."""
    until = time.monotonic() + seconds
    while True:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        if time.monotonic() > until:
            return None
        time.sleep(min(0.005, max(until - time.monotonic(), 0.0)))


def has_folder(out: Path) -> bool:
    """Waits for the folder of the run in `out`; False if there is none in time."""
    until = time.monotonic() + LIMIT
    while not any(out.glob("*/run.json")) and time.monotonic() < until:
        time.sleep(0.002)
    return time.monotonic() < until


def finish(argv: Sequence[str], log: Path, out: Path) -> tuple[int | None, float]:
    """Exit status, None if it hangs, of a command whose run is in `out`, and seconds since it has its folder."""
    pid = start(argv, log)
    has_folder(out)
    began = time.monotonic()
    status = ended(pid, LIMIT)
    if status is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return status, time.monotonic() - began


def tree(pid: int) -> list[psutil.Process]:
    """All processes that the run has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def kill_worker(pid: int, workers: int, evaluation: bool) -> bool:
    """Kills the evaluation worker, which is started last, or an actor; False if they have not all been started."""
    processes = tree(pid)
    parents = {process.ppid() for process in processes}
    leaves = [process for process in processes if process.pid not in parents and process.ppid() != pid]
    leaves.sort(key=lambda process: process.create_time())
    if len(leaves) != workers + 1:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        leaves[-1 if evaluation else 0].kill()
        return True
    return False


def left(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that are still alive after some seconds."""
    until = time.monotonic() + PATIENCE
    while alive := [process for process in processes if process.is_running() and process.status() != "zombie"]:
        if time.monotonic() > until:
            return alive
        time.sleep(0.05)
    return []


def attempt(name: str, whole: dict[str, Any], seconds: float, chance: random.Random, folder: Path) -> str:
    """Kills a new run once and resumes it; a word about the result, or "" if the run ended before the kill."""
    log, out, lost = folder / "log", folder / "runs", ""
    workers = RUNS[name].get("workers", 0)
    if workers and chance.random() < 1 / 3:
        lost = chance.choice(("evaluation worker lost", "actor lost"))
    moment = chance.uniform(0.0, seconds)
    words = [word for word in flags(name) if word not in ("--json", "--quiet")]  # it says which workers it has lost
    pid = start([*words, "--out", str(out)], log)
    has_folder(out)
    if lost:
        if ended(pid, moment / 2) is not None:
            return ""
        lost = lost if kill_worker(pid, workers, lost.startswith("evaluation")) else ""
        moment /= 2
    if ended(pid, moment) is not None:
        return ""
    processes = tree(pid)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if alive := left(processes):
        return f"WRONG: left over: {[' '.join(process.cmdline())[:200] for process in alive]}"
    if lost:  # two processes may have been born in the same hundredth of a second
        lost = next((worker for worker, words in LOST.items() if re.search(words, log.read_text())), "")
    (run,) = out.iterdir()
    begins = not any((run / "checkpoints").glob("step-*"))
    status, _ = finish(["--resume", str(run), "--json", "--quiet"], log, out)
    if status != 0:
        return f"WRONG: {'hangs' if status is None else f'status {status}'}"
    if lost == "actor lost":
        return "ended, actor lost"
    again = outcome(run)
    unequal = [key for key in whole if without_restarts(again)[key] != without_restarts(whole)[key]]
    if unequal:
        return f"WRONG: other {', '.join(unequal)}"
    return "equal" + (f", {lost}" if lost else ", from step 0" if begins else "")


def without_restarts(reached: dict[str, Any]) -> dict[str, Any]:
    return reached | {"plain": reached["plain"] | {"restarts": None}}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"runs of benchmarks/resume.py; default: {' '.join(NAMES)}")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    import rltrain.evaluation.evaluate
    import rltrain.training_loop  # noqa: F401

    torch.set_num_threads(1)
    names, chance, results = options.names or NAMES, random.Random(options.seed), Counter[str]()
    for place, name in enumerate(names):
        kills = options.kills * (place + 1) // len(names) - options.kills * place // len(names)
        line = Counter[str]()
        folder = tempfile.mkdtemp()  # not a TemporaryDirectory, which forks of this process would remove at their end
        try:
            whole_out = Path(folder, "whole")
            status, seconds = finish([*flags(name), "--out", str(whole_out)], Path(folder, "log"), whole_out)
            if status != 0:
                sys.exit(f"{name}: status {status}\n{Path(folder, 'log').read_text()}")
            whole = outcome(next(whole_out.iterdir()))
            number = 0
            while sum(line.values()) < kills:
                number += 1
                Path(folder, str(number)).mkdir()
                result = attempt(name, whole, seconds, chance, Path(folder, str(number)))
                if result not in ("", *EQUAL):
                    print(f"{name}: {result}\n{Path(folder, str(number), 'log').read_text()}", file=sys.stderr)
                line[result] += bool(result)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        results += line
        print(f"{name:12s} {seconds:5.1f} s  ", ", ".join(f"{count} {text}" for text, count in (+line).items()))
        sys.stdout.flush()
    print(*(f"{count:4d} {text}" for text, count in results.most_common()), sep="\n")
    bad = sum(count for text, count in results.items() if text not in EQUAL)
    print(f"{options.kills - bad} of {options.kills} as they must be")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
