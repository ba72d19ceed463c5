"""Serves a policy, learns from the episodes of its clients without acting, and serves the result.

    python docs/examples/serve_learn_serve.py

A policy that was trained for a moment is served and samples its actions; the simulator beside this file plays with it,
and the server records the episodes. Discrete CQL learns from the recording. Then the simulator plays with the result.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from simulator import PoleOnCart, Server, play

import rltrain


def mean_return(policy: Path, episodes: int, seed: int, record: Path | None = None) -> float:
    """Of episodes of the simulator with a server of the policy. A server that records samples its actions."""
    with rltrain.serve(policy, sample=record is not None, record=record) as server:
        client, simulator = Server(server.url), PoleOnCart(seed)
        return sum(play(client, simulator, "simulator") for _ in range(episodes)) / episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for runs and the recording; default: a temporary one")
    parser.add_argument("--steps", type=int, default=3_000, help="of the first policy's training")
    parser.add_argument("--episodes", type=int, default=200, help="that are recorded")
    parser.add_argument("--updates", type=int, default=2_000, help="of CQL")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        shared = {"env": "CartPole-v1", "seed": given.seed, "workers": 0, "out": folder / "runs", "quiet": True}
        first = rltrain.train(algo="ppo", steps=given.steps, **shared)
        recorded = mean_return(first.run, given.episodes, given.seed, folder / "recording")
        second = rltrain.train(algo="cql", data=folder / "recording", steps=given.updates, **shared)
        served = mean_return(second.run, 20, given.seed + 1)
    print(json.dumps({"recorded": recorded, "learned": served}))


if __name__ == "__main__":
    main()
