"""The cost of one actor that is 20 times slower than the others: steps per second with it and without it."""

from __future__ import annotations

import functools
from typing import Any

from paired import BIN, HERE, Bench, Ratio, Variant, arguments, ours

METRICS = {
    "steady_steps_per_second": "1/s",
    "lag_max": "updates",
    "dropped": "unrolls",
    "learning": "share of time",
    "wall_s": "s",
}
WORKERS, STREAMS = 4, 4  # streams per worker
SETTINGS = f"""--preset none --vector serial --unroll 20 --wait {STREAMS} --lr-end none --steps 1000000000
    --eval-every 0 --checkpoint-every 0 --quiet --json --seed 0""".split()
# workers, and the number of streams that sleep 20 times longer
SIDES = {"4 alike": (4, 0), "3 alike": (3, 0), "3 alike, 1 slow": (4, STREAMS)}
NOTE = (
    "4 workers x 4 streams, unrolls of 20, an update for each; every environment sleeps 1 ms a step, those of the slow "
    "actor 20 ms, so that cores are not what is short. The slow one's own share is a quarter of the throughput, of "
    "which it still brings a twentieth: 0.7625 of four alike, 1.017 of three. `lag_max`: the most updates between an "
    "unroll's weights and its use, over the whole run."
)


def main() -> None:
    options = arguments(
        __doc__,
        seconds={"type": float, "help": "of each measurement [12; 4 with --quick]"},
    )
    bench = Bench("slow", options, METRICS)
    seconds = options.seconds or (4.0 if options.quick else 12.0)
    variants, ratios = [], []

    def run(command: list[str], _: int) -> dict[str, Any]:
        numbers = ours(bench, command)
        lines = [line for line in bench.lines(numbers) if "rollout/policy_lag_max" in line]
        numbers["lag_max"] = max(line["rollout/policy_lag_max"] for line in lines)
        return numbers | {"dropped": lines[-1]["rollout/dropped"]}

    for algo in ("impala", "appo"):
        for side, (workers, slow) in SIDES.items():
            words = ["--algo", algo, "--env", f"{HERE / 'paced.py'}:sleeping", "--env-arg", f"slow={slow}"]
            words += ["--workers", str(workers), "--streams", str(workers * STREAMS), *SETTINGS]
            command = [str(BIN / "rltrain"), *words, "--max-seconds", f"{seconds + 3:g}"]
            variants.append(Variant(f"{algo} {side}", bench.shown(command), functools.partial(run, command)))
        names = [f"{algo} {side}" for side in SIDES]
        ratios.append(Ratio(algo, [names[2]], names[0], "steady_steps_per_second", "at least", 0.75))
        ratios.append(Ratio(algo, [names[2]], names[1], "steady_steps_per_second", "at least", 1.0))
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
