"""An evaluating worker that is always lost: the run ends, but its actors were well, and so is its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain.envs.problems.probes import Counter
from rltrain.evaluation.background import evaluation_seeds, has_line
from rltrain.storage import retention as checkpoints


class NeverEvaluated(Counter):
    """Raises in evaluation episodes."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed in evaluation_seeds(0, 2):
            raise RuntimeError("not to be evaluated")
        return super().reset(seed=seed, options=options)


def test_its_loss_leaves_an_exact_checkpoint(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "algo": "ppo", "env": NeverEvaluated, "workers": 0, "streams": 4, "unroll": 16, "widths": (8,), "steps": 300,
        "eval_every": 128, "eval_episodes": 2, "max_restarts": 1, "preset": "none", "quiet": True,
    }  # fmt: skip
    with pytest.raises(rltrain.RunFailed) as failed:
        rltrain.train(**asked, out=str(tmp_path))

    text = str(failed.value)
    assert text.startswith("the evaluating worker failed 2 times in a row (--max-restarts 1); the last time: ")
    assert "RuntimeError: not to be evaluated" in text
    assert "-1" not in text.splitlines()[0]
    (run,) = tmp_path.iterdir()
    saved = checkpoints.find(run)[0]
    assert text.splitlines()[-2] == f"checkpoint {saved.path}"
    assert saved.meta["exact"] is True
    assert len(saved.state["rollout"]["units"]) == 4
    assert len(saved.state["evaluation"]["pending"]) == 1


def test_the_lines_of_very_many_evaluations_become_rarer() -> None:
    lines = [count for count in range(1, 500_001) if has_line(count)]

    assert lines[:999] == list(range(1, 1000))
    assert set(lines[999:1499]) == set(range(1000, 2000, 2))
    assert len(lines) < 6000
