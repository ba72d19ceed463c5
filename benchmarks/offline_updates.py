"""BC, TD3+BC, implicit Q-learning and CQL on recorded data: updates per second of processor time, beside d3rlpy.

The data has the shape of HalfCheetah's and random numbers; two layers of 256, batches of 256, one thread. Sampling is
included, reading the data and starting the program are not.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import offline
from paired import Bench, Numbers, Ratio, Variant, arguments

import rltrain

METRICS = {"updates_per_cpu_second": "1/s", "wall_s": "s"}
ENV = "HalfCheetah-v5"
ROWS = 100_000
CASES = {"bc": (4_000, 2.0), "td3_bc": (1_500, 1.6), "implicit_q": (1_000, 1.6), "cql": (120, 1.3)}  # updates, bar
NOTE = "CQL with 10 sampled actions for each row. Both sides have their own default settings otherwise."


class Updates(rltrain.Callback):
    """Notes the processor time of the updates."""

    def on_start(self, run: rltrain.RunView) -> None:
        self.began = time.process_time()

    def on_end(self, run: rltrain.RunView) -> None:
        self.seconds = time.process_time() - self.began


def train(algo: str, data: str, updates: int, seed: int, out: str) -> None:
    """Our side, in a process of its own."""
    updated = Updates()
    rltrain.train(
        algo=algo, env=ENV, data=data, steps=updates, seed=seed, workers=0, quiet=True, preset="none", batch=256,
        widths=(256, 256), eval_every=0, checkpoint_every=0, out=out, callbacks=[updated],
    )  # fmt: skip
    print(json.dumps({"cpu_s": updated.seconds}))


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        algo, data, updates, seed, out = sys.argv[2:]
        train(algo, data, int(updates), int(seed), out)
        return
    options = arguments(__doc__, algo={"default": ",".join(CASES), "help": "which of them, with commas between"})
    bench = Bench("offline_updates", options, METRICS)
    data, file = bench.scratch / "data", bench.scratch / "data.npz"
    offline.cheetah_rows(bench.scratch / "rows.hdf5", ROWS)
    offline.call("import", bench.scratch / "rows.hdf5", data, "--env", ENV)
    offline.call("export", data, file)
    variants, ratios = [], []

    def variant(name: str, command: list[str], updates: int) -> Variant:
        def run(index: int) -> Numbers:
            numbers = bench.call([word.replace("{seed}", str(index)) for word in command], {"OMP_NUM_THREADS": "1"})
            return numbers | {"updates_per_cpu_second": updates / numbers["cpu_s"]}

        return Variant(name, bench.shown(command), run)

    for algo in options.algo.split(","):
        updates, bar = CASES[algo]
        updates = updates // 10 if options.quick else updates
        program = [sys.executable, str(Path(__file__).resolve()), "--train"]
        words = [algo, str(data), str(updates), "{seed}", str(bench.scratch / "runs")]
        variants.append(variant(algo, program + words, updates))
        if options.peers:
            peer = bench.peer("offline_d3rlpy.py", algo, ENV, file, updates, "{seed}", 0)
            variants.append(variant(f"{algo} of d3rlpy", peer, updates))
        ratios.append(Ratio(algo, [algo], f"{algo} of d3rlpy", "updates_per_cpu_second", "at least", bar))
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
