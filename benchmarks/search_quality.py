"""How good are the settings that a search of PPO finds, on seeds that it has not used?

scripts/bench search_quality winner [--env CartPole-v1] [--steps 100_000] [--trials 40]
    A search from the library's defaults (--preset none), in the default space. Its winner, the defaults and our preset
    run with the same 10 seeds, which no trial has used. The bar: the winner's interquartile mean is at least the
    preset's, minus the half width of the interval of the preset's (95%).
scripts/bench search_quality samplers [--repetitions 5]
    TPE with successive halving, beside random search whose trials all run to the end; both have about the same number
    of environment steps. The bar: the winner of TPE has the higher interquartile mean in 4 of 5 repetitions.

The value of a run is the mean return of its last evaluations, as in a search. Learning takes long: give it an hour.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rltrain
from rltrain.comparison.statistics import Estimate, estimate
from rltrain.config.load import load
from rltrain.config.run_config import RunConfig
from rltrain.jobs.functions import close
from rltrain.tuning.search import CONFIRMATION
from rltrain.tuning.trial import run_part
from rltrain.tuning.tune import Tuned, tune

SEEDS = 10  # that no trial has used


def searched(options: argparse.Namespace, folder: Path, seed: int, trials: int, **choices: Any) -> Tuned:
    """A search of PPO from the library's defaults."""
    return tune(
        trials=trials,
        name=str(folder),
        options={"confirm": SEEDS, "parallel": options.parallel, **choices},
        algo="ppo",
        env=options.env,
        steps=options.steps,
        preset="none",
        seed=seed,
    )


def steps_of(folder: Path) -> int:
    """Environment steps of all trials of a search, without those that confirm its winner."""
    ends: dict[tuple[int, int], int] = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        for result in json.loads(line).get("results", ()):
            ends[result["number"], result["seed"]] = result["steps"]
    return sum(ends.values())


def value_of_run(config: RunConfig) -> float:
    value = run_part(config, None).value
    return float("nan") if value is None else value


def preset_values(options: argparse.Namespace, folder: Path) -> list[float]:
    """Values of our preset with the seeds that confirm the winner."""
    every = options.steps // 20
    own = {"algo": "ppo", "env": options.env, "steps": options.steps, "workers": 0, "quiet": True}
    config = load({**own, "eval_every": every, "checkpoint_every": every, "keep": 1})
    seeds = [options.seed + CONFIRMATION + number for number in range(SEEDS)]
    return rltrain.map(
        value_of_run,
        [config.model_copy(update={"seed": seed, "out": str(folder / f"preset{seed}")}) for seed in seeds],
    )


def iqm(values: Sequence[float]) -> Estimate:
    return estimate([np.array(values)], "IQM", np.random.default_rng(0))


def shown(name: str, values: Sequence[float]) -> Estimate:
    """Print the values of a group, and return their interquartile mean."""
    found = iqm(values)
    runs = " ".join(f"{value:.0f}" for value in sorted(values))
    print(f"{name:<10} IQM {found.value:.1f} [{found.low:.1f}, {found.high:.1f}]  runs: {runs}", flush=True)
    return found


def winner(options: argparse.Namespace, folder: Path) -> None:
    tuned = searched(options, folder / "search", options.seed, options.trials)
    print(f"{options.env}, {options.steps:,} steps, {tuned.trials} trials, {tuned.failed} failed: {tuned.settings}")
    print(f"steps of all trials: {steps_of(folder / 'search'):,}")
    best, _ = shown("winner", tuned.winner), shown("defaults", tuned.default)
    preset = shown("preset", preset_values(options, folder))
    assert preset.low is not None
    assert preset.high is not None
    bar = preset.value - (preset.high - preset.low) / 2
    print(f"{'reached' if best.value >= bar else 'NOT reached'}: winner {best.value:.1f}, bar {bar:.1f}")


def samplers(options: argparse.Namespace, folder: Path) -> None:
    won = 0
    for repetition in range(options.repetitions):
        seed = options.seed + 100 * repetition
        place = folder / f"tpe{repetition}"
        tpe = searched(options, place, seed, options.trials)
        trials = max(round(steps_of(place) / options.steps), 1)
        random = searched(options, folder / f"random{repetition}", seed, trials, sampler="random", scheduler="none")
        print(f"repetition {repetition}: {tpe.trials} trials of TPE with halving, {random.trials} random ones")
        one, other = shown("tpe+asha", tpe.winner), shown("random", random.winner)
        won += one.value > other.value
    print(f"TPE with halving is better in {won} of {options.repetitions} repetitions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("winner", "samplers"))
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, help="trials at a time; as many as there are cores, if not given")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            {"winner": winner, "samplers": samplers}[options.what](options, Path(folder))
    finally:
        close()


if __name__ == "__main__":
    main()
