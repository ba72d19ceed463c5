"""Turns each delivery of unrolls into the learner's batches, one per update, as the algorithm's data plan asks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from rltrain.errors import RunFailed, diverged
from rltrain.learner.batches import from_checkpoint, join, tensors, to_checkpoint
from rltrain.rollout.replay.mixture import Mixture
from rltrain.rollout.replay.replay import Replay
from rltrain.rollout.specs import ReplayPlan, StreamPlan
from rltrain.rollout.trajectories import select_columns
from rltrain.rollout.types import Gradients, Trajectory, Transition

if TYPE_CHECKING:
    from rltrain.learner.agent_replays import AgentReplays

Block = Callable[[], dict[str, np.ndarray]]


class Feed(Protocol):
    """Where the learner takes its batches from."""

    def __call__(self, unrolls: list[Any], progress: float) -> Iterator[Any]:
        """The batches after a delivery, one per update. They are copies: actors may reuse their arrays."""

    def reprioritise(self, batch: Any, priority: Tensor) -> None:
        """Takes the absolute errors [B] of a batch, which its update computed."""

    def delivery(self, unrolls: list[Any]) -> Any:
        """The complete delivery, for `Algorithm.observe`; called after its updates, the first one before them."""

    def metrics(self) -> dict[str, float]:
        """Numbers to log, under their full names."""

    def state(self) -> tuple[dict[str, Any], dict[str, Block]]:
        """Data for a checkpoint, and functions that make immutable blocks of rows: see `Segments`."""

    def load(self, state: dict[str, Any], blocks: dict[str, Block]) -> None:
        """Restores what `state` returned."""


class StreamFeed:
    """Joins the unrolls of a delivery along B, in the order of their streams, into batches of at least `plan.wait`
    streams.

    With `plan.buffer_size` or `plan.reuse` above 1 the batches are in a circular buffer, as in IMPACT (Luo et al.
    2020): each new batch replaces the oldest and allows `reuse` updates, which use the batches in the buffer in turn.

    Args:
        plan: the algorithm's. None: a delivery is one batch, used once.
    """

    def __init__(self, device: torch.device, plan: StreamPlan | None = None) -> None:
        self._device = device
        self._plan = StreamPlan(unroll=0) if plan is None else plan
        self._buffer: list[Trajectory] = []
        self._received = self._updates = 0  # batches received, and updates in which they were used
        self._newest: Trajectory | None = None

    def __call__(self, unrolls: list[Trajectory], progress: float) -> Iterator[Trajectory]:
        if not unrolls:
            return
        self._newest = join(unrolls, self._device, self._plan.unroll)
        for batch in in_batches(self._newest, self._plan.wait):
            oldest = self._received % self._plan.buffer_size
            self._buffer[oldest : oldest + 1] = [batch]
            self._received += 1
            for _ in range(self._plan.reuse):  # so each batch is used exactly `reuse` times while it is in the buffer
                yield self._buffer[self._updates % len(self._buffer)]
                self._updates += 1

    def delivery(self, unrolls: list[Trajectory]) -> Trajectory:
        newest, self._newest = self._newest, None
        if newest is not None and len(newest.stream) == sum(len(unroll.stream) for unroll in unrolls):
            return newest
        return join(unrolls, self._device, self._plan.unroll)

    def reprioritise(self, batch: Any, priority: Tensor) -> None:
        raise ValueError("an algorithm without a replay has no priorities")

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> tuple[dict[str, Any], dict[str, Block]]:
        if self._plan.buffer_size == 1:
            return {}, {}
        kept = [to_checkpoint(batch) for batch in self._buffer]
        return {"came": self._received, "used": self._updates, "kept": kept}, {}

    def load(self, state: dict[str, Any], blocks: dict[str, Block]) -> None:
        self._received, self._updates = int(state.get("came", 0)), int(state.get("used", 0))
        self._buffer = [from_checkpoint(saved, self._device) for saved in state.get("kept", [])]


class GradientFeed:
    """Passes on the gradients that actors computed, in the order of arrival."""

    def __call__(self, unrolls: list[Gradients], progress: float) -> Iterator[Gradients]:
        yield from unrolls

    def delivery(self, unrolls: list[Gradients]) -> list[Gradients]:
        return unrolls

    def reprioritise(self, batch: Any, priority: Tensor) -> None:
        raise ValueError("gradients have no priorities")

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> tuple[dict[str, Any], dict[str, Block]]:
        return {}, {}

    def load(self, state: dict[str, Any], blocks: dict[str, Block]) -> None:
        """No-op: gradients are not kept between deliveries."""


class ReplayFeed:
    """Puts unrolls into a replay; each step after `warmup` allows `updates_per_step` updates, on samples of the replay.

    After `steps` steps exactly floor((steps - warmup) * updates_per_step) updates were made, independent of the sizes
    of deliveries. There are fewer only while the replay has nothing to sample; the missing ones follow later.

    Args:
        replay: stores the unrolls.
        plan:   the algorithm's.
        device: where the samples are needed.
    """

    def __init__(self, replay: Replay | Mixture | AgentReplays, plan: ReplayPlan, device: torch.device) -> None:
        self.replay = replay
        self.steps = 0  # delivered since the run began
        self.updates = 0  # samples returned since then
        self._plan, self._device = plan, device
        self._rate = Fraction(repr(float(plan.updates_per_step)))  # 0.29 is 29/100: no step is lost by rounding

    def __call__(self, unrolls: list[Trajectory], progress: float) -> Iterator[Any]:
        plan = self._plan
        for unroll in unrolls:
            reward = np.clip(unroll.reward, -1, 1) if plan.clip_reward else unroll.reward
            self.replay.append(dataclasses.replace(unroll, reward=reward))
            self.steps += unroll.steps
        allowed = math.floor(max(self.steps - plan.warmup, 0) * self._rate)
        if allowed and plan.whole_episodes and self.steps > plan.capacity and not len(self.replay):
            raise RunFailed(
                f"after {self.steps} steps no episode was over that the replay still held from its first step, and "
                "policies with memory learn from complete episodes. Ask for more --capacity, which is "
                f"{plan.capacity} now, or for fewer --streams"
            )
        while self.updates < allowed and len(self.replay):
            self.updates += 1
            batch = self.replay.sample(progress)
            if isinstance(batch, list):
                yield [None if of_group is None else tensors(of_group, self._device) for of_group in batch]
            else:
                yield tensors(batch, self._device)

    def reprioritise(self, batch: Transition, priority: Tensor) -> None:
        if batch.index is None:
            return
        errors = priority.detach().cpu().numpy()
        if not np.isfinite(errors).all():
            raise diverged(f"an error of update {self.updates} is {errors[~np.isfinite(errors)][0]}")
        self.replay.reprioritise(batch.index.cpu().numpy(), errors)

    def delivery(self, unrolls: list[Trajectory]) -> Trajectory:
        return join(unrolls, self._device) if len(unrolls) > 1 else tensors(unrolls[0], self._device)

    def metrics(self) -> dict[str, float]:
        return {"replay/rows": float(len(self.replay)), "replay/updates": float(self.updates)}

    def state(self) -> tuple[dict[str, Any], dict[str, Block]]:
        small, segments = self.replay.state()
        return {"steps": self.steps, "updates": self.updates, "replay": small}, segments

    def load(self, state: dict[str, Any], blocks: dict[str, Block]) -> None:
        self.steps, self.updates = int(state["steps"]), int(state["updates"])
        self.replay.load(state["replay"], blocks)


def in_batches(unrolls: Trajectory, wait: int | Literal["all"]) -> Iterator[Trajectory]:
    """A delivery cut along B into as many batches of at least `wait` streams as possible; sizes differ by 1 at most."""
    streams = len(unrolls.stream)
    count = 1 if wait == "all" else max(1, streams // wait)
    if count == 1:
        yield unrolls
        return
    for number in range(count):
        yield select_columns(unrolls, streams * number // count, streams * (number + 1) // count)
