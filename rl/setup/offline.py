"""Trains from recorded unrolls: the feed and the rollout of a run without actors, and filling the replay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from rltrain.config.run_config import RunConfig
from rltrain.errors import CheckpointError, ConfigError
from rltrain.learner.batches import tensors
from rltrain.learner.feed import ReplayFeed
from rltrain.learner.learner import Learner
from rltrain.rollout.replay.mixture import Mixture
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.replay.ring import NoStack
from rltrain.rollout.scheduler import Rollout
from rltrain.rollout.specs import DataPlan, ReplayPlan, RolloutSpec
from rltrain.rollout.types import Trajectory, Weights
from rltrain.rollout.workers.handle import ActorLost
from rltrain.storage.recording import Recording

if TYPE_CHECKING:
    from rltrain.learner.agent_replays import AgentReplays, AgentRows


class OfflineFeed(ReplayFeed):
    """A replay that was filled before training. Each delivery is empty and counts for `steps_each` steps.

    So `--steps`, schedules, evaluations and checkpoints have the same meaning as online. There is no warmup. After
    `--then-online` has begun deliveries are those of actors.
    """

    def __init__(
        self, replay: Replay | Mixture | AgentReplays, plan: ReplayPlan, device: torch.device, steps_each: int
    ) -> None:
        super().__init__(replay, dataclasses.replace(plan, warmup=0), device)
        self._each = steps_each

    def __call__(self, unrolls: list[Trajectory], progress: float) -> Iterator[Any]:
        if not unrolls:
            self.steps += self._each
        return super().__call__(unrolls, progress)

    def parts(self) -> list[Replay] | list[AgentRows]:
        """The replay of each recording."""
        return [self.replay] if isinstance(self.replay, Replay) else self.replay.data


class OfflineRollout:
    """Has the interface of `rltrain.rollout.scheduler.Rollout` without actors: each round only counts steps.

    Args:
        steps_each: steps that one round counts.
    """

    def __init__(self, steps_each: int) -> None:
        self.steps = self.restarts = 0
        self.seconds = self.waited = 0.0
        self.outside_bounds = None  # there are no new observations
        self.deadline = float("inf")
        self._each = steps_each

    def start(self) -> None:
        """No-op: there are no actors."""

    def gather(self, streams: int | Literal["all"] = "all") -> list[Trajectory]:
        """Counts the steps of a round and returns no unrolls."""
        self.steps += self._each
        return []

    def drain(self) -> list[Trajectory]:
        """No unrolls are under way."""
        return []

    def publish_opponent(self, index: int, snapshot: Weights) -> None:
        """No-op: offline runs have no opponents."""

    def publish(self, weights: Weights) -> None:
        """No-op: there are no actors."""

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
        """No-op."""


class OfflineThenOnline(Rollout):
    """Actors that wait until `offline_steps` steps are counted as `OfflineRollout` does; then they act."""

    def __init__(
        self,
        plan: RolloutSpec,
        weights: Weights,
        on_restart: Callable[[ActorLost], None],
        offline_steps: int,
        steps_each: int,
    ) -> None:
        super().__init__(plan, weights, on_restart)
        self._offline, self._each = offline_steps, steps_each

    def start(self) -> None:
        if self.steps >= self._offline:
            super().start()

    def gather(self, streams: int | Literal["all"] = "all") -> list[Trajectory]:
        if self.steps >= self._offline:
            return super().gather(streams)
        self.steps += self._each
        return []

    def publish(self, weights: Weights) -> None:
        """Publishes the weights; before the actors act, only the last ones are needed."""
        if self.steps >= self._offline:
            super().publish(weights)


def data_sets(text: str) -> list[tuple[Path, float | None]]:
    """The folders that `--data` names, each with its share of the samples if it is given.

    Raises:
        ConfigError: a share is no positive number, or only some folders have one.
    """
    if Path(text).exists():
        return [(Path(text), None)]
    found: list[tuple[Path, float | None]] = []
    for part in (word.strip() for word in text.split(",")):
        name, sign, number = part.rpartition("=")
        if not sign or Path(part).exists():
            found.append((Path(part), None))
            continue
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not (0 < share < math.inf and name):
            raise ConfigError(f"--data {part}: a share is a number above 0, as in DIR=0.7")
        found.append((Path(name), share))
    if any(part == Path("") for part, _ in found) or not text.strip():
        raise ConfigError(f"--data {text}: a folder has no name")
    if len({share is None for _, share in found}) > 1:
        raise ConfigError(f"--data {text}: give shares to all folders, or to none of them")
    return found


def steps_each(config: RunConfig, plan: DataPlan) -> int:
    """The steps that a round without actors counts: one update's, or as many as the actors' deliveries would have."""
    return 1 if is_data_only(plan) else config.streams * plan.unroll


def is_data_only(plan: DataPlan) -> bool:
    """True if the algorithm learns from recorded data alone."""
    return isinstance(plan, ReplayPlan) and plan.data_only


def fill(learner: Learner, recordings: Sequence[Recording], device: torch.device) -> list[str]:
    """Add all recorded unrolls to the replays and to running statistics; returns notes about it.

    Raises: see `_fill`.
    """
    assert isinstance(learner.feed, OfflineFeed)
    parts: Sequence[Replay | AgentRows] = learner.feed.parts()
    pairs = zip(parts, recordings, strict=True)
    notes = [_fill(learner, replay, recording, device) for replay, recording in pairs]
    if not isinstance(learner.feed.replay, Replay | Mixture):  # each group has its own
        of_groups = learner.feed.replay
        for n, (view, replay) in enumerate(zip(learner.algorithm.policy.views, of_groups.groups, strict=True)):
            if n not in of_groups.frozen and not len(replay):
                agents = ", ".join(view.group.agents)
                raise ConfigError(f"--data: the recordings hold no row of {agents} that can be learned from")
    return notes


def _fill(learner: Learner, replay: Replay | AgentRows, recording: Recording, device: torch.device) -> str:
    """The same for one recording.

    Raises:
        CheckpointError: a file is missing, truncated or changed, by name; or its data do not match its spec.
        ConfigError: the recording holds nothing to learn from.
    """
    for piece in recording.pieces():
        if piece.action.dtype == np.float32:  # a Gaussian sample; the environment received it clipped
            piece = dataclasses.replace(piece, action=np.clip(piece.action, -1.0, 1.0))
        piece = dataclasses.replace(piece, core=None)  # of the policy that acted; this one begins with an empty memory
        if not recording.spec.turns:
            piece = dataclasses.replace(piece, acting=None)  # what opponents did is learned from too
        try:
            replay.append(piece)
        except NoStack as error:
            raise CheckpointError(f"{recording.folder}: {error}") from None
        learner.note_rewards([piece])
        learner.algorithm.observe(tensors(piece, device))
    if replay.n_step > 1 and is_data_only(learner.algorithm.plan):
        replay.cut_streams()
    rows, plan = len(replay), learner.algorithm.plan
    sequences = plan if isinstance(plan, ReplayPlan) and plan.core_size else None
    if not rows and sequences is not None:
        raise ConfigError(
            f"--data {recording.folder}: no sequence of {sequences.window} steps (--burn-in {sequences.burn_in} and "
            f"--length {sequences.length}) begins in it: it has no stream of so many steps. Ask for "
            "shorter sequences, or record more"
        )
    if not rows:
        raise ConfigError(f"--data {recording.folder}: it holds no row that can be learned from")
    line = f"{recording.steps:,} steps of {recording.spec.id} were recorded in {recording.folder}"
    if sequences is not None:
        return f"{line}; {rows:,} sequences of {sequences.window} steps can be learned from"
    if isinstance(plan, ReplayPlan) and plan.best is not None:
        kept = replay.keep_best(plan.best)
        if not kept:
            raise ConfigError(f"--filter-top: {recording.folder} holds no complete episode; leave it out")
        return f"{line}; of the complete episodes the best {kept:,} are learnt from: {len(replay):,} steps"
    return (
        line
        if rows >= recording.steps or is_data_only(plan)
        else f"{line}; the replay holds the newest {rows:,} (--capacity)"
    )
