"""Progress of a run: the metrics line, the console line and the shares of time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rltrain.learner.learner import Learner
from rltrain.reporting.console import Console
from rltrain.reporting.metrics import Metrics, Window
from rltrain.rollout.scheduler import Rollout
from rltrain.setup.offline import OfflineRollout

LOG_SECONDS = 1.0  # between two lines of metrics, except at evaluations


@dataclass(frozen=True)
class Result:
    """The result of a training run."""

    steps: int
    seconds: float  # wall time, including the start
    steps_per_second: float  # during training
    episodes: int
    train_return: float | None  # mean of the last 100 training episodes
    eval_return: float | None  # mean of the last evaluation
    stopped: str  # reason: steps, return or seconds
    run: Path
    checkpoint: Path
    restarts: int
    fingerprint: str  # sha256 over all tensors of the algorithm's parts


class Report:
    """Reports progress. Its clock starts when it is made.

    Args:
        total: steps of the entire run.
        steps: steps before the clock started.
    """

    def __init__(self, total: int, steps: int, metrics: Metrics, console: Console) -> None:
        self._total, self._start = total, steps
        self._metrics, self._console = metrics, console
        self._began = self._logged = time.monotonic()

    @property
    def due(self) -> bool:
        """True if the next line is due."""
        return time.monotonic() - self._logged >= LOG_SECONDS

    def speed(self, steps: int) -> float:
        """Steps per second since the clock started."""
        return (steps - self._start) / max(time.monotonic() - self._began, 1e-9)

    def log(
        self,
        learner: Learner,
        rollout: Rollout | OfflineRollout,
        window: Window,
        eval_return: float | None,
        restarts: int,
        more: Mapping[str, float],
    ) -> None:
        """Writes the metrics line and the console line."""
        steps, speed = rollout.steps, self.speed(rollout.steps)
        values = learner.metrics() | rollout.metrics()
        values |= {"rollout/steps_per_second": speed, "rollout/restarts": float(restarts)}
        values |= {"rollout/episodes": float(window.count), **more}
        if window.return_mean is not None and window.length_mean is not None:
            values |= {"rollout/return_mean": window.return_mean, "rollout/length_mean": window.length_mean}
        values |= {f"time/{name}": share for name, share in self._times(learner, rollout).items()}
        values |= {"time/actors_waiting": rollout.waited}
        self._metrics.log(steps, values)
        self._logged = time.monotonic()
        self._console.update(
            {
                "steps": steps,
                "total": self._total,
                "steps_per_second": speed,
                "seconds_left": (self._total - steps) / speed if speed else None,
                "train_return": window.return_mean,
                "eval_return": eval_return,
                "restarts": restarts,
            }
        )

    def shares(self, learner: Learner, rollout: Rollout | OfflineRollout) -> str:
        """The shares of time of acting and learning, for a person."""
        text = ", ".join(f"{name} {share:.0%}" for name, share in self._times(learner, rollout).items())
        return f"time: {text}; actors waited {rollout.waited:.0%} of theirs"

    def _times(self, learner: Learner, rollout: Rollout | OfflineRollout) -> dict[str, float]:
        total = max(time.monotonic() - self._began, 1e-9)
        acting, learning = rollout.seconds / total, learner.seconds / total
        return {"acting": acting, "learning": learning, "other": max(0.0, 1 - acting - learning)}
