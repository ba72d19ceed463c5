"""Run folders that version 0.1 wrote, before the packages and settings had their present names, can still be used.

`tests/data/runs-0.1` holds one run of 200 steps for each name, without its TensorBoard files. `expected.json` holds
what version 0.1 itself reached: the mean return of 5 evaluation episodes, and the fingerprint after it had resumed the
run to 300 steps. Fingerprints are equal to the bit on one kind of processor with one version of torch only; elsewhere
the test checks everything else.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import rltrain
from rltrain.rollout.cluster.node import machine

RUNS = Path(__file__).resolve().parents[1] / "data" / "runs-0.1"
EXPECTED = json.loads((RUNS / "expected.json").read_text())
SAME_BITS = {**machine(), "torch": torch.__version__}.items() >= {
    key: EXPECTED[key] for key in ("cpu", "kernels", "torch")
}.items()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("ppo", "dqn", "mappo") else pytest.mark.sweep)
        for name in EXPECTED["runs"]
    ],
)
def test_a_run_of_version_0_1_is_loaded_evaluated_and_resumed(name: str, tmp_path: Path) -> None:
    run, expected = tmp_path / name, EXPECTED["runs"][name]
    shutil.copytree(RUNS / name, run)

    loaded = rltrain.load(run)
    evaluation = rltrain.evaluate(run, episodes=5)
    resumed = rltrain.train(resume=run, steps=300, quiet=True)

    assert np.asarray(evaluation.return_mean) == pytest.approx(expected["return_mean"], rel=1e-9 if SAME_BITS else 0.1)
    assert loaded.path.name == (RUNS / name / "checkpoints" / "latest").read_text().strip()
    assert resumed.steps >= 300
    assert resumed.fingerprint == expected["fingerprint"] or not SAME_BITS


def test_settings_under_their_former_names_keep_their_values() -> None:
    config = json.loads((RUNS / "appo" / "run.json").read_text())["config"]
    assert (config["settings"]["credits"], config["settings"]["kept"], config["settings"]["uses"]) == (2, 2, 3)

    settings = rltrain.RunConfig.from_json(config).settings

    assert settings.model_dump(include={"max_in_flight", "buffer_size", "reuse"}) == {
        "max_in_flight": 2,
        "buffer_size": 2,
        "reuse": 3,
    }
