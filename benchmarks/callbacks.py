"""Speed of training with callbacks beside the same run without, in pairs: python benchmarks/callbacks.py.

Each pair trains the same run twice, one after the other, in alternating order. Printed is the median of the ratios of
processor times, and their quartiles. On a shared machine these ratios vary by more than callbacks cost, so the share of
a run's time that is spent in calls of hooks is measured too; it contains the cost of its own clock.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import rltrain
from rltrain.callbacks.dispatch import Callbacks


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


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Adds up the calls of hooks and of the questions whether there are any, and their processor seconds."""
    found = {"calls": 0.0, "seconds": 0.0}

    def timed(method: Any) -> Any:
        def call(self: Callbacks, *arguments: Any) -> Any:
            began = time.process_time()
            try:
                return method(self, *arguments)
            finally:
                found["seconds"] += time.process_time() - began
                found["calls"] += 1

        return call

    with mock.patch.multiple(Callbacks, call=timed(Callbacks.call), wants=timed(Callbacks.wants)):
        yield found


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
                with measured() as hooks:
                    whole = seconds(RUNS[name], [kind()], out)
                print(
                    f"{name}, {kind.__name__}: {hooks['calls']:.0f} calls, {hooks['seconds'] / whole:.3%} of the time",
                    flush=True,
                )


if __name__ == "__main__":
    main()
