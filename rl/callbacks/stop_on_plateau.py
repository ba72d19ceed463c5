"""A callback that ends a run which does not improve any more."""

from __future__ import annotations

from typing import Any

from rltrain.callbacks.callback import Callback
from rltrain.callbacks.run_view import RunView
from rltrain.errors import ConfigError
from rltrain.evaluation.background import Evaluated


class StopOnPlateau(Callback):
    """Ends the run after `patience` evaluations in a row without a new best value.

    Args:
        patience:  evaluations without improvement that end the run.
        metric:    a metric of evaluations, of which larger is better.
        min_delta: a value counts as improvement if it is larger than the best one by more than this.
        min_steps: steps before which the run is not ended.
    """

    def __init__(
        self, patience: int = 5, metric: str = "eval/return_mean", min_delta: float = 0.0, min_steps: int = 0
    ) -> None:
        if patience < 1:
            raise ConfigError(f"StopOnPlateau: patience must be at least 1, got {patience}")
        self.patience, self.metric, self.min_delta, self.min_steps = patience, metric, min_delta, min_steps
        self.best: float | None = None
        self.since = 0  # evaluations since the best one

    def on_start(self, run: RunView) -> None:
        if run.config.eval_every == 0:
            raise ConfigError("StopOnPlateau needs evaluations, but eval_every is 0")

    def on_evaluation(self, run: RunView, evaluation: Evaluated) -> None:
        if self.metric not in evaluation.metrics:
            known = ", ".join(evaluation.metrics)
            raise ConfigError(f"StopOnPlateau: an evaluation has no metric {self.metric!r}; it has {known}")
        value = evaluation.metrics[self.metric]
        if self.best is None or value > self.best + self.min_delta:
            self.best, self.since = value, 0
            return
        self.since += 1
        if self.since >= self.patience and evaluation.step >= self.min_steps:
            run.stop(f"no {self.metric} above {self.best:.6g} in {self.since} evaluations")

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since}
