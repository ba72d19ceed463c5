"""This checkout against another version of rltrain, in alternating runs: does a change cost speed?

scripts/bench versions --before OTHER/.venv/bin/rltrain [--only throughput,start]
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dqn
import native
import start
import teams
import throughput
import updates
from paired import BIN, Bench, Numbers, Ratio, Variant, arguments, commit, ours

METRICS = {"rate": "1/s", "steps_per_second": "1/s", "wall_s": "s"}
NOTE = (
    "`rate`: training steps per second of the whole loop; of `start` it is 1 / seconds from the shell to the first "
    "step of all 8 actors; of `acting` there is no learning. `before` and `after` take turns, and each ratio is of two "
    "runs that followed each other."
)
CASES = {  # name: flags, steps
    "throughput": ([*throughput.SETTINGS, "--workers", "2"], 250_000),
    "native": ([*native.SETTINGS, "--workers", "0"], 32 * 1024 * 24),
    "updates sac": (["--algo", "sac", *updates.SETTINGS], 1_000),
    "updates td3": (["--algo", "td3", *updates.SETTINGS], 1_500),
    "dqn": ([*dqn.RUN, *dqn.ZOO, "--eval-every", "0"], 12_000),
    "teams": ([*teams.SETTINGS, "--workers", "0"], 12_000),
}


def train(bench: Bench, program: str, flags: list[str], steps: int, index: int) -> Numbers:
    numbers = ours(bench, [program, *flags, "--steps", str(steps), "--seed", str(index)])
    return numbers | {"rate": numbers["steps_per_second"]}


def first_step(bench: Bench, program: str, index: int) -> Numbers:
    flags = f"--algo ppo --env {start.STAMPED}:make --workers {start.ACTORS} --streams {start.ACTORS}"
    flags += f" --eval-every 4096 --checkpoint-every 0 --quiet --json --steps 8192 --seed {index}"
    numbers = start.first_step(bench, [program, *flags.split(), *start.SETTINGS])
    return numbers | {"rate": 1 / numbers["first_step_s"]}


def acting(bench: Bench, program: str, env: str, seconds: str, _: int) -> Numbers:
    """The other version's own benchmarks/acting.py measures the other version."""
    bin_folder = Path(program).resolve().parent
    script = bin_folder.parents[1] / "benchmarks" / "acting.py"
    numbers = bench.call([str(bin_folder / "python"), str(script), "--act", env, "--seconds", seconds])
    return numbers | {"rate": numbers["steps_per_second"]}


def main() -> None:
    before = {"required": True, "help": "the command rltrain of the other version's environment"}
    only = {
        "default": "",
        "help": f"some of {', '.join(dict.fromkeys(name.split()[0] for name in CASES))}, start, acting",
    }
    options = arguments(__doc__, before=before, only=only)
    bench = Bench("versions", options, METRICS)
    programs = {"before": options.before, "after": str(BIN / "rltrain")}
    runs: dict[str, Callable[[str], Callable[[int], Numbers]]] = {"start": lambda p: partial(first_step, bench, p)}
    for name, (flags, steps) in CASES.items():
        length = steps // 10 if options.quick else steps
        runs[name] = lambda p, flags=flags, length=length: partial(train, bench, p, flags, length)  # type: ignore[misc]
    shown = {name: shlex.join(["rltrain", *flags, "--steps", str(steps)]) for name, (flags, steps) in CASES.items()}
    shown["start"] = "as in benchmarks/start.py"
    seconds = "1" if options.quick else "5"
    for env in ("CartPole-v1", "HalfCheetah-v5"):
        runs[f"acting {env}"] = lambda p, env=env: partial(acting, bench, p, env, seconds)  # type: ignore[misc]
        shown[f"acting {env}"] = f"python benchmarks/acting.py --act {env} --seconds {seconds}"
    wanted = [word for word in options.only.split(",") if word]
    variants, ratios = [], []
    for name, make in runs.items():
        if wanted and name.split()[0] not in wanted:
            continue
        for version, program in programs.items():
            variants.append(Variant(f"{name} {version}", shown[name], make(program)))
        ratios.append(Ratio(name, [f"{name} after"], f"{name} before", "rate", "at least", 0.95))
    note = f"{NOTE} `before` is commit {commit(Path(options.before).resolve().parents[2])}."
    bench.report(variants, bench.alternate(variants), ratios, note)


if __name__ == "__main__":
    main()
