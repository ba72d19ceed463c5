"""Training from recorded unrolls: what stands where actors would be."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch

from rltrain.errors import CheckpointError, ConfigError
from rltrain.learner.batches import tensors
from rltrain.learner.feed import ReplayFeed
from rltrain.learner.learner import Learner
from rltrain.rollout.replay.ring import NoStack
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.types import Trajectory, Weights
from rltrain.storage.recording import Recording


class OfflineFeed(ReplayFeed):
    """A replay that was filled beforehand: a delivery brings nothing new, and counts for `steps_each` steps.

    So `--steps`, schedules, evaluations and checkpoints mean what they mean online. Nothing is warmed up.
    """

    def __init__(self, replay: Any, plan: ReplayPlan, device: torch.device, steps_each: int) -> None:
        super().__init__(replay, dataclasses.replace(plan, warmup=0), device)
        self._each = steps_each

    def __call__(self, unrolls: list[Trajectory], progress: float) -> Any:
        self.steps += self._each
        return super().__call__(unrolls, progress)


class OfflineRollout:
    """Has the interface of `rltrain.rollout.scheduler.Rollout`, and no actors: a round counts steps that nobody makes.

    Args:
        steps_each: steps that a round counts.
    """

    def __init__(self, steps_each: int) -> None:
        self.steps = self.restarts = 0
        self.seconds = self.waited = 0.0
        self.deadline = float("inf")
        self._each = steps_each

    def start(self) -> None:
        """Nobody acts."""

    def gather(self, streams: int | Literal["all"] = "all") -> list[Trajectory]:
        """Nothing; the round is counted."""
        self.steps += self._each
        return []

    def drain(self) -> list[Trajectory]:
        """Nothing is under way."""
        return []

    def publish_opponent(self, index: int, snapshot: Weights) -> None:
        """Nobody plays."""

    def publish(self, weights: Weights) -> None:
        """Nobody acts with them."""

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def state_without_actors(self) -> dict[str, Any]:
        return self.state()

    def load(self, state: dict[str, Any]) -> bool:
        self.steps = int(state["steps"])
        return True

    def close(self) -> None:
        """There is nothing to end."""


def fill(learner: Learner, recording: Recording, device: torch.device) -> str:
    """Show all that was recorded to the replay, and to running statistics; returns a line about it.

    Raises:
        CheckpointError: a file of it is missing, cut or changed, by name; or it is not what its spec says.
        ConfigError: it holds nothing to learn from.
    """
    feed = learner.feed
    assert isinstance(feed, ReplayFeed)
    for piece in recording.pieces():
        if piece.action.dtype == np.float32:  # a Gaussian's, as it was drawn: the environment was given less
            piece = dataclasses.replace(piece, action=np.clip(piece.action, -1.0, 1.0))
        try:
            feed.replay.append(piece)
        except NoStack as error:
            raise CheckpointError(f"{recording.folder}: {error}") from None
        learner.algorithm.observe(tensors(piece, device))
    kept = len(feed.replay)
    if not kept:
        raise ConfigError(f"--replay-from {recording.folder}: it holds no row that can be learned from")
    line = f"{recording.steps:,} steps of {recording.spec.id} were recorded in {recording.folder}"
    return line if kept >= recording.steps else f"{line}; the replay holds the newest {kept:,} (--capacity)"
