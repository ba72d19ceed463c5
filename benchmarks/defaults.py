"""What our defaults learn, without a preset, against Stable-Baselines3's defaults at equal steps."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from paired import BIN, HERE, RESULTS, Bench, Numbers, Variant, arguments, commit

sys.path.insert(0, str(HERE / "peers"))

BOX, DISCRETE = "Pendulum-v1 MountainCarContinuous-v0 HalfCheetah-v5", "LunarLander-v3 Acrobot-v1 MountainCar-v0"
STEPS = {  # of each algorithm on each environment
    **{algo: {"CartPole-v1": 50_000} | dict.fromkeys(f"{DISCRETE} {BOX}".split(), 100_000) for algo in ("ppo", "a2c")},
    "dqn": {"CartPole-v1": 50_000} | dict.fromkeys("LunarLander-v3 Acrobot-v1".split(), 100_000),
    **{
        algo: {"Pendulum-v1": 10_000, "MountainCarContinuous-v0": 20_000, "HalfCheetah-v5": 20_000}
        for algo in ("sac", "td3")
    },
}
METRICS = {"return": "mean of the last policy's greedy episodes", "steps": "", "wall_s": "s"}
NOTE = (
    "One torch thread; both sides of a seed run at the same time. The last policy plays 20 greedy episodes, with the "
    "same 20 starts on both sides. The table has the return of each seed, then their mean and standard deviation. "
    "`reached`: our mean is at least the peer's mean minus its standard deviation over the seeds. Seeds that chose a "
    "default are from 100 on; those here chose nothing. The rows were measured on several days and processors, and our "
    "side of A2C with Box actions was measured alone, so that times cannot be compared. On MountainCarContinuous SAC "
    "and TD3 stay at the start on both sides: all their returns are between -0.02 and 0, and `no` means a difference "
    "below 0.01. SAC had a warmup of 1,000 steps there, before the default was 100, and TD3 hidden layers of 256 and "
    "256, before the default was 400 and 300."
)


def main() -> None:
    options = arguments(
        __doc__,
        only={"default": "", "help": "some of the pairs, as ppo:Pendulum-v1,a2c (other results are kept) [all]"},
        seed={"type": int, "default": 0, "help": "seed of the first run [0]"},
        flags={"default": "", "help": "more flags for our runs, as one word; nothing is kept"},
    )
    options.quick = options.quick or bool(options.flags)
    bench = Bench("defaults", options, METRICS)
    only = [word for word in options.only.split(",") if word]
    variants, found = list[Variant](), dict[str, list[Numbers]]()
    for algo, steps_of in STEPS.items():
        for env, steps in steps_of.items():
            sides = both(bench, algo, env, steps)
            variants += sides
            if not only or {algo, f"{algo}:{env}"} & set(only):
                found |= runs(bench, sides)
    if not options.quick and (file := RESULTS / "defaults.json").exists():
        stored = json.loads(file.read_text())
        found, bench.versions = stored["runs"] | found, stored["versions"] | bench.versions
    found = {variant.name: found[variant.name] for variant in variants if variant.name in found}
    bench.report(variants, found, [], f"{NOTE}\n\n{compared(found)}")


def both(bench: Bench, algo: str, env: str, steps: int) -> list[Variant]:
    """Our run and the peer's, with defaults only."""
    options, first = bench.options, bench.options.seed
    train = f"--algo {algo} --env {env} --steps {steps} --preset none --workers 0 --eval-every 0 --json --quiet"
    command = [str(BIN / "rltrain"), *train.split(), *options.flags.split(), "--seed"]

    def mine(index: int) -> Numbers:
        from episodes import returns

        import rltrain

        numbers = bench.call([*command, str(first + index)], timeout=7200)
        trained = rltrain.load(bench.scratch / numbers["run"])
        return judged(numbers | {"returns": returns(env, trained.act, 20), "commit": commit()})

    sides = [Variant(f"{algo} {env} rltrain", bench.shown([*command, "{seed}"]), mine)]
    if options.peers:
        program = [*bench.peer("defaults_sb3.py", algo, env), "--steps", str(steps)]

        def theirs(index: int) -> Numbers:
            return judged(bench.call([*program, str(first + index)], timeout=7200))

        sides.append(Variant(f"{algo} {env} sb3", bench.shown([*program, "{seed}"]), theirs))
    skipped = [word for word in (options.skip or "").split(",") if word]
    return [side for side in sides if not any(word in side.name for word in skipped)]


def judged(numbers: Numbers) -> Numbers:
    """The numbers that are kept."""
    kept = {key: numbers[key] for key in ("steps", "seconds", "wall_s", "returns", "commit") if key in numbers}
    return kept | {"return": statistics.fmean(numbers["returns"])}


def runs(bench: Bench, sides: Sequence[Variant]) -> dict[str, list[Numbers]]:
    """The runs of all seeds; the two sides of a seed at the same time."""
    found: dict[str, list[Numbers]] = {side.name: [] for side in sides}
    with ThreadPoolExecutor(max(1, len(sides))) as pool:
        for index in range(bench.options.runs):
            for side, numbers in zip(sides, pool.map(lambda side, i=index: side.run(i), sides), strict=True):
                found[side.name].append(numbers | {"seed": bench.options.seed + index})
                shown = f"return {numbers['return']:.1f}, {numbers['wall_s']:.0f} s"
                print(f"  seed {bench.options.seed + index}  {side.name}: {shown}", file=sys.stderr, flush=True)
    return found


def compared(found: Mapping[str, list[Numbers]]) -> str:
    """The two sides of each pair, as Markdown."""
    lines = ["| algorithm | environment | steps | rltrain | Stable-Baselines3 | reached |", "|---" * 6 + "|"]
    for algo, steps_of in STEPS.items():
        for env, steps in steps_of.items():
            sides = [found.get(f"{algo} {env} {side}", []) for side in ("rltrain", "sb3")]
            if not all(sides):
                continue
            (mine, _), (theirs, spread) = (mean_and_spread(side) for side in sides)
            cells = [each_and_mean(side) for side in sides]
            reached = "yes" if mine >= theirs - spread else "no"
            lines.append(f"| {algo} | {env} | {steps:,} | {' | '.join(cells)} | {reached} |")
    return "\n".join(lines)


def each_and_mean(side: Sequence[Numbers]) -> str:
    """The return of each seed, then their mean and standard deviation."""
    mean, around = mean_and_spread(side)
    each = ", ".join(f"{run['return']:.1f}" for run in side)
    return f"{each}: {mean:.1f} ± {around:.1f}"


def mean_and_spread(side: Sequence[Numbers]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds."""
    values = [run["return"] for run in side]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
