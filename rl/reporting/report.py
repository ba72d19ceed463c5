"""Progress of a run: the metrics line, the console line and the shares of time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rltrain.learner.learner import Learner
from rltrain.reporting.console import Console
from rltrain.reporting.divergence import Divergence
from rltrain.reporting.metrics import Metrics, Rate, Window
from rltrain.rollout.scheduler import Rollout
from rltrain.setup.offline import OfflineRollout

ENOUGH_EPISODES = 20  # after which a key that occurs in no info is reported
SHOW_SECONDS = 1.0  # between two updates of the progress


@dataclass(frozen=True)
class Result:
    """The result of a training run."""

    steps: int
    seconds: float  # wall time of this call, including start and end
    train_seconds: float  # of them, from the first unroll to the last update
    steps_per_second: float  # in this time
    episodes: int
    train_return: float | None  # mean of the last 100 training episodes
    eval_return: float | None  # mean of the last evaluation
    stopped: str  # reason: steps, return or seconds, or the text that a callback gave
    run: Path
    checkpoint: Path
    restarts: int
    fingerprint: str  # sha256 over all tensors of the algorithm's parts


class Report:
    """Writes the metrics, the progress line, and how the time was spent. Its clock starts when it is created.

    Args:
        total:      steps of the complete run.
        divergence: notices values and temperatures that diverge; a line on the console says so.
        log_info:   keys that the last info of an episode should have; a line on the console says if none has them.
    """

    def __init__(
        self,
        total: int,
        learner: Learner,
        rollout: Rollout | OfflineRollout,
        window: Window,
        metrics: Metrics,
        console: Console,
        divergence: Divergence | None = None,
        log_info: tuple[str, ...] = (),
    ) -> None:
        self._divergence = divergence
        self._unseen = log_info  # until a note was printed about those that do not occur
        self._total, self._start = total, rollout.steps
        self._learner, self._rollout, self._window = learner, rollout, window
        self._metrics, self._console = metrics, console
        self._outside_bounds = False  # whether a note was printed
        self._began = self._shown = time.monotonic()
        self._recent = Rate()

    @property
    def seconds(self) -> float:
        """Since the clock started."""
        return time.monotonic() - self._began

    @property
    def due(self) -> bool:
        """True if the progress line should be updated."""
        return time.monotonic() - self._shown >= SHOW_SECONDS

    @property
    def speed(self) -> float:
        """Steps per second since the clock started."""
        return (self._rollout.steps - self._start) / max(time.monotonic() - self._began, 1e-9)

    def show(self, eval_return: float | None, restarts: int) -> None:
        """Update the progress line; once, print that the environment left the bounds of its space.

        Args:
            restarts: of all workers.
        """
        rollout, now = self._rollout, time.monotonic()
        self._shown = now
        self._recent.add(now, rollout.steps)
        speed = self._recent.value
        self._console.update(
            {
                "steps": rollout.steps,
                "total": self._total,
                "steps_per_second": speed,
                "seconds_left": (self._total - rollout.steps) / speed if speed else None,
                "train_return": self._window.return_mean,
                "eval_return": eval_return,
                "restarts": restarts,
            }
        )
        if rollout.outside_bounds is not None and not self._outside_bounds:
            self._outside_bounds = True
            self._console.note(
                f"the environment returned numbers of {rollout.outside_bounds} outside of the bounds of its space; "
                "they are used as they are, and counted as rollout/outside_bounds in the metrics"
            )

        if self._unseen and self._window.count >= ENOUGH_EPISODES:
            seen = {key for episode in self._window.episodes for key in episode.info}
            missing = [key for key in self._unseen if key not in seen]
            self._unseen = ()
            if missing:
                self._console.note(f"log_info: the last info of no episode has a number under {', '.join(missing)}")

    def log(self, restarts: int, more: Mapping[str, float]) -> dict[str, float]:
        """Write a line of metrics; returns its values.

        Args:
            restarts: of all workers.
            more:     further metrics, by name.
        """
        rollout, window, speed = self._rollout, self._window, self.speed
        values = self._learner.metrics() | rollout.metrics()
        values |= {"rollout/steps_per_second": speed, "rollout/restarts": float(restarts)}
        values |= {"rollout/episodes": float(window.count), **more}
        if window.return_mean is not None and window.length_mean is not None:
            values |= {"rollout/return_mean": window.return_mean, "rollout/length_mean": window.length_mean}
        values |= {f"time/{name}": fraction for name, fraction in self._times().items()}
        values |= {"time/actors_waiting": rollout.waited}
        self._metrics.log_progress(rollout.steps, values)
        if self._divergence is not None:
            longest = max((episode.length for episode in window.episodes), default=0)
            note = self._divergence.note(values, self._learner.largest_reward, longest)
            if note is not None:
                self._console.note(note)
        return values

    def finish(self) -> None:
        """End the progress line and print how the time was spent."""
        text = ", ".join(f"{name} {fraction:.0%}" for name, fraction in self._times().items())
        self._console.finish(f"time: {text}; actors waited {self._rollout.waited:.0%} of theirs")

    def _times(self) -> dict[str, float]:
        """Fractions of the time since the clock started."""
        total = max(time.monotonic() - self._began, 1e-9)
        acting, learning = self._rollout.seconds / total, self._learner.seconds / total
        return {"acting": acting, "learning": learning, "other": max(0.0, 1 - acting - learning)}
