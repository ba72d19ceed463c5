"""The gain of acting while learning, if both take the same time: 1 worker and a learner with one thread.

The environment is CartPole-v1 with arithmetic added to its step, as much as makes acting as long as learning.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from paired import BIN, HERE, Bench, Ratio, Variant, arguments, ours

METRICS = {
    "steady_steps_per_second": "1/s",
    "acting": "share of time",
    "learning": "share of time",
    "other": "share of time",
    "actors_waiting": "share of theirs",
    "wall_s": "s",
}
BAR = 1.6
GUESS = 500  # start value of the search for the iterations of the environment's loop
COMMON = """--preset none --workers 1 --learner-threads 1 --streams 16 --vector serial --lr-end none
    --steps 1000000000 --eval-every 0 --checkpoint-every 0 --quiet --json""".split()
SETTINGS = {  # each learner takes more time than CartPole, so that the environment can be slowed down to match
    "impala": "--unroll 32 --wait 16 --optimizer adam --widths 512,512".split(),
    "appo": "--unroll 32 --wait 16 --buffer-size 1 --reuse 2 --widths 256,256".split(),
    "ppo": """--unroll 128 --epochs 4 --minibatches 8 --entropy 0.01 --no-normalize-obs --no-normalize-return
        --widths 64,64""".split(),
}
NOTE = (
    "1 worker, a learner of one thread, equal batches; `work` turns of a Python loop are added to each step of the "
    "environment, found beforehand so that without overlap acting and learning take the same share of the time. "
    "Without overlap `acting` is the time of acting, with it the time that the learner waits for unrolls. Twice the "
    "speed is the limit."
)


def main() -> None:
    options = arguments(
        __doc__,
        work={"type": int, "help": "turns of the environment's loop [found by trying]"},
        seconds={"type": float, "help": "of each measurement [8; 3 with --quick]"},
    )
    bench = Bench("overlap", options, METRICS)
    seconds = options.seconds or (3.0 if options.quick else 8.0)
    variants, ratios = [], []

    def command(algo: str, work: str, flag: str, most: float) -> list[str]:
        env = ["--env", f"{HERE / 'paced.py'}:working", "--env-arg", f"work={work}", "--max-seconds", f"{most:g}"]
        return [str(BIN / "rltrain"), "--algo", algo, *env, *COMMON, *SETTINGS[algo], flag]

    @functools.cache
    def balanced(algo: str) -> int:
        """Iterations with which acting takes as long as learning: by a line through two trials, then a check."""
        kept = bench.kept(f"{algo} --overlap")
        if options.work is not None or kept:
            return int(kept[0]["work"] if options.work is None else options.work)
        seen: list[tuple[int, float]] = []
        for trial in range(3):
            work = (GUESS, 4 * GUESS)[trial] if trial < 2 else _root(*seen)
            numbers = ours(bench, command(algo, str(work), "--no-overlap", 5.0))
            excess = (numbers["acting"] - numbers["learning"]) / numbers["steps_per_second"]
            print(f"  {algo}, work {work}: acting takes {1e6 * excess:.1f} us more", file=sys.stderr, flush=True)
            seen = [*seen[-1:], (work, excess)]
        return _root(*seen)

    def run(algo: str, flag: str, index: int) -> dict[str, Any]:
        work = balanced(algo)
        numbers = ours(bench, [*command(algo, str(work), flag, seconds + 2), "--seed", str(index)])
        return numbers | {"actors_waiting": bench.lines(numbers)[-1]["time/actors_waiting"], "work": work}

    for algo in SETTINGS:
        names = {flag: f"{algo} {flag}" for flag in ("--no-overlap", "--overlap")}
        for flag, name in names.items():
            shown = bench.shown([*command(algo, "WORK", flag, seconds + 2), "--seed", "{seed}"])
            variants.append(Variant(name, shown, functools.partial(run, algo, flag)))
        on, off = names["--overlap"], names["--no-overlap"]
        ratios.append(Ratio(algo, [on], off, "steady_steps_per_second", "at least", BAR))
    found = bench.alternate(variants)
    works = ", ".join(f"{name.split()[0]} {runs[0]['work']}" for name, runs in found.items() if "--no-" in name)
    bench.report(variants, found, ratios, f"{NOTE} `work`: {works}.")


def _root(a: tuple[int, float], b: tuple[int, float]) -> int:
    """The zero of the line through two points."""
    return max(0, round(a[0] - a[1] * (b[0] - a[0]) / (b[1] - a[1])))


if __name__ == "__main__":
    main()
