"""rlcompare's statistics: speed of the bootstrap, simulated coverage of the intervals, quantiles of its tables.

python benchmarks/comparison.py speed       # 50,000 resamples of the IQM of 5 runs on each of 8 tasks
python benchmarks/comparison.py coverage    # share of 95% intervals that contain the true value; minutes
python benchmarks/comparison.py tables      # QUANTILES of rl/comparison/statistics.py
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import NormalDist, median

import numpy as np

from rltrain.comparison.statistics import ENOUGH, RESAMPLES, STATISTICS, Array, better, estimate

SHAPES = ((3, 1), (5, 1), (9, 1), (10, 1), (20, 1), (3, 3), (5, 2), (3, 8), (5, 8), (10, 8))  # runs, tasks
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
DRAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape),
}


def speed() -> None:
    scores = list(np.random.default_rng(0).normal(size=(8, 5)))
    for name in STATISTICS:
        seconds = []
        for _ in range(7):
            begin = time.process_time()
            estimate(scores, name, np.random.default_rng(0))
            seconds.append(time.process_time() - begin)
        print(f"{name}: {RESAMPLES:,} resamples of 5 x 8 in {median(seconds):.3f} s of a core")


def coverage(trials: int, resamples: int) -> None:
    for kind, draw in DRAWS.items():
        rng = np.random.default_rng(1)
        truths = {name: float(statistic(draw(rng, (4_000_000,)))) for name, statistic in STATISTICS.items()}
        for runs, tasks in SHAPES:
            inside = dict.fromkeys(STATISTICS, 0)
            if tasks > 1 and runs < ENOUGH:
                inside.pop("median")  # it has no interval
            for _ in range(trials):
                scores = list(draw(rng, (tasks, runs)))
                for name in inside:
                    found = estimate(scores, name, rng, resamples)
                    assert found.low is not None
                    assert found.high is not None
                    inside[name] += found.low <= truths[name] <= found.high
            shares = ", ".join(f"{name} {100 * count / trials:.1f}%" for name, count in inside.items())
            print(f"{kind} scores, {runs} runs x {tasks} tasks: {shares}", flush=True)
    rng = np.random.default_rng(2)
    for runs, tasks in [(4, 1), *SHAPES[1:]]:
        shares = []
        for shift in (0.0, 0.5, 1.5, 3.0):
            truth, inside_wins = NormalDist().cdf(shift / math.sqrt(2)), 0
            for _ in range(trials):
                one, other = (list(rng.normal(size=(tasks, runs))) for _ in range(2))
                found = better([scores + shift for scores in one], other)
                assert found.low is not None
                assert found.high is not None
                inside_wins += found.low <= truth <= found.high
            shares.append(f"{100 * inside_wins / trials:.1f}% at {truth:.2f}")
        print(f"probability of improvement, {runs} runs x {tasks} tasks: {', '.join(shares)}", flush=True)


def tables(count: int = 4_000_000) -> None:
    rng = np.random.default_rng(3)
    for runs in range(3, 10):
        ratios: dict[str, list[Array]] = {name: [] for name in STATISTICS}
        for _ in range(10):
            x = rng.normal(size=(count // 10, runs))
            for name, statistic in STATISTICS.items():
                ratios[name].append(np.abs(statistic(x)) / (x.std(axis=1, ddof=1) / math.sqrt(runs)))
        values = {name: float(np.quantile(np.concatenate(parts), 0.95)) for name, parts in ratios.items()}
        print(runs, ", ".join(f"{name} {value:.3f}" for name, value in values.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "coverage", "tables"])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    given = parser.parse_args()
    if given.what == "coverage":
        coverage(given.trials, given.resamples)
    else:
        speed() if given.what == "speed" else tables()


if __name__ == "__main__":
    main()
