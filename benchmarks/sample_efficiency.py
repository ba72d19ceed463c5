"""What SAC, CrossQ and DroQ learn in few steps, against sbx's (JAX) at equal steps and sizes of networks."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from typing import Any

from defaults import each_and_mean, judged, mean_and_spread, runs
from paired import BIN, HERE, RESULTS, Bench, Numbers, Variant, arguments, commit

sys.path.insert(0, str(HERE / "peers"))

ALGOS = ("sac", "crossq", "droq")
METRICS = {"return": "mean of the last policy's greedy episodes", "steps": "", "wall_s": "s"}
NOTE = (
    "Hidden layers of {widths}, {widths} for the policy and {widths_q}, {widths_q} for the critics on both sides, "
    "batches of 256, {warmup} random steps; otherwise the defaults of each library. DroQ makes 20 updates per step. "
    "One thread. The last policy plays 20 greedy episodes, the same 20 starts on both sides. `peer`: our mean is at "
    "least the peer's mean minus its standard deviation over the seeds. `sac`: our mean is above that of our SAC. Both "
    "sides of a seed run at once, so that their times cannot be compared with others."
)


def main() -> None:
    options = arguments(
        __doc__,
        only={"default": "", "help": "some of the algorithms, as sac,crossq (other results are kept) [all]"},
        env={"default": "Hopper-v5", "help": "the environment [Hopper-v5]"},
        steps={"type": int, "default": None, "help": "steps of each run [100000; 2000 with --quick]"},
        widths={"type": int, "default": 64, "help": "units of each hidden layer of the policy [64]"},
        widths_q={"type": int, "default": 128, "help": "units of each hidden layer of the critics [128]"},
        warmup={"type": int, "default": 1000, "help": "random steps before the first update [1000]"},
        seed={"type": int, "default": 0, "help": "seed of the first run [0]"},
    )
    options.steps = options.steps or (2_000 if options.quick else 100_000)
    bench = Bench("sample_efficiency", options, METRICS)
    only = [word for word in options.only.split(",") if word] or ALGOS
    file = RESULTS / "sample_efficiency.json"
    stored = json.loads(file.read_text()) if file.exists() and not options.quick else {"runs": {}, "versions": {}}
    variants, found = list[Variant](), dict[str, list[Numbers]](stored["runs"])
    bench.versions = dict(stored["versions"])
    for algo in ALGOS:
        sides = both(bench, algo)
        variants += sides
        if algo in only:
            for name, made in runs(bench, sides).items():
                found[name] = (found.get(name, []) if options.add else []) + made
    note = NOTE.format(**vars(options))
    bench.report(variants, found, [], f"{note}\n\n{compared(found, options.env)}")


def both(bench: Bench, algo: str) -> list[Variant]:
    """Our run and the peer's."""
    options, first = bench.options, bench.options.seed
    sizes = f"--widths {options.widths},{options.widths} --widths-q {options.widths_q},{options.widths_q}"
    train = f"--algo {algo} --env {options.env} --steps {options.steps} {sizes} --warmup {options.warmup}"
    rest = "--preset none --workers 0 --eval-every 0 --json --quiet --seed"
    command = [str(BIN / "rltrain"), *train.split(), *rest.split()]

    def mine(index: int) -> Numbers:
        from episodes import returns

        import rltrain

        numbers = bench.call([*command, str(first + index)], timeout=8 * 3600)
        trained = rltrain.load(bench.scratch / numbers["run"])
        return judged(numbers | {"returns": returns(options.env, trained.act, 20), "commit": commit()})

    sides = [Variant(f"{algo} {options.env} rltrain", bench.shown([*command, "{seed}"]), mine)]
    if options.peers:
        words = {name: getattr(options, name) for name in ("steps", "widths", "widths_q", "warmup")}
        flags = [str(word) for name, value in words.items() for word in (f"--{name.replace('_', '-')}", value)]
        program = [*bench.peer("efficiency_sbx.py", algo, options.env), *flags]

        def theirs(index: int) -> Numbers:
            return judged(bench.call([*program, str(first + index)], timeout=8 * 3600))

        sides.append(Variant(f"{algo} {options.env} sbx", bench.shown([*program, "{seed}"]), theirs))
    skipped = [word for word in (options.skip or "").split(",") if word]
    return [side for side in sides if not any(word in side.name for word in skipped)]


def compared(found: Mapping[str, list[Numbers]], env: str) -> str:
    """Both sides of each algorithm, as Markdown."""
    lines = ["| algorithm | rltrain | sbx | peer | sac |", "|---" * 5 + "|"]
    sac = found.get(f"sac {env} rltrain", [])
    for algo in ALGOS:
        mine, theirs = (found.get(f"{algo} {env} {side}", []) for side in ("rltrain", "sbx"))
        if not mine:
            continue
        mean = mean_and_spread(mine)[0]
        cells: list[Any] = [each_and_mean(mine), each_and_mean(theirs) if theirs else "not run", "", ""]
        if theirs:
            peer, spread = mean_and_spread(theirs)
            cells[2] = "one seed" if len(theirs) == 1 else "yes" if mean >= peer - spread else "no"
        if sac and algo != "sac":
            above = mean > statistics.fmean(run["return"] for run in sac)
            cells[3] = "one seed" if len(mine) == 1 else "yes" if above else "no"
        lines.append(f"| {algo} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
