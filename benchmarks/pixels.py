"""PPO with Nature CNN on Pong, with learning: against the limit that the network sets, and against peers."""

from __future__ import annotations

import sys

from paired import BIN, HERE, TRAINING, Bench, Ratio, Variant, arguments, ours

# 8 streams, 128 steps, 4 epochs of 4 minibatches of 256: configs/ppo/ALE.toml.
SETTINGS = """--algo ppo --env ALE/Pong-v5 --workers 2 --learner-threads 2 --eval-every 0 --checkpoint-every 0
    --quiet --json""".split()
PEERS = ("sb3 subproc", "sb3 dummy", "cleanrl", "sf", "rllib")
NOTE = (
    "Pong, 8 streams x 128 steps, 4 epochs of 4 minibatches of 256, Nature CNN shared by policy and value, two cores. "
    "`network alone`: forward and backward of the minibatches that so many steps need, two threads, and nothing else; "
    "`acting too`: the forward passes of two processes that act for 4 games each are counted with them; `network and "
    "games alone`: those games are played besides, and nothing else: what acting and learning by turns take so without "
    "anything around. Ours is compared by `steady_steps_per_second`, which leaves out the start of processes as the "
    "peers' numbers do."
)


def main() -> None:
    options = arguments(__doc__)
    bench = Bench("pixels", options, TRAINING)
    steps = 3072 if options.quick else 10_240
    variants = []

    def add(name: str, command: list[str], mine: bool) -> None:
        """Replaces `{seed}` in the command by the number of the run."""

        def run(index: int) -> dict[str, object]:
            words = [word.replace("{seed}", str(index)) for word in command]
            numbers = ours(bench, words) if mine else bench.call(words)
            return {"steady_steps_per_second": numbers["steps_per_second"], **numbers}

        variants.append(Variant(name, bench.shown(command), run))

    network = [sys.executable, str(HERE / "peers" / "pixels_network.py"), "{seed}"]
    network += ["--threads", "2", "--steps", str(steps // 2)]
    add("network alone", network, mine=False)
    add("network alone, acting too", [*network, "--play", "network"], mine=False)
    add("network and games alone", [*network, "--play", "games"], mine=False)
    rltrain = [str(BIN / "rltrain"), *SETTINGS, "--steps", str(steps), "--seed", "{seed}"]
    add("rltrain", rltrain, mine=True)
    add("rltrain bfloat16", [*rltrain, "--precision", "bfloat16"], mine=True)
    if options.peers:
        for vec in ("subproc", "dummy"):
            add(f"sb3 {vec}", bench.peer("pixels_sb3.py", "{seed}", "--vec", vec, "--steps", steps // 2), mine=False)
        for peer in ("cleanrl", "sf", "rllib"):
            add(peer, bench.peer(f"pixels_{peer}.py", "{seed}", "--steps", steps // 2), mine=False)
    metric = "steady_steps_per_second"
    ratios = [Ratio("of the network alone", ["rltrain"], "network alone", metric, "at least", 0.8)]
    ratios.append(
        Ratio("of the network alone, acting too", ["rltrain"], "network alone, acting too", metric, "at least", 0.8)
    )
    ratios.append(Ratio("games alone", ["network and games alone"], "network alone", metric, "at least"))
    ratios.append(Ratio("of both alone", ["rltrain"], "network and games alone", metric, "at least"))
    ratios += [Ratio("PPO on Pong", ["rltrain"], peer, metric, "at least", 1.0) for peer in PEERS]
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
