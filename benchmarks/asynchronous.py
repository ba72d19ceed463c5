"""IMPALA and APPO with equal settings: training steps per second against RLlib's and Sample Factory's."""

from __future__ import annotations

from typing import Any

from paired import BIN, Bench, Ratio, Variant, arguments, ours

METRICS = {"steady_steps_per_second": "1/s", "trained": "share of steps", "wall_s": "s"}
ENVS = {"CartPole-v1": (4.0, 2.5), "HalfCheetah-v5": (2.0, 2.0)}  # environment: bars against RLlib and Sample Factory
# 2 workers x 16 streams, unrolls of 32, batches of 512 rows, each used once, two nets of two layers of 64, tanh, Adam.
SETTINGS = """--preset none --workers 2 --streams 32 --vector serial --unroll 32 --wait 16 --lr 5e-4 --lr-end none
    --gamma 0.99 --value 0.5 --entropy 0.01 --max-grad-norm 0.5 --widths 64,64 --activation tanh
    --steps 1000000000 --eval-every 0 --checkpoint-every 0 --quiet --json""".split()
OWN = {"impala": ["--optimizer", "adam"], "appo": ["--buffer-size", "1", "--reuse", "1"]}
NOTE = (
    "2 workers x 16 streams on each side, unrolls of 32, batches of 512 rows in one pass, two separate nets of 2x64 "
    "(tanh), Adam. The clock of every side starts some seconds after its first update, so no side's start counts. "
    "`trained`: rows that went into an update, of those that were acted; the rest was dropped or queued. RLlib learns "
    "in a process of its own (`local learner`: in the driver). Sample Factory computes GAE: its V-trace ends with an "
    "error in version 2.1.1; its gymnasium 0.29 has HalfCheetah-v4, the same simulation."
)


def main() -> None:
    options = arguments(
        __doc__,
        seconds={"type": float, "help": "of each measurement [12; 3 with --quick]"},
    )
    bench = Bench("asynchronous", options, METRICS)
    seconds = options.seconds or (3.0 if options.quick else 12.0)
    variants, ratios = [], []

    def mine(name: str, command: list[str]) -> None:
        def run(index: int) -> dict[str, Any]:
            numbers = ours(bench, [*command, "--seed", str(index)])
            last = bench.lines(numbers)[-1]
            return numbers | {"trained": 1.0 - last["rollout/dropped"] * 16 * 32 / numbers["steps"]}

        variants.append(Variant(name, bench.shown([*command, "--seed", "{seed}"]), run))

    def theirs(name: str, command: list[str]) -> None:
        def run(index: int) -> dict[str, Any]:
            return bench.call([word.replace("{seed}", str(index)) for word in command])

        variants.append(Variant(name, bench.shown(command), run))

    for env, (rllib_bar, sf_bar) in ENVS.items():
        for algo, own in OWN.items():
            command = [str(BIN / "rltrain"), "--algo", algo, "--env", env, *SETTINGS, *own]
            mine(f"{env} rltrain {algo}", [*command, "--max-seconds", f"{seconds + 3:g}"])
        if not options.peers:
            continue
        short = ["--seconds", f"{seconds:g}"]
        for algo, learners, name in (("impala", 1, ""), ("impala", 0, " local learner"), ("appo", 1, "")):
            words = [algo, env, "{seed}", *short, "--learners", learners]
            theirs(f"{env} rllib {algo}{name}", bench.peer("async_rllib.py", *words))
        theirs(f"{env} sf appo", bench.peer("async_sf.py", env.replace("-v5", "-v4"), "{seed}", *short))
        for algo, peer, bar in (
            ("impala", "rllib impala", rllib_bar),
            ("impala", "rllib impala local learner", rllib_bar),
            ("appo", "rllib appo", None),
            ("appo", "sf appo", sf_bar),
        ):
            mine_is = [f"{env} rltrain {algo}"]
            ratios.append(Ratio(env, mine_is, f"{env} {peer}", "steady_steps_per_second", "at least", bar))
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
