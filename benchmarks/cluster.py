"""Actors on two Dask workers of this machine against two actors in processes, and against RLlib's remote runners."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paired import BIN, Bench, Ratio, Variant, arguments, ours

METRICS = {
    "steady_steps_per_second": "1/s",
    "acting": "share of time",
    "learning": "share of time",
    "unrolls_mb_per_s": "MB/s",
    "unroll_ms": "ms beyond the acting",
    "weights_ms": "ms until a version is there",
    "wall_s": "s",
}
BAR, RLLIB_BAR = 0.85, 3.0
ENV = "HalfCheetah-v5"
COMMON = f"""--env {ENV} --preset none --workers 2 --streams 16 --vector serial --lr-end none --widths 64,64
    --activation tanh --steps 1000000000 --eval-every 0 --checkpoint-every 0 --quiet --json""".split()
SETTINGS = {
    "ppo": "--unroll 128 --epochs 4 --minibatches 8 --entropy 0 --normalize-obs --normalize-return".split(),
    "impala": "--unroll 128 --wait 8 --optimizer adam --lr 5e-4 --value 0.5 --entropy 0.01".split(),
}
NOTE = (
    "2 actors x 8 streams, unrolls of 128. `dask`: a scheduler and two workers of one slot each, started before, on "
    "loopback; the learner has to share two cores with all of them. `unroll_ms`: what an unroll took beyond the time "
    "of its actor. RLlib: IMPALA with two remote runners of 8 environments, fragments of 128."
)


@contextlib.contextmanager
def fleet(folder: Path, nodes: int) -> Iterator[str]:
    """Starts a scheduler and nodes with one slot each; yields the scheduler file."""
    file = folder / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    words = [["scheduler", "--host", "127.0.0.1", "--port", "0"]]
    words += [["worker", "--nthreads", "1", "--no-nanny", "--death-timeout", "20"]] * nodes
    processes = []
    try:
        for command in words:
            log = (folder / "dask.log").open("ab")
            processes.append(subprocess.Popen([str(BIN / "dask"), *command, *common], stdout=log, stderr=log))
            while not file.exists():
                time.sleep(0.1)
        while (folder / "dask.log").read_text().count("Registered to") < nodes:
            time.sleep(0.1)
        yield str(file)
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def main() -> None:
    options = arguments(__doc__, seconds={"type": float, "help": "of each measurement [12; 3 with --quick]"})
    bench = Bench("cluster", options, METRICS)
    seconds = options.seconds or (3.0 if options.quick else 12.0)
    with fleet(bench.scratch, 2) as file:
        variants, ratios = [], []
        for algo, own in SETTINGS.items():
            for place, where in (("processes", []), ("dask", ["--cluster", file])):
                command = [str(BIN / "rltrain"), "--algo", algo, *COMMON, *own, *where]
                command += ["--max-seconds", f"{seconds + 4:g}"]

                def run(index: int, command: list[str] = command) -> dict[str, Any]:
                    numbers = ours(bench, [*command, "--seed", str(index)])
                    return numbers | wire(bench.lines(numbers))

                variants.append(Variant(f"{algo} {place}", bench.shown([*command, "--seed", "{seed}"]), run))
            pair = [f"{algo} dask"], f"{algo} processes"
            ratios.append(Ratio(algo, *pair, "steady_steps_per_second", "at least", BAR))
        if options.peers:
            words = [
                "impala",
                ENV,
                "{seed}",
                "--seconds",
                f"{seconds:g}",
                "--learners",
                1,
                "--envs",
                8,
                "--unroll",
                128,
            ]
            peer = bench.peer("async_rllib.py", *words)

            def theirs(index: int) -> dict[str, Any]:
                return bench.call([word.replace("{seed}", str(index)) for word in peer])

            variants.append(Variant("rllib impala", bench.shown(peer), theirs))
            ratios.append(
                Ratio("impala", ["impala dask"], "rllib impala", "steady_steps_per_second", "at least", RLLIB_BAR)
            )
        bench.report(variants, bench.alternate(variants), ratios, NOTE)


def wire(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The network traffic, from the metrics of a run."""
    lines = [line for line in lines if "cluster/unrolls_bytes" in line]
    if len(lines) < 2:
        return {}
    size = sum(line["cluster/unrolls_bytes"] for line in lines[1:])
    found = {"unrolls_mb_per_s": size / 1e6 / (lines[-1]["seconds"] - lines[0]["seconds"])}
    for name, key in (("unroll_ms", "unrolls"), ("weights_ms", "weights")):
        times = [line[f"cluster/{key}_seconds"] for line in lines if f"cluster/{key}_seconds" in line]
        found[name] = 1e3 * sum(times) / max(len(times), 1)
    return found


if __name__ == "__main__":
    main()
