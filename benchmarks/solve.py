"""Time of a command until CartPole-v1 is solved (475), seeds 0 to 9; with --native, many native streams."""

from __future__ import annotations

from typing import Any

from paired import BIN, Bench, Ratio, Variant, arguments

METRICS = {"wall_s": "s", "solved": "1: yes", "steps": "", "eval_return": "", "fresh_return": "100 episodes"}
GOAL = 475.0
SEEDS = 10
PRESET = "--algo ppo --env CartPole-v1 --workers 8 --stop-return 475 --json --quiet".split()
# In one process, to save the start of others. The first settings that solve it; --flags tries others.
NATIVE = """--algo ppo --env CartPole-v1 --preset none --vector native --streams 128 --workers 0 --unroll 16 --epochs 8
    --minibatches 8 --lr 2.5e-3 --lr-end 0 --gamma 0.98 --lam 0.9 --entropy 0 --no-normalize-obs --no-normalize-return
    --steps 100000 --eval-every 4096 --checkpoint-every 0 --stop-return 475 --json --quiet""".split()
NOTE = (
    "Ours ends by itself, after two evaluations in a row of 50 episodes that reach 475; `fresh_return` is what "
    "`rleval` then finds over 100 new episodes, and `solved` asks for both. The peers end at their first greedy "
    "evaluation of 20 episodes that reaches 475, which is easier. All times are of the whole command, "
    "imports and evaluations included."
)


def main() -> None:
    options = arguments(
        __doc__,
        native={"action": "store_true", "help": "settings for the shortest time; kept as solve_native"},
        flags={"default": "", "help": "more flags for our runs, as one word: --flags='--lr 1e-3'"},
    )
    bench = Bench("solve_native" if options.native else "solve", options, METRICS)
    options.runs = 1 if options.quick else SEEDS
    command = [str(BIN / "rltrain"), *(NATIVE if options.native else PRESET), *options.flags.split()]
    rleval = [str(BIN / "rleval"), "{run}", "--episodes", "100", "--json"]

    def mine(seed: int) -> dict[str, Any]:
        numbers = bench.call([*command, "--seed", str(seed)])
        fresh = bench.call([word.replace("{run}", numbers["run"]) for word in rleval])["return_mean"]
        return numbers | {"fresh_return": fresh, "solved": int(numbers["stopped"] == "return" and fresh >= GOAL)}

    shown = f"{bench.shown([*command, '--seed', '{seed}'])}; {bench.shown(rleval)}"
    name = "rltrain native" if options.native else "rltrain"
    variants = [Variant(name, shown, mine)]
    if options.peers:
        for peer, runs in (("sb3", SEEDS), ("rllib", 3)):
            if peer in (options.skip or "").split(","):
                continue
            program = bench.peer(f"train_{peer}.py", "solve")

            def theirs(seed: int, program: list[str] = program) -> dict[str, Any]:
                numbers = bench.call([*program, str(seed)])
                return numbers | {"solved": int(numbers["solved"])}

            variants.append(Variant(f"{peer} tuned", bench.shown([*program, "{seed}"]), theirs, runs))
    ratios = [
        Ratio("seconds to 475", [name], "sb3 tuned", "wall_s", "at most", 1.0),
        Ratio("seconds to 475", [name], "rllib tuned", "wall_s", "at most", 0.4),
    ]
    found = bench.alternate(variants)
    solved = [int(run["solved"]) for run in found.get(name, [])]
    bench.report(variants, found, ratios, f"{NOTE} Ours solved {sum(solved)} of {len(solved)} seeds.")


if __name__ == "__main__":
    main()
