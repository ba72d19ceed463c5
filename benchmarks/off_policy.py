"""How well fitted Q evaluation ranks the checkpoints of one run, from the recording of that run.

    python benchmarks/off_policy.py [--algo sac] [--env Pendulum-v1] [--steps 8000] [--checkpoints 8] [--updates 10000]
                                    [--episodes 50] [--seed 0] [--folder DIR]

Each checkpoint is estimated by `rltrain.estimate(..., method="fqe")`, and played. Both are without exploration and
discounted by the run's gamma. Prints a row for each checkpoint, and Spearman's rank correlation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import rltrain


def played(path: Path, gamma: float, episodes: int) -> float:
    """The mean discounted return."""
    trained = rltrain.load(path)
    env = rltrain.make_env(trained.config.env)
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=10_000 + episode)
        trained.reset()
        total, factor, over = 0.0, 1.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(trained.act(obs))
            total, factor, over = total + factor * float(reward), factor * gamma, terminated or truncated
        returns.append(total)
    env.close()
    return float(np.mean(returns))


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's: the correlation of the ranks; equal numbers share the mean of theirs."""
    ranks = [[sum(y < x for y in xs) + sum(y == x for y in xs) / 2 for x in xs] for xs in (one, other)]
    return float(np.corrcoef(ranks)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--algo", default="sac")
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=None, help="of a run that this program has made, or for a new one"
    )
    given = parser.parse_args()

    folder = given.folder or Path(tempfile.mkdtemp())
    if not (folder / "rec").exists():
        every = given.steps // given.checkpoints
        rltrain.train(
            algo=given.algo, env=given.env, steps=given.steps, seed=given.seed, workers=0, eval_every=0, quiet=True,
            checkpoint_every=every, keep=given.checkpoints + 1, out=str(folder), name="run", record=str(folder / "rec"),
        )  # fmt: skip
    checkpoints = sorted((folder / "run" / "checkpoints").glob("step-*"))[-given.checkpoints :]
    estimates, truth = [], []
    print(f"{given.algo} on {given.env}, {given.steps:,} steps, seed {given.seed}; {given.updates:,} updates each")
    for path in checkpoints:
        begin = time.process_time()
        found = rltrain.estimate(path, folder / "rec", "fqe", updates=given.updates)
        seconds = time.process_time() - begin
        value, interval = found.estimates["fqe"].value, found.estimates["fqe"].ci95
        low, high = interval or (float("nan"),) * 2  # too few episodes
        estimates.append(value)
        truth.append(played(path, found.gamma, given.episodes))
        print(
            f"{path.name}: fqe {value:.2f} ({low:.2f} to {high:.2f}), played {truth[-1]:.2f}; {seconds:.0f} s",
            flush=True,
        )
    print(f"rank correlation {rank_correlation(estimates, truth):.2f}")


if __name__ == "__main__":
    main()
