"""This checkout against another version of rltrain, both at the same time: does a change cost speed?

scripts/bench versions --before CHECKOUT [--only throughput,start]
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import dqn
import native
import start
import teams
import throughput
import updates
from paired import ROOT, Bench, Numbers, Ratio, Variant, arguments, commit, ours

METRICS = {"rate": "1/s", "steps_per_second": "1/s", "wall_s": "s"}
NOTE = (
    "`rate`: training steps per second of the whole loop; of `start` it is 1 / seconds from the shell to the first "
    "step of all 8 actors; of `acting` there is no learning. `before` and `after` run at the same time, with the same "
    "Python and the same libraries, all processes of each bound to one core; they exchange the cores after each run. "
    "So other programs slow both down, and a ratio is of the work that both do in the same time. The rows were "
    "measured on several days and processors: those of SAC, TD3 and DQN on 2026-12-01 on an Intel Xeon, the others "
    "before on an AMD EPYC."
)
CASES = {  # name: flags, steps
    "throughput": ([*throughput.SETTINGS, "--workers", "2"], 250_000),
    "native": ([*native.SETTINGS, "--workers", "0"], 32 * 1024 * 24),
    "updates sac": (["--algo", "sac", *updates.SETTINGS], 1_000),
    "updates td3": (["--algo", "td3", *updates.SETTINGS], 1_500),
    "dqn": ([*dqn.RUN, *dqn.ZOO, "--eval-every", "0"], 12_000),
    "teams": ([*teams.SETTINGS, "--workers", "0"], 12_000),
}


SIDES = ("before", "after")


class Side:
    """One of the two versions, as a command that uses this environment's libraries."""

    def __init__(self, bench: Bench, name: str, checkout: Path) -> None:
        self.bench, self.checkout = bench, checkout
        self.path = bench.scratch / name
        package = self.path / "rltrain"
        package.mkdir(parents=True)
        for entry in (*(checkout / "rl").iterdir(), *(checkout / name for name in ("envs", "rollout", "algorithms"))):
            if entry.name != "__pycache__":
                (package / entry.name).symlink_to(entry)

    def command(self, core: int, *words: object) -> list[str]:
        """Python with this version of rltrain, bound to a core."""
        variables = [f"PYTHONPATH={self.path}", "OMP_NUM_THREADS=1"]
        return ["taskset", "-c", str(core), "env", *variables, sys.executable, *map(str, words)]


Measure = Callable[[Side, int, int], Numbers]  # of a version, on a core, with a seed


def train(flags: list[str], steps: int, side: Side, core: int, seed: int) -> Numbers:
    command = side.command(core, "-m", "rltrain", *flags, "--steps", steps, "--seed", seed)
    numbers = ours(side.bench, command)
    return numbers | {"rate": numbers["steps_per_second"]}


def first_step(side: Side, core: int, seed: int) -> Numbers:
    flags = f"--algo ppo --env {start.STAMPED}:make --workers {start.ACTORS} --streams {start.ACTORS}"
    flags += f" --eval-every 4096 --checkpoint-every 0 --quiet --json --steps 8192 --seed {seed}"
    command = side.command(core, "-m", "rltrain", *flags.split(), *start.SETTINGS)
    numbers = start.first_step(side.bench, command)
    return numbers | {"rate": 1 / numbers["first_step_s"]}


def acting(env: str, seconds: str, side: Side, core: int, _: int) -> Numbers:
    """The other version's own benchmarks/acting.py measures the other version."""
    script = side.checkout / "benchmarks" / "acting.py"
    numbers = side.bench.call(side.command(core, script, "--act", env, "--seconds", seconds))
    return numbers | {"rate": numbers["steps_per_second"]}


def both(sides: dict[str, Side], measure: Measure, runs: int) -> dict[str, list[Numbers]]:
    """The runs of both versions, in pairs."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    found: dict[str, list[Numbers]] = {name: [] for name in SIDES}
    with ThreadPoolExecutor(2) as pool:
        for seed in range(runs):
            order = cores if seed % 2 else cores[::-1]
            pair = {
                name: pool.submit(measure, sides[name], core, seed) for name, core in zip(SIDES, order, strict=True)
            }
            for name, running in pair.items():
                found[name].append(running.result())
            ratio = found["after"][-1]["rate"] / found["before"][-1]["rate"]
            print(f"  run {seed + 1}: after / before {ratio:.3f}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    before = {"required": True, "type": Path, "help": "a checkout of the other version"}
    only = {
        "default": "",
        "help": f"some of {', '.join(dict.fromkeys(name.split()[0] for name in CASES))}, start, acting",
    }
    options = arguments(__doc__, before=before, only=only)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("versions.py: each version needs a core, and this process may use one only")
    bench = Bench("versions", options, METRICS)
    checkout = options.before.resolve()
    sides = {name: Side(bench, name, path) for name, path in zip(SIDES, (checkout, ROOT), strict=True)}
    measures: dict[str, Measure] = {"start": first_step}
    for name, (flags, steps) in CASES.items():
        measures[name] = partial(train, flags, steps // 10 if options.quick else steps)
    shown = {name: shlex.join(["rltrain", *flags, "--steps", str(steps)]) for name, (flags, steps) in CASES.items()}
    shown["start"] = "as in benchmarks/start.py"
    seconds = "1" if options.quick else "5"
    for env in ("CartPole-v1", "HalfCheetah-v5"):
        measures[f"acting {env}"] = partial(acting, env, seconds)
        shown[f"acting {env}"] = f"python benchmarks/acting.py --act {env} --seconds {seconds}"
    wanted = [word for word in options.only.split(",") if word]
    variants, ratios, found = list[Variant](), list[Ratio](), dict[str, list[Numbers]]()
    for name, measure in measures.items():
        names = {side: f"{name} {side}" for side in SIDES}
        variants += [Variant(names[side], shown[name], lambda _: {}) for side in SIDES]
        ratios.append(Ratio(name, [names["after"]], names["before"], "rate", "at least", 0.97))
        if wanted and name.split()[0] not in wanted:
            found |= {names[side]: runs for side in SIDES if (runs := bench.kept(names[side]))}  # with --add
            continue
        print(name, file=sys.stderr)
        found |= {names[side]: runs for side, runs in both(sides, measure, options.runs).items()}
    bench.report(variants, found, ratios, f"{NOTE} `before` is commit {commit(checkout)}.")


if __name__ == "__main__":
    main()
