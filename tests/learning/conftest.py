"""How a probe is trained on: the settings that all probe tests share, under those of the test's own file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rltrain

QUIET = {"workers": 0, "preset": "none", "eval_every": 0, "checkpoint_every": 0, "quiet": True, "seed": 0}


@pytest.fixture
def train(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """Trains on `probe:<env>`: to the run's result and its policy. Of the test's file are `SMALL`, settings of all its
    tests, and `OF`, those of each kind of algorithm; the name of a kind is the algorithm's unless they say another."""

    def run(kind: str, env: str, steps: int, **settings: Any) -> tuple[Any, Any]:
        own: dict[str, Any] = {"algo": kind, **QUIET, **request.module.SMALL, **request.module.OF[kind], **settings}
        result = rltrain.train(env=f"probe:{env}", steps=steps, out=str(tmp_path), **own)
        return result, rltrain.load(result.checkpoint)

    return run
