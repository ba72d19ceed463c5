"""Random settings of every algorithm: does a run end with the same bits with other workers, and after a resume?

python benchmarks/combinations.py --seconds 600 --seed 0

Each case is a small run with up to six settings of `switches.py`, repeated with other workers, and resumed from one of
its checkpoints. Exit status 0 if all are equal and no command raises anything but a line for the user.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import resume
import switches
import torch

import rltrain
from rltrain import algorithms
from rltrain.errors import ConfigError

ENVIRONMENTS = {  # by whether they are for several agents, and by the kind of actions
    (False, "Box"): ("Pendulum-v1", "probe:box", "probe:box3"),
    (False, "Discrete"): ("CartPole-v1", "probe:masked", "probe:dict", "probe:counter"),
    (True, "Box"): ("spread",),
    (True, "Discrete"): ("two-step", "generations", "tic-tac-toe"),
}
NEVER = {"streams", "unroll", "sequence", "capacity", "length"}  # their values here would not fit each other


def draw(rng: random.Random, case: switches.Case) -> dict[str, Any]:
    """Random settings of a case, valid or not."""
    values = switches.others(case.algo)
    names = rng.sample([name for name in values if name not in NEVER], rng.randint(1, 6))
    several = algorithms.for_several(case.algo)
    settings: dict[str, Any] = {"env": rng.choice(ENVIRONMENTS[several, case.kind])}
    settings["streams"], settings["unroll"] = rng.choice((1, 3, 5)), rng.choice((4, 8))
    settings |= {name: value for name, value in switches.needs_of(case, *names).items() if rng.random() < 0.9}
    return settings | {name: rng.choice(values[name]) for name in names}


def trial(case: switches.Case, drawn: dict[str, Any], workers: int, rng: random.Random) -> list[str] | None:
    """What differs between the run, the run with other workers, and the resumed run; None if it is refused."""
    base = resume.COMMON | switches.small(case.algo) | {"algo": case.algo, "batch": 8, "steps": 260}
    base |= {"checkpoint_every": 60, "eval_every": 110, "eval_episodes": 1, "capacity": 90}
    fields = switches.fields_of(case.algo)
    known = {name: value for name, value in base.items() if name in fields or name in rltrain.RunConfig.model_fields}
    given = known | drawn | ({"overlap": False} if "overlap" in fields else {})
    given |= {"workers": 0, "backend": "local"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            first = rltrain.train(**given, out=folder)
        except ConfigError:
            return None
        whole = resume.outcome(first.run)
        with_workers = rltrain.train(**given | {"workers": min(workers, given["streams"])}, out=folder)
        wrong = [f"workers {workers}: {key}" for key in differing(whole, resume.outcome(with_workers.run), "state")]
        step = rng.choice(resume.checkpoints_of(first.run)[:-1])
        again = resume.resume(first.run, step, Path(folder) / "again")
        return wrong + [f"resumed from {step.name}: {key}" for key in differing(whole, again)]


def differing(one: dict[str, Any], other: dict[str, Any], *ignored: str) -> list[str]:
    """Keys of two outcomes whose values differ."""
    return [key for key in one if key not in (*ignored, "plain") and one[key] != other[key]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("algos", nargs="*", help="all, if none is given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for algo in options.algos or algorithms.names() for case in switches.cases(algo)]
    began, ran, refused, failed = time.monotonic(), 0, 0, 0
    for number in itertools.count():
        if time.monotonic() - began > options.seconds:
            break
        rng = random.Random(f"{options.seed} {number}")
        case, workers = cases[number % len(cases)], rng.choice((1, 2, 3))
        drawn = draw(rng, case)
        try:
            wrong = trial(case, drawn, workers, rng)
        except Exception:
            wrong = [traceback.format_exc()]
        if wrong is None:
            refused += 1
            continue
        ran, failed = ran + 1, failed + bool(wrong)
        if wrong:
            print(f"{number}: {case}, {drawn}", *wrong, sep="\n  ", flush=True)
    print(f"{ran} combinations, {refused} refused, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
