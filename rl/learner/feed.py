"""Between delivery and update: which batches a delivery of unrolls buys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from rltrain.errors import RunFailed, diverged
from rltrain.learner.batches import from_checkpoint, join, tensors, to_checkpoint
from rltrain.rollout.specs import ReplayPlan, StreamPlan
from rltrain.rollout.trajectories import select_columns
from rltrain.rollout.types import Trajectory, Transition

Block = Callable[[], dict[str, np.ndarray]]


class Feed(Protocol):
    """What the learner takes batches from."""

    def __call__(self, unrolls: list[Trajectory], progress: float) -> Iterator[Any]:
        """The batches that a delivery buys, one for each update; arrays of actors may be reused afterwards."""

    def reprioritise(self, batch: Any, priority: Tensor) -> None:
        """The absolute errors [B] of a batch, as its update found them."""

    def delivery(self, unrolls: list[Trajectory]) -> Trajectory:
        """The whole delivery, as `Algorithm.observe` gets it; asked for after the updates."""

    def metrics(self) -> dict[str, float]:
        """What there is to log, under full names."""

    def state(self) -> tuple[dict[str, Any], dict[str, Block]]:
        """What a checkpoint must hold, and blocks of rows by name that do not change any more: see `segments`."""

    def load(self, state: dict[str, Any], blocks: dict[str, Block]) -> None:
        """Go on from `state`."""


class StreamFeed:
    """The unrolls of a delivery, joined along B in the order of their streams: one batch, or as many as `plan.wait`
    streams make, all of a size.

    With `plan.buffer_size` or `plan.reuse` above 1 the batches are in a circular buffer, as in IMPACT (Luo et al.
    2020): each new batch replaces the oldest and allows `reuse` updates, which use the batches in the buffer in turn.

    Args:
        plan: the algorithm's; without one a delivery is one batch, used once.
    """

    def __init__(self, device: torch.device, plan: StreamPlan | None = None) -> None:
        self._device = device
        self._unroll = 0 if plan is None else plan.unroll
        self._wait = "all" if plan is None else plan.wait
        self._reuse = 1 if plan is None else plan.reuse
        self._kept: list[Trajectory] = []
        self._most = 1 if plan is None else plan.buffer_size
        self._came = self._used = 0  # batches that came in, and updates they were used for
        self._newest: Trajectory | None = None

    def __call__(self, unrolls: list[Trajectory], progress: float) -> Iterator[Trajectory]:
        if not unrolls:
            return
        self._newest = join(unrolls, self._device, self._unroll)
        for batch in in_batches(self._newest, self._wait):
            place = self._came % self._most
            self._kept[place : place + 1] = [batch]
            self._came += 1
            for _ in range(self._reuse):  # while a batch is kept the turn comes to it exactly `reuse` times
                yield self._kept[self._used % len(self._kept)]
                self._used += 1

    def delivery(self, unrolls: list[Trajectory]) -> Trajectory:
        newest, self._newest = self._newest, None
        if newest is not None and len(newest.stream) == sum(len(unroll.stream) for unroll in unrolls):
            return newest
        return join(unrolls, self._device, self._unroll)

    def reprioritise(self, batch: Any, priority: Tensor) -> None:
        raise ValueError("an algorithm without a replay has no priorities")

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> tuple[dict[str, Any], dict[str, Block]]:
        if self._most == 1:
            return {}, {}
        kept = [to_checkpoint(batch) for batch in self._kept]
        return {"came": self._came, "used": self._used, "kept": kept}, {}

    def load(self, state: dict[str, Any], blocks: dict[str, Block]) -> None:
        self._came, self._used = int(state.get("came", 0)), int(state.get("used", 0))
        self._kept = [from_checkpoint(saved, self._device) for saved in state.get("kept", [])]


class GradientFeed:
    """What actors made of their unrolls, each as it came."""

    def __call__(self, unrolls: list[Any], progress: float) -> Iterator[Any]:
        yield from unrolls

    def delivery(self, unrolls: list[Any]) -> Any:
        return unrolls

    def reprioritise(self, batch: Any, priority: Tensor) -> None:
        raise ValueError("gradients have no priorities")

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> tuple[dict[str, Any], dict[str, Block]]:
        return {}, {}

    def load(self, state: dict[str, Any], blocks: dict[str, Block]) -> None:
        """Nothing is kept between deliveries."""


class ReplayFeed:
    """Off-policy: unrolls go into a replay, and each step after `warmup` earns `updates_per_step` samples of it.

    After `steps` steps exactly floor((steps - warmup) * updates_per_step) samples were handed out since the run began,
    however the steps were delivered; fewer only while nothing can be sampled yet, and those are made up for.

    Args:
        replay: what keeps the unrolls; see `rltrain.rollout.replay.replay.Replay`.
        plan:   the algorithm's.
        device: where samples are wanted.
    """

    def __init__(self, replay: Any, plan: ReplayPlan, device: torch.device) -> None:
        self.replay = replay
        self.steps = 0  # delivered since the run began
        self.updates = 0  # samples handed out since then
        self._warmup = plan.warmup
        self._clip = plan.clip_reward
        self._whole_episodes, self._capacity = plan.whole_episodes, plan.capacity
        self._rate = Fraction(repr(float(plan.updates_per_step)))  # 0.29 is 29/100: no step is rounded away
        self._device = device

    def __call__(self, unrolls: list[Trajectory], progress: float) -> Iterator[Any]:
        for unroll in unrolls:
            clipped = dataclasses.replace(unroll, reward=np.clip(unroll.reward, -1, 1)) if self._clip else unroll
            self.replay.append(clipped)
            self.steps += unroll.steps
        earned = math.floor(max(self.steps - self._warmup, 0) * self._rate)
        if earned and self._whole_episodes and self.steps > self._capacity and not len(self.replay):
            raise RunFailed(
                f"after {self.steps} steps no episode was over that the replay still held from its first step, and "
                "agents that remember learn from whole ones. Ask for more --capacity, which is "
                f"{self._capacity} now, or for fewer --streams"
            )
        while self.updates < earned and len(self.replay):
            self.updates += 1
            yield tensors(self.replay.sample(progress), self._device)

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
        kept = self.replay.state()
        return {"steps": self.steps, "updates": self.updates, "replay": kept["small"]}, kept["segments"]

    def load(self, state: dict[str, Any], blocks: dict[str, Block]) -> None:
        self.steps, self.updates = int(state["steps"]), int(state["updates"])
        self.replay.load({"small": state["replay"], "segments": blocks})


def in_batches(unrolls: Trajectory, wait: int | Literal["all"]) -> Iterator[Trajectory]:
    """Pieces of a delivery along B: as many as have `wait` streams at least, their sizes differing by one at most."""
    streams = len(unrolls.stream)
    pieces = 1 if wait == "all" else max(1, streams // wait)
    if pieces == 1:
        yield unrolls
        return
    for piece in range(pieces):
        yield select_columns(unrolls, streams * piece // pieces, streams * (piece + 1) // pieces)
