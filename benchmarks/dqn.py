"""DQN on CartPole-v1 against Stable-Baselines3: updates per second, or with --solve the time to 475 over ten seeds."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from paired import BIN, RESULTS, Bench, Numbers, Ratio, Variant, arguments

GOAL = 475.0
RUN = "--algo dqn --env CartPole-v1 --json --quiet --checkpoint-every 0".split()
# RL Zoo's settings. Its target_update_interval counts environment steps, and 256 steps lie between two rounds of 128
# updates: the target network is constant within a round and is copied before the next one.
ZOO = """--preset none --vector serial --streams 1 --unroll 256 --capacity 100000 --warmup 1000 --batch 64
    --updates-per-step 0.5 --lr 2.3e-3 --gamma 0.99 --target-every 0 --epsilon-share 0.16 --epsilon-end 0.04
    --no-double --widths 256,256 --activation relu""".split()
SOLVE = ["--stop-return", "475"]
UPDATES = {
    "updates_per_second": "1/s",
    "steady_updates_per_second": "1/s",
    "updates_per_cpu_s": "1/s of the processor",
    "updates": "",
    "wall_s": "s",
}
SOLVED = {
    "cpu_s": "s of the processor",
    "lean_cpu_s": "s of the processor, without the peer's evaluations",
    "wall_s": "s",
    "lean_s": "s, without the peer's evaluations",
    "steps": "",
    "solved": "1: yes",
    "eval_return": "",
    "fresh_return": "100 episodes",
    "updates_per_second": "1/s",
}
UPDATES_NOTE = (
    "RL Zoo's settings on both sides: two layers of 256, batch 64, 1 environment, rounds of 256 steps and 128 updates; "
    "one torch thread. The rate is that of the whole loop, acting included. Ours counts from the start of training; "
    "`steady` counts from the first line of metrics on, about a second later. `overlap`: acting in a separate process. "
    "CPU seconds are those of the entire command, including imports; other processes hardly affect them."
)
SOLVE_NOTE = (
    "`zoo`: RL Zoo's settings on both sides. `preset`: configs/dqn/CartPole-v1.toml. The rule is the same on both "
    "sides: two consecutive greedy evaluations with the same 50 episodes reach 475. There is one every 1,024 steps; a "
    "run that does not reach 475 within 50,000 steps (`preset`: before its end) has not solved it. Each command is one "
    "process with one thread; seconds are of the entire command, including imports. Evaluations alternate with "
    "training: `lean` is without the peer's evaluations, ours are included. The three commands of a seed run at the "
    "same time, so that a disturbance affects all; CPU seconds are the time on a core of their own. `fresh_return` is "
    "the result of `rleval` over 100 other episodes, and `solved` on our side requires that it reaches 475 too."
)
# Runs a command, and adds its CPU seconds to the JSON in its last line.
TIMED = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
if done.returncode == 0:
    line = [line for line in done.stdout.splitlines() if line.startswith("{")][-1]
    print(json.dumps(json.loads(line) | {"cpu_s": used.ru_utime + used.ru_stime}))
sys.exit(done.returncode)
"""


def main() -> None:
    options = arguments(
        __doc__,
        solve={"action": "store_true", "help": "time to 475, whole commands; kept as dqn_solve"},
        seeds={"default": "0,1,2,3,4,5,6,7,8,9", "help": "with --solve [0,...,9]"},
    )
    bench = Bench("dqn_solve" if options.solve else "dqn_updates", options, SOLVED if options.solve else UPDATES)
    (solve if options.solve else updates)(bench)


def updates(bench: Bench) -> None:
    """The same settings on both sides; ours in one process, and with separate actors."""
    options = bench.options
    steps = "6000" if options.quick else "20000"
    command = [str(BIN / "rltrain"), *RUN, *ZOO, "--eval-every", "0", "--steps", steps, "--seed", "{seed}"]
    ways = {"rltrain": ["--workers", "0"], "rltrain overlap": ["--workers", "1", "--overlap"]}
    variants = []
    for name, way in ways.items():
        words = [*command, *way]

        def mine(index: int, words: list[str] = words) -> Numbers:
            return per_cpu_second(ours(bench, timed(seeded(words, index))))

        variants.append(Variant(name, bench.shown(words), mine))
    if options.peers:
        peer = bench.peer("dqn_sb3.py", "updates", "{seed}", "--steps", steps)
        variants.append(Variant("sb3", bench.shown(peer), lambda i: per_cpu_second(bench.call(timed(seeded(peer, i))))))
    ratios = [Ratio("updates", [name], "sb3", "updates_per_second", "at least", 1.5) for name in ways]
    ratios.append(Ratio("updates by the processor", ["rltrain"], "sb3", "updates_per_cpu_s", "at least", 1.5))
    bench.report(variants, bench.alternate(variants), ratios, UPDATES_NOTE)


