"""Time of a command of IMPALA and APPO until CartPole-v1 is solved (475), 8 workers, seeds 0 to 9."""

from __future__ import annotations

import functools
from typing import Any

from paired import BIN, Bench, Variant, arguments, median

METRICS = {"wall_s": "s", "solved": "1: yes", "steps": "", "eval_return": "", "fresh_return": "100 episodes"}
GOAL = 475.0
MOST = 15.0  # seconds, the bar of the median
SEEDS = 10
SETTINGS = "--env CartPole-v1 --workers 8 --stop-return 475 --json --quiet".split()
NOTE = (
    "Each run ends by itself, after two evaluations in a row of 50 episodes that reach 475; `fresh_return` is what "
    "`rleval` then finds over 100 new episodes, and `solved` asks for both. Times are of whole commands, imports and "
    "evaluations included."
)


def main() -> None:
    options = arguments(__doc__)
    options.runs = options.runs if options.runs != 3 or options.quick else SEEDS
    bench = Bench("solve_async", options, METRICS)
    rleval = [str(BIN / "rleval"), "{run}", "--episodes", "100", "--json"]

    def run(command: list[str], seed: int) -> dict[str, Any]:
        numbers = bench.call([*command, "--seed", str(seed)])
        fresh = bench.call([word.replace("{run}", numbers["run"]) for word in rleval])["return_mean"]
        return numbers | {"fresh_return": fresh, "solved": int(numbers["stopped"] == "return" and fresh >= GOAL)}

    variants = []
    for algo in ("impala", "appo"):
        command = [str(BIN / "rltrain"), "--algo", algo, *SETTINGS]
        shown = f"{bench.shown([*command, '--seed', '{seed}'])}; {bench.shown(rleval)}"
        variants.append(Variant(algo, shown, functools.partial(run, command)))
    found = bench.alternate(variants)
    said = []
    for name, runs in found.items():
        seconds, solved = median(runs, "wall_s"), sum(int(run["solved"]) for run in runs)
        met = "met" if seconds is not None and seconds <= MOST and solved == len(runs) else "not met"
        said.append(f"{name}: {solved} of {len(runs)} seeds solved, {seconds:.1f} s in the median")
        said[-1] += f" (bar: all, at most {MOST:g} s; {met})."
    bench.report(variants, found, [], f"{NOTE} {' '.join(said)}")


if __name__ == "__main__":
    main()
