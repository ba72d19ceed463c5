"""PPO on 1,024 streams of CartPole's native vector environment, against SB3's usual 8 streams and rejax (JAX)."""

from __future__ import annotations

from paired import BIN, TRAINING, Bench, Ratio, Variant, arguments, ours

# 1,024 streams x 32 steps, 4 epochs of 8 minibatches of 4,096, the nets of benchmarks/throughput.py.
SETTINGS = """--algo ppo --env CartPole-v1 --preset none --streams 1024 --vector native --unroll 32
    --epochs 4 --minibatches 8 --lr 2.5e-4 --lr-end none --gamma 0.99 --lam 0.95 --clip 0.2 --entropy 0.01
    --value 0.5 --max-grad-norm 0.5 --widths 64,64 --activation tanh --no-normalize-obs --no-normalize-return
    --eval-every 0 --checkpoint-every 0 --quiet --json""".split()
NOTE = (
    "Stable-Baselines3 runs as in benchmarks/throughput.py: 8 streams, DummyVecEnv, one thread, its best. "
    "rejax: the same settings, gymnax's CartPole-v1, without the time of compiling."
)


def main() -> None:
    options = arguments(__doc__)
    bench = Bench("native", options, TRAINING)
    steps = 32 * 1024 * (4 if options.quick else 48)
    variants = []
    for threads in (1, 2):
        for workers in (0, 1, 2):
            command = [str(BIN / "rltrain"), *SETTINGS, "--steps", str(steps)]
            command += ["--workers", str(workers), "--learner-threads", str(threads)]

            def run(index: int, command: list[str] = command) -> dict[str, object]:
                return ours(bench, [*command, "--seed", str(index)])

            name = f"rltrain --workers {workers} --learner-threads {threads}"
            variants.append(Variant(name, bench.shown([*command, "--seed", "{seed}"]), run))
        if threads == 1 and options.peers:
            sb3_steps = 16_384 if options.quick else 200_000

            def run_sb3(index: int, sb3_steps: int = sb3_steps) -> dict[str, object]:
                return bench.call(bench.peer("train_sb3.py", "throughput", index, "--steps", sb3_steps))

            shown = bench.shown(bench.peer("train_sb3.py", "throughput", "{seed}", "--steps", sb3_steps))
            variants.append(Variant("sb3 dummy", shown, run_sb3))
    if options.peers:
        for cores in (1, 2):
            words = ["{seed}", "--steps", steps, "--cores", cores]

            def run_rejax(index: int, words: list[object] = words) -> dict[str, object]:
                return bench.call(bench.peer("native_rejax.py", index, *words[1:]))

            shown = bench.shown(bench.peer("native_rejax.py", *words))
            variants.append(Variant(f"rejax, {cores} cores", shown, run_rejax))
    names = [variant.name for variant in variants if variant.name.startswith("rltrain")]
    ratios = [Ratio("1,024 native streams", names, "sb3 dummy", "steps_per_second", "at least", 5.0)]
    one = [name for name in names if name.endswith("--workers 0 --learner-threads 1")]
    ratios.append(Ratio("1,024 streams, one core", one, "rejax, 1 cores", "steps_per_second", "at least", 0.9))
    ratios.append(Ratio("1,024 streams, two cores", names, "rejax, 2 cores", "steps_per_second", "at least", 0.9))
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
