"""SAC and TD3 on Pendulum-v1, one update for each step: updates per second against SB3, CleanRL and sbx (JAX).

All with two layers of 256, batches of 256 and one environment. On one core: one torch thread, or sbx bound to one core.
On two cores: two torch threads, or one worker that overlaps, or sbx on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from paired import BIN, Bench, Numbers, Ratio, Variant, arguments, ours

METRICS = {
    "updates_per_second": "1/s",
    "acting": "share of time",
    "learning": "share of time",
    "other": "share of time",
    "wall_s": "s",
}
WARMUP = 100
PRODUCTS = {"sac": 16.0, "td3": 11.5}  # products of 256 x 256 matrices that an update needs at least
SETTINGS = f"""--env Pendulum-v1 --preset none --workers 0 --streams 1 --unroll 1 --capacity 100000
    --warmup {WARMUP} --updates-per-step 1 --batch 256 --widths 256,256 --lr 3e-4 --tau 0.005 --gamma 0.99
    --eval-every 0 --checkpoint-every 0 --quiet --json""".split()
NOTE = (
    "`updates_per_second`: updates over the whole time of training, environment, acting and sampling included. "
    "`arithmetic alone`: as many products of two 256 x 256 matrices as an update needs (SAC 16, TD3 11.5 on average), "
    "and nothing else, right before. CleanRL is release 1.2.0, the newest that is packaged. `learning` is the share "
    "of updates and sampling, `acting` that of policy and environment. "
    "sbx: without its first 1,000 steps, in which JAX compiles."
)


def arithmetic(products: float) -> Numbers:
    """Updates per second if they consisted of matrix products only."""
    torch.set_num_threads(1)
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    out, count = torch.empty(256, 256), 1500
    for _ in range(200):
        torch.mm(a, b, out=out)
    began = time.perf_counter()
    for _ in range(count):
        torch.mm(a, b, out=out)
    seconds = time.perf_counter() - began
    return {"updates_per_second": count / products / seconds, "wall_s": seconds}


def main() -> None:
    options = arguments(__doc__, algo={"default": "sac,td3", "help": "which of them, with commas between [sac,td3]"})
    bench = Bench("updates", options, METRICS)
    steps = 600 if options.quick else 3_000
    variants, ratios = [], []

    def mine(name: str, command: Sequence[str]) -> Variant:
        def run(index: int) -> Numbers:
            numbers = ours(bench, [word.replace("{seed}", str(index)) for word in command])
            done = numbers["steps"] - WARMUP
            return numbers | {"updates_per_second": done * numbers["steps_per_second"] / numbers["steps"]}

        return Variant(name, bench.shown(command), run)

    def theirs(name: str, command: Sequence[str]) -> Variant:
        def run(index: int) -> Numbers:
            return bench.call([word.replace("{seed}", str(index)) for word in command])

        return Variant(name, bench.shown(command), run)

    for algo in options.algo.split(","):
        products = PRODUCTS[algo]
        rltrain = [str(BIN / "rltrain"), "--algo", algo, *SETTINGS, "--steps", str(steps), "--seed", "{seed}"]
        alone, one, threads, overlap, *peers = (
            f"{algo} {who}"
            for who in ("arithmetic alone", "rltrain", "rltrain, two threads", "rltrain, overlapped", "sb3", "cleanrl")
        )
        sbx = [f"{algo} sbx, {cores} cores" for cores in (1, 2)]
        variants.append(Variant(alone, f"{products:g} products an update", lambda index, p=products: arithmetic(p)))
        variants.append(mine(one, rltrain))
        variants.append(mine(threads, [*rltrain, "--learner-threads", "2"]))
        variants.append(mine(overlap, [*rltrain, "--workers", "1", "--overlap"]))
        if options.peers:
            for name, program in zip(peers, ("updates_sb3.py", "updates_cleanrl.py"), strict=True):
                variants.append(theirs(name, bench.peer(program, algo, "{seed}", "--steps", steps)))
            for cores, name in enumerate(sbx, start=1):
                words = (algo, "{seed}", "--steps", steps, "--cores", cores)
                variants.append(theirs(name, bench.peer("updates_sbx.py", *words)))
        for peer in peers:
            ratios.append(Ratio(f"{algo} updates", [one], peer, "updates_per_second", "at least", 1.7))
        ratios.append(Ratio(f"{algo} updates", [one], sbx[0], "updates_per_second", "at least", 1.0))
        ratios.append(Ratio(f"{algo} updates", [one, threads, overlap], sbx[1], "updates_per_second", "at least", 1.0))
        ratios.append(Ratio(f"{algo} updates", [one], alone, "updates_per_second", "at least", 0.75))
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
