"""PPO on CartPole-v1 with equal settings: training steps per second against Stable-Baselines3 and RLlib."""

from __future__ import annotations

from paired import BIN, TRAINING, Bench, Ratio, Variant, arguments, ours

SLOW = 49_152  # steps for peers that need minutes for 200,000; their rate does not depend on it
# 8 streams, 128 steps, 4 epochs of 4 minibatches of 256, two separate nets of two layers of 64, tanh.
SETTINGS = """--algo ppo --env CartPole-v1 --preset none --streams 8 --vector serial --unroll 128
    --epochs 4 --minibatches 4 --lr 2.5e-4 --lr-end none --gamma 0.99 --lam 0.95 --clip 0.2 --entropy 0.01
    --value 0.5 --max-grad-norm 0.5 --widths 64,64 --activation tanh --no-normalize-obs --no-normalize-return
    --eval-every 0 --checkpoint-every 0 --quiet --json""".split()
NOTE = (
    "`steps_per_second`: ours counts the start of its processes, which the peers' numbers leave out; "
    "`steady_steps_per_second` counts from the first line of metrics on, about one second into the run."
)

OVERLAP = (
    "The same with `--overlap`: actors begin the next unroll before the learner learns from this one, so that data is "
    f"one update old; not plain PPO. {NOTE}"
)


def main() -> None:
    options = arguments(
        __doc__, overlap={"action": "store_true", "help": "PPO that acts while it learns; kept as throughput_overlap"}
    )
    bench = Bench("throughput_overlap" if options.overlap else "throughput", options, TRAINING)
    steps = 16_384 if options.quick else 200_000
    variants = []

    def add(name: str, command: list[str], mine: bool) -> None:
        """Replaces `{seed}` in the command by the number of the run."""

        def run(index: int) -> dict[str, object]:
            words = [word.replace("{seed}", str(index)) for word in command]
            return ours(bench, words) if mine else bench.call(words)

        variants.append(Variant(name, bench.shown(command), run))

    rltrain = [str(BIN / "rltrain"), *SETTINGS, "--steps", str(steps), "--seed", "{seed}"]
    if options.overlap:
        rltrain.append("--overlap")
    sides = [(1, "dummy"), (2, None)] if options.overlap else [(0, "dummy"), (1, "subproc"), (2, "rllib")]
    for workers, peer in sides:
        add(f"rltrain --workers {workers}", [*rltrain, "--workers", str(workers)], mine=True)
        if not options.peers or peer is None or peer in (options.skip or "").split(","):
            continue
        if peer == "rllib":
            add(
                "rllib 2 runners x 4",
                bench.peer("train_rllib.py", "throughput", "{seed}", "--steps", min(steps, SLOW)),
                mine=False,
            )
        else:
            words = ("throughput", "{seed}", "--vec", peer, "--steps", min(steps, SLOW) if peer == "subproc" else steps)
            add(f"sb3 {peer}", bench.peer("train_sb3.py", *words), mine=False)
    best = [variant.name for variant in variants if variant.name.startswith("rltrain")]
    ratios = [
        Ratio("synchronous PPO", best, "sb3 dummy", "steps_per_second", "at least", 1.7),
        Ratio("synchronous PPO", best, "sb3 subproc", "steps_per_second", "at least", 4.0),
        Ratio("synchronous PPO", best, "rllib 2 runners x 4", "steps_per_second", "at least", 7.0),
    ]
    if options.overlap:
        ratios = [Ratio("PPO with overlap", best, "sb3 dummy", "steps_per_second", "at least", 2.4)]
    bench.report(variants, bench.alternate(variants), ratios, OVERLAP if options.overlap else NOTE)


if __name__ == "__main__":
    main()
