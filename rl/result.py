"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    steps: int
    seconds: float  # of wall time, the start included
    steps_per_second: float  # while training
    episodes: int
    train_return: float | None  # mean of the last 100 training episodes
    eval_return: float | None  # mean of the last evaluation
    stopped: str  # steps, return, seconds
    run: Path
    checkpoint: Path
    restarts: int
    fingerprint: str  # sha256 over every tensor of the algorithm's parts
