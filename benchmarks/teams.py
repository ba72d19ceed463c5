"""QMIX on simple_spread_v3 against BenchMARL, equal networks and settings: environment steps per second of training."""

from __future__ import annotations

from dqn import seeded, timed
from paired import BIN, TRAINING, Bench, Numbers, Ratio, Variant, arguments, ours

METRICS = {"steps_per_cpu_s": "1/s of the processor", **TRAINING}
STREAMS, ROUND, UPDATES = 10, 6_000, 1_000  # BenchMARL's defaults: environments, steps per round, updates per round
SETTINGS = f"""--algo qmix --env pettingzoo:mpe2.simple_spread_v3 --env-arg max_cycles=100 --preset none
    --streams {STREAMS} --unroll {ROUND // STREAMS} --capacity 100000 --batch 128 --warmup 0 --no-random-start
    --updates-per-step {UPDATES / ROUND} --widths 256,256 --activation tanh --mixer-width 32 --hyper-width 32
    --lr 5e-5 --adam-eps 1e-6 --max-grad-norm 5 --gamma 0.99 --tau 0.005 --no-double --epsilon 0.8 --epsilon-end 0.01
    --epsilon-share 1 --eval-every 0 --checkpoint-every 0 --quiet --json""".split()
WAYS = [["--workers", "0"], ["--workers", "2"], ["--workers", "1", "--overlap"]]
NOTE = (
    "BenchMARL's defaults on both sides: 3 agents that share an MLP of two layers of 256, tanh, no memory; mixer 32; "
    "batches of 128 single steps; 10 environments, rounds of 6,000 steps and 1,000 updates; one torch thread. Ours "
    "shows agents which of them they are, 3 more inputs. BenchMARL runs the same task of PettingZoo 1.24.3, ours of "
    "mpe2. `--overlap`: the actor plays the next round while the learner learns from this one and those before, so its "
    "weights are one round older and both cores are at work; BenchMARL, as our other two, plays and learns by turns. "
    "`steps_per_second` is that of the whole loop, environments and learning included. `steps_per_cpu_s`: by seconds "
    "of the processor, which hardly depend on what else the machine does; ours are those of the whole "
    "command, imports included, the peer's those of training alone."
)


def main() -> None:
    options = arguments(__doc__)
    bench = Bench("teams", options, METRICS)
    steps = str(ROUND if options.quick else 5 * ROUND)
    variants = []
    for way in WAYS:
        name = " ".join(["rltrain", *way])
        command = [str(BIN / "rltrain"), *SETTINGS, *way, "--steps", steps, "--seed", "{seed}"]

        def mine(index: int, command: list[str] = command) -> Numbers:
            numbers = ours(bench, timed(seeded(command, index)))
            return numbers | {"steps_per_cpu_s": numbers["steps"] / numbers["cpu_s"]}

        variants.append(Variant(name, bench.shown(command), mine))
    if options.peers:
        words = ("--steps", steps, "--streams", STREAMS, "--round", ROUND, "--updates", UPDATES)
        peer = bench.peer("teams_benchmarl.py", "{seed}", *words)
        variants.append(Variant("benchmarl", bench.shown(peer), lambda index: bench.call(seeded(peer, index))))
    names = [variant.name for variant in variants if variant.name != "benchmarl"]
    ratios = [Ratio("training", [name], "benchmarl", "steps_per_second", "at least", 3) for name in names]
    ratios.append(Ratio("training by the processor", names[:1], "benchmarl", "steps_per_cpu_s", "at least", 3))
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
