"""The first updates of each algorithm, written down: a change in behaviour shows, meant or not.

A refactor leaves the numbers alone. A change that moves them says so in its commit and writes the new ones here; run
this file as a program to see them.
"""

from __future__ import annotations

import pytest
from oracles.acting import Bench

SMALL = {"widths": (8,), "streams": 4, "unroll": 16, "lr": 1e-2}
RUNS = {
    "ppo": ("ppo", "probe:counter", {**SMALL, "epochs": 2, "minibatches": 2}),
    "ppo-gru": (
        "ppo",
        "probe:memory",
        {**SMALL, "memory": "gru", "memory_size": 4, "sequence": 8, "normalize_obs": True, "normalize_return": True},
    ),
    "a2c": ("a2c", "probe:masked", SMALL),
    "a2c-box": ("a2c", "probe:box3", {**SMALL, "optimizer": "adam", "normalize_advantage": True}),
    "impala": ("impala", "probe:counter", SMALL),
    "impala-gru": ("impala", "probe:memory", {**SMALL, "memory": "gru", "memory_size": 4, "sequence": 8}),
    "appo": ("appo", "probe:masked", {**SMALL, "target_every": 2}),
    "appo-box": ("appo", "probe:box3", {**SMALL, "tau": 0.5, "kl": 0.1}),
}
TRACES = {
    "ppo": [-0.0133245, 126.551, 1.0947, 0.000135308, 99.8938, 1.08322, -0.00218001, 117.302, 1.09093],
    "ppo-gru": [-0.0028594, 0.389178, 0.692837, -0.0118094, 1.45896, 0.688665, -0.0110598, 1.47053, 0.674995],
    "a2c": [3.07827, 8.60378, 0.862079, 2.21978, 7.64736, 0.837902, 1.92997, 6.37337, 0.798237],
    "a2c-box": [-0.826932, 14.7949, 4.25682, -0.212563, 9.09235, 4.22682, -0.451827, 14.0438, 4.21136],
    "impala": [17.0448, 167.528, 1.0986, 14.2724, 120.987, 0.958278, 13.6953, 135.219, 0.92971],
    "impala-gru": [0.163492, 0.478879, 0.693146, -0.248301, 0.455598, 0.690256, 0.078158, 0.445221, 0.664158],
    "appo": [-3.63833, 8.60378, 0.862079, -3.46643, 7.91168, 0.903537, -3.35579, 7.77096, 0.919066],
    "appo-box": [4.07307, 14.7949, 4.25682, 3.30034, 9.05731, 4.22682, 4.16365, 13.9218, 4.21163],
}


def trace(run: str) -> list[float]:
    """Losses and entropy of three updates."""
    algo, env, settings = RUNS[run]
    bench = Bench(algo, env, **settings)
    numbers = []
    for update in range(3):
        metrics = bench.learn(bench.collect(), update / 3)
        numbers += [metrics["loss_policy"], metrics["loss_value"], metrics["entropy"]]
    return numbers


@pytest.mark.parametrize("run", RUNS)
def test_the_first_updates_are_those_written_down(run):
    assert trace(run) == pytest.approx(TRACES[run], rel=1e-3, abs=1e-5)


if __name__ == "__main__":
    for name in RUNS:
        print(f'    "{name}": [{", ".join(f"{x:.6g}" for x in trace(name))}],')