def solve(bench: Bench) -> None:
    """Entire commands: RL Zoo's settings on both sides, and our preset."""
    options = bench.options
    seeds = [int(word) for word in options.seeds.split(",")]
    options.runs = 1 if options.quick else len(seeds)
    commands = {
        "rltrain preset": [*RUN, "--workers", "0", *SOLVE],
        "rltrain zoo": [*RUN, *ZOO, "--workers", "0", *SOLVE, "--steps", "50000", "--eval-every", "1024"],
    }
    variants = []
    for name, words in commands.items():
        command = [str(BIN / "rltrain"), *words, "--seed", "{seed}"]

        def mine(index: int, command: list[str] = command) -> Numbers:
            numbers = ours(bench, timed(seeded(command, seeds[index])))
            run = str(bench.scratch / numbers["run"])
            fresh = bench.call([str(BIN / "rleval"), run, "--episodes", "100", "--json"])["return_mean"]
            numbers |= {"fresh_return": fresh, "seed": seeds[index]}
            numbers |= {"lean_s": numbers["wall_s"], "lean_cpu_s": numbers["cpu_s"]}
            return numbers | {"solved": int(numbers["stopped"] == "return" and fresh >= GOAL)}

        variants.append(Variant(name, bench.shown(command), mine))
    if options.peers:
        peer = bench.peer("dqn_sb3.py", "solve", "{seed}")

        def theirs(index: int) -> Numbers:
            numbers = bench.call(timed(seeded(peer, seeds[index])))
            numbers["lean_s"] = numbers["wall_s"] - numbers["evaluating_s"]
            numbers["lean_cpu_s"] = numbers["cpu_s"] - numbers["evaluating_cpu_s"]
            return numbers | {"solved": int(numbers["solved"]), "seed": seeds[index]}

        variants.append(Variant("sb3 zoo", bench.shown(peer), theirs))
    found: dict[str, list[Numbers]] = {variant.name: [] for variant in variants}
    with ThreadPoolExecutor(len(variants)) as pool:
        for index in range(options.runs):
            for variant, numbers in zip(variants, pool.map(lambda v, i=index: v.run(i), variants), strict=True):
                found[variant.name].append(numbers)
                seen = ", ".join(f"{key} {numbers.get(key)}" for key in SOLVED)
                print(f"  seed {seeds[index]}  {variant.name}: {seen}", file=sys.stderr, flush=True)
    if options.add:
        found = {name: merged(name, runs) for name, runs in found.items()}
    ratios = [
        Ratio(f"{what} to 475", [ours], "sb3 zoo", metric, "at most", bar)
        for ours, what, metric, bar in (
            ("rltrain zoo", "processor seconds", "lean_cpu_s", 1.0),
            ("rltrain zoo", "seconds", "lean_s", 1.0),
            ("rltrain zoo", "steps", "steps", 1.0),
            ("rltrain preset", "processor seconds", "lean_cpu_s", 0.4),
            ("rltrain preset", "seconds", "lean_s", 0.4),
        )
    ]
    counts = ", ".join(f"{name} {sum(run['solved'] for run in runs)} of {len(runs)}" for name, runs in found.items())
    bench.report(variants, found, ratios, f"{SOLVE_NOTE} Seeds solved: {counts}.")


def ours(bench: Bench, command: list[str]) -> Numbers:
    """Our run: its numbers, and its updates from metrics.jsonl."""
    numbers = bench.call(command)
    text = (bench.scratch / numbers["run"] / "metrics.jsonl").read_text()
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if "replay/updates" in line]
    first, last = lines[0], lines[-1]
    numbers |= {"updates": last["replay/updates"], "updates_per_second": last["replay/updates"] / last["seconds"]}
    if last["seconds"] - first["seconds"] > 1.0:
        more = last["replay/updates"] - first["replay/updates"]
        numbers["steady_updates_per_second"] = more / (last["seconds"] - first["seconds"])
    return numbers


def timed(command: list[str]) -> list[str]:
    """Runs the command, and measures its CPU seconds."""
    return [sys.executable, "-c", TIMED, *command]


def per_cpu_second(numbers: Numbers) -> Numbers:
    """Runs the command, and computes the updates per CPU second."""
    return numbers | {"updates_per_cpu_s": numbers["updates"] / numbers["cpu_s"]}


def seeded(command: list[str], seed: int) -> list[str]:
    """The command with the seed filled in."""
    return [word.replace("{seed}", str(seed)) for word in command]


def merged(name: str, runs: list[Numbers]) -> list[Numbers]:
    """These runs and the stored runs of other seeds, sorted by seed."""
    file = RESULTS / "dqn_solve.json"
    kept = json.loads(file.read_text())["runs"].get(name, []) if file.exists() else []
    mine = {run["seed"] for run in runs}
    return sorted([*(run for run in kept if run["seed"] not in mine), *runs], key=lambda run: int(run["seed"]))


if __name__ == "__main__":
    main()
