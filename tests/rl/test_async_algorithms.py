"""IMPALA and APPO where nobody runs ahead: the same bits for any number of workers, and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rltrain
from rltrain.storage import checkpoint

pytestmark = pytest.mark.usefixtures("fork_server")

TINY: dict[str, Any] = {
    "preset": "none", "seed": 3, "streams": 7, "unroll": 8, "sequence": 4, "widths": (8,), "memory_size": 8,
    "normalize_obs": True, "normalize_return": True, "eval_every": 0, "quiet": True,
    "wait": None, "overlap": False, "steps": 500,
}  # fmt: skip
ALGOS: dict[str, dict[str, Any]] = {"impala": {}, "appo": {"buffer_size": 1, "reuse": 3, "kl": 0.1}}


@pytest.mark.parametrize(("algo", "memory"), [("impala", "gru"), pytest.param("appo", "none", marks=pytest.mark.sweep)])
def test_any_number_of_workers_gives_the_same_bits(algo: str, memory: str, tmp_path: Path) -> None:
    """7 streams: not divisible by 2 or 3 workers."""
    asked = TINY | ALGOS[algo] | {"algo": algo, "env": "CartPole-v1", "memory": memory, "out": str(tmp_path)}
    asked["checkpoint_every"] = 0
    whole = rltrain.train(**asked, workers=0)
    for given in ({"workers": 3}, {"workers": 2, "backend": "local"}):
        assert rltrain.train(**asked, **given).fingerprint == whole.fingerprint
    assert rltrain.train(**{**asked, "seed": 4}, workers=0).fingerprint != whole.fingerprint


@pytest.mark.sweep
@pytest.mark.parametrize(("algo", "wait"), [pytest.param("impala", 3, marks=pytest.mark.sweep), ("appo", None)])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(algo: str, wait: int | None, tmp_path: Path) -> None:
    """From a checkpoint in the middle, as a run that was killed after it would go on. Without memory and with it."""
    memory = {"impala": "none", "appo": "gru"}[algo]
    asked = TINY | ALGOS[algo] | {"algo": algo, "env": "CartPole-v1", "memory": memory, "workers": 0, "wait": wait}
    whole = rltrain.train(**asked, checkpoint_every=200, out=str(tmp_path / "whole"))
    cut = rltrain.train(**asked, checkpoint_every=200, out=str(tmp_path / "cut"))
    checkpoints = sorted((cut.run / "checkpoints").glob("step-*"))
    (cut.run / "checkpoints" / "latest").write_text(checkpoints[0].name)

    resumed = rltrain.train(resume=cut.run)

    assert checkpoint.load(checkpoints[0]).meta["step"] < whole.steps
    assert (resumed.fingerprint, resumed.steps) == (whole.fingerprint, whole.steps)
