"""Two learners that share each update against one learner, one thread each: SAC with layers and batches of 1,024."""

from __future__ import annotations

from paired import BIN, Bench, Numbers, Ratio, Variant, arguments, ours

METRICS = {
    "updates_per_second": "1/s",
    "exchange": "share of time",
    "learning": "share of time",
    "wall_s": "s",
}
BAR = 1.5
WARMUP = 100
SETTINGS = f"""--algo sac --env HalfCheetah-v5 --preset none --workers 0 --streams 1 --unroll 1 --capacity 100000
    --warmup {WARMUP} --updates-per-step 1 --lr 3e-4 --tau 0.005 --gamma 0.99 --eval-every 0 --checkpoint-every 0
    --quiet --json""".split()
SIZES = ((1024, 1024, 1.0), (256, 256, 8.0))  # widths, batch, factor of the number of updates
NOTE = (
    "One environment, stepped once for each update; two layers of the width, and as large a batch. `exchange`: the "
    "share of the time that the first learner sends, receives and waits for the other."
)


def main() -> None:
    options = arguments(__doc__)
    bench = Bench("learners", options, METRICS)
    variants, ratios = [], []
    for width, batch, times in SIZES:
        steps = WARMUP + int((10 if options.quick else 60) * times)
        for learners in (1, 2):
            command = [str(BIN / "rltrain"), *SETTINGS, "--widths", f"{width},{width}", "--batch", str(batch)]
            command += ["--steps", str(steps), "--learners", str(learners), "--seed", "{seed}"]

            def run(index: int, command: list[str] = command, steps: int = steps) -> Numbers:
                numbers = ours(bench, [word.replace("{seed}", str(index)) for word in command])
                numbers |= {"updates_per_second": (steps - WARMUP) * numbers["steps_per_second"] / steps}
                lines = [line for line in bench.lines(numbers) if "learner/exchange_seconds" in line]
                if lines:
                    last = sum(line["learner/exchange_seconds"] for line in lines) / len(lines)
                    numbers |= {"exchange": last * numbers["updates_per_second"]}
                return numbers

            variants.append(
                Variant(f"{width} wide, {learners} learner{'s' * (learners > 1)}", bench.shown(command), run)
            )
        pair = [f"{width} wide, 2 learners"], f"{width} wide, 1 learner"
        ratios.append(Ratio("SAC", *pair, "updates_per_second", "at least", BAR if width == 1024 else None))
    bench.report(variants, bench.alternate(variants), ratios, NOTE)


if __name__ == "__main__":
    main()
