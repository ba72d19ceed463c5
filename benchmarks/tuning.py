"""Overhead of searches and jobs: rltrain next to plain Optuna with loky, and with --peers next to Ray Tune, Syne Tune
and Dask, in one run.

python benchmarks/tuning.py [--trials 16] [--runs 3] [--ppo] [--peers DIR]

- overhead per trial: objectives that return at once; the journal is flushed to the disk
- 1,000 jobs that do nothing, per second, and per second of processor time of all processes
- 20 jobs on one array of 16 MB
- trials of PPO on CartPole, 8,192 steps each (with --ppo): wall time

Two workers each. The start of libraries and workers is not counted, but that of a trial's process is. With --peers DIR
the environments of the others are made in DIR, with this rltrain, which the trials of PPO use everywhere.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from paired import Bench, Numbers

import rltrain
from rltrain.jobs.functions import close
from rltrain.tuning import search as search_module
from rltrain.tuning.trial import PartResult

TUNERS = {"tune_raytune.py": "Ray Tune", "tune_synetune.py": "Syne Tune"}
POOLS = {"jobs_raytune.py": "Ray", "jobs_dask.py": "Dask"}
SPACE = "lr=1e-4..1e-2:log,gamma=0.95..0.999"
STEPS = 8192


def nothing(item: int) -> int:
    return item


def first(array: np.ndarray) -> float:
    return float(array[0])


def at_once(config: Any, until: int | None) -> PartResult:
    return PartResult(config.settings.gamma, until or config.steps, 0.0, config.out, "")


def trained(lr: float, gamma: float, out: str) -> float:
    settings = {"algo": "ppo", "env": "CartPole-v1", "steps": STEPS, "workers": 0, "quiet": True}
    result = rltrain.train(
        **settings, lr=lr, gamma=gamma, out=out, eval_every=STEPS // 20, checkpoint_every=STEPS // 20
    )
    return result.eval_return or 0.0


def cpu() -> float:
    """Processor seconds of this process and its children."""
    this = psutil.Process()
    times = [process.cpu_times() for process in [this, *this.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of the processor."""
    began, used = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - began, cpu() - used


def our_search(trials: int, folder: Path, real: bool) -> None:
    if not real:
        search_module.run_part = at_once
    options = {"scheduler": "none", "confirm": 0, "sampler": "tpe", "parallel": 2}
    rltrain.tune(SPACE, trials=trials, name=str(folder), options=options, algo="ppo", env="CartPole-v1", steps=STEPS)


def their_search(trials: int, folder: Path, real: bool) -> None:
    import loky
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    folder.mkdir()
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "log"))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(direction="maximize", storage=storage, sampler=optuna.samplers.TPESampler(seed=0))
    executor = loky.get_reusable_executor(2)
    running: dict[Future[Any], Any] = {}
    asked = 0
    while asked < trials or running:
        while asked < trials and len(running) < 2:
            trial = study.ask()
            lr, gamma = trial.suggest_float("lr", 1e-4, 1e-2, log=True), trial.suggest_float("gamma", 0.95, 0.999)
            call = (trained, lr, gamma, str(folder / str(asked))) if real else (nothing, asked)
            running[executor.submit(*call)] = trial
            asked += 1
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            study.tell(running.pop(future), float(future.result()))


def searched(bench: Bench, program: str, what: str, trials: int, run: int) -> Numbers:
    """What a peer's search says about itself."""
    folder = bench.scratch / f"{program}-{what}-{run}"
    folder.mkdir()
    return bench.call(bench.peer(program, what, trials, folder), env={"OMP_NUM_THREADS": "1"})


def overhead_of_peers(bench: Bench, trials: int, run: int, found: dict[str, list[float]]) -> None:
    """Adds the others' trials and jobs that do nothing."""
    for program, name in TUNERS.items():
        seconds = searched(bench, program, "nothing", trials, run)["seconds"]
        found.setdefault(f"trial: {name}, ms a trial", []).append(seconds / trials * 1e3)
    for program, name in POOLS.items():
        numbers = bench.call(bench.peer(program))
        found.setdefault(f"1,000 jobs: {name}, per second", []).append(1000 / numbers["jobs"])
        found.setdefault(f"1,000 jobs: {name}, per processor second", []).append(1000 / numbers["processor"])
        found.setdefault(f"20 jobs on 16 MB: {name}, s", []).append(numbers["arrays"])


def row(name: str, values: list[float], unit: str) -> None:
    print(
        f"{name:60} {statistics.median(values):10.4g} {unit}   of {', '.join(f'{value:.4g}' for value in values)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ppo", action="store_true")
    parser.add_argument("--peers", help="folder of the peers' environments, made there when missing")
    options = parser.parse_args()
    import loky

    bench = Bench("tuning", options, {}) if options.peers else None

    array = np.zeros(2_000_000)
    executor = loky.get_reusable_executor(2)
    list(executor.map(nothing, range(4)))
    rltrain.map(nothing, range(4))
    ours: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(options.runs):
            measures = {
                "1,000 jobs: rltrain.map": lambda: rltrain.map(nothing, range(1000)),
                "1,000 jobs: loky": lambda: [
                    one.result() for one in [executor.submit(nothing, i) for i in range(1000)]
                ],
                "20 jobs on 16 MB: rltrain.map": lambda: rltrain.map(first, [array] * 20),
                "20 jobs on 16 MB: loky": lambda: [
                    one.result() for one in [executor.submit(first, array) for _ in range(20)]
                ],
                "trial: rltune": lambda run=run: our_search(options.trials, Path(folder, f"ours{run}"), False),
                "trial: Optuna + loky": lambda run=run: their_search(
                    options.trials, Path(folder, f"theirs{run}"), False
                ),
            }
            for name, work in measures.items():
                seconds, used = timed(work)
                if name.startswith("trial"):
                    ours.setdefault(f"{name}, ms a trial", []).append(seconds / options.trials * 1e3)
                    ours.setdefault(f"{name}, ms of processor a trial", []).append(used / options.trials * 1e3)
                elif name.startswith("1,000"):
                    ours.setdefault(f"{name}, per second", []).append(1000 / seconds)
                    ours.setdefault(f"{name}, per processor second", []).append(1000 / max(used, 1e-9))
                else:
                    ours.setdefault(f"{name}, s", []).append(seconds)
                    ours.setdefault(f"{name}, processor s", []).append(used)
            if bench is not None:
                overhead_of_peers(bench, options.trials, run, ours)
        if options.ppo:
            from rltrain.tuning.trial import run_part

            search_module.run_part = run_part
            for run in range(options.runs):
                for name, search in (("rltune", our_search), ("Optuna + loky", their_search)):
                    place = Path(folder, f"{name}{run}-ppo")
                    seconds, used = timed(lambda search=search, place=place: search(options.trials, place, True))
                    ours.setdefault(f"{options.trials} trials of PPO: {name}, s", []).append(seconds)
                for program, name in TUNERS.items() if bench is not None else ():
                    found = searched(bench, program, "ppo", options.trials, run)
                    ours.setdefault(f"{options.trials} trials of PPO: {name}, s", []).append(found["seconds"])
    for name, values in ours.items():
        row(name, values, "")
    close()


if __name__ == "__main__":
    main()
