"""Speed of training with callbacks beside the same run without, in pairs: python benchmarks/callbacks.py.

Each pair trains the same run twice, one after the other, in alternating order. Printed is the median of the ratios of
processor times, and their quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import rltrain


class Nothing(rltrain.Callback):
    """Overrides no hook."""


class Empty(rltrain.Callback):
    """Overrides the hooks that are called often, with nothing."""

    def on_update(self, run: rltrain.RunView) -> None:
        pass

    def on_episode(self, run: rltrain.RunView, episode: Any) -> None:
        pass

    def on_log(self, run: rltrain.RunView, values: dict[str, float]) -> None:
        pass


RUNS: dict[str, dict[str, Any]] = {
    "ppo": {"algo": "ppo", "steps": 60_000},
    "dqn": {"algo": "dqn", "steps": 12_000, "warmup": 1_000},
}


def seconds(run: dict[str, Any], callbacks: list[rltrain.Callback], out: str) -> float:
    """Processor seconds of a run of CartPole in this process."""
    began = time.process_time()
    rltrain.train(
        **run, env="CartPole-v1", preset="none", workers=0, eval_every=0, checkpoint_every=0, quiet=True, out=out,
        callbacks=callbacks,
    )  # fmt: skip
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("runs", nargs="*", default=list(RUNS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        for name in given.runs:
            seconds(RUNS[name], [], out)
            for kind in (Nothing, Empty):
                ratios = []
                for pair in range(given.pairs):
                    order = ([], [kind()]) if pair % 2 else ([kind()], [])
                    times = {bool(callbacks): seconds(RUNS[name], callbacks, out) for callbacks in order}
                    ratios.append(times[False] / times[True])
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(
                    f"{name}, {kind.__name__}: {middle:.3f} of the speed without ({low:.3f} to {high:.3f})", flush=True
                )


if __name__ == "__main__":
    main()
