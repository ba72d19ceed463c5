"""The learner: what it counts, and that it stops before bad weights reach a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

import rl
from rl import checkpoint


def test_a_diverged_run_stops_and_leaves_its_good_checkpoints_alone(tmp_path: Path) -> None:
    settings = {"algo": "ppo", "env": "probe:two-steps", "workers": 0, "out": str(tmp_path), "quiet": True}
    with pytest.raises(rl.RunFailed, match=r"diverged.*smaller --lr"):
        rl.train(**settings, steps=20_000, checkpoint_every=1000, eval_every=0, lr=1e20, max_grad_norm=0.0)
    (run,) = tmp_path.iterdir()
    for path in (run / "checkpoints").glob("step-*"):
        parts = checkpoint.load(path).state["learner"]["parts"]["policy"]
        assert all(abs(array).max() < float("inf") for array in parts.values() if array.size)
