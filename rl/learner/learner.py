"""The learner: holds the algorithm and the version of its weights. Unrolls in, metrics and weights out."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rltrain.algorithms.protocol import observes
from rltrain.errors import diverged
from rltrain.learner.feed import Feed, ReplayFeed, StreamFeed
from rltrain.rollout.trajectories import rounds
from rltrain.rollout.types import Trajectory, Weights
from rltrain.storage.checkpoint import to_tensors

if TYPE_CHECKING:
    from rltrain.learner.data_parallel import LearnerGroup


MOST = 256  # updates whose metrics are kept before they are summed up


class Learner:
    """Turns deliveries of unrolls into new weights.

    Args:
        algorithm: see `rltrain.algorithms.protocol.Algorithm`.
        device:    where it computes.
        feed:      where its batches come from; each unroll once where none is given.
        learners:  those that share each update, if there are several.
    """

    def __init__(
        self, algorithm: Any, device: torch.device, feed: Feed | None = None, learners: LearnerGroup | None = None
    ) -> None:
        self.algorithm = algorithm
        self.learners = learners
        self._updates: Any = algorithm if learners is None else learners
        self.version = 0
        self._device = device
        self.feed: Feed = StreamFeed(device) if feed is None else feed
        self.seconds = 0.0  # spent in updates
        self.skipped = 0  # batches that had become too old before their update
        self._observes = observes(algorithm)
        self._views: list[tuple[dict[str, Any], str, torch.Tensor, int]] = []  # where the policy keeps its tensors
        self._arrays: dict[str, np.ndarray] = {}  # the same as numpy's, by name
        self._max_lag: int | None = getattr(getattr(algorithm, "plan", None), "max_lag", None)
        self._told: list[dict[str, Any]] = []  # of the newest updates, not summed up yet
        self._sums: dict[str, tuple[float, int]] = {}

    def join(self) -> None:
        """Wait for the others, if there are several learners: from here on they go with each update."""
        if self.learners is not None:
            self.learners.join(self.algorithm)

    def close(self) -> None:
        """Let the others go."""
        if self.learners is not None:
            self.learners.close()

    def step(self, unrolls: list[Trajectory], progress: float) -> None:
        """As many updates as the unrolls buy; `progress` is the share of the run that is done, for schedules.

        Raises:
            RunFailed: training diverged; the weights are not to be used.
        """
        began = time.perf_counter()
        before = len(self._told)
        lags = not isinstance(self.feed, ReplayFeed)
        for batch in self.feed(unrolls, progress):
            lag = self.version - int(batch.version.min()) if lags else 0
            if self._max_lag is not None and lag > self._max_lag:
                self.skipped += 1
                continue
            update = self._updates.update(batch, progress)
            if update.priority is not None:
                self.feed.reprioritise(batch, update.priority)
            self._told.append(update.metrics)
            self.version += 1
            if lags:
                self._told[-1] = {**update.metrics, "policy_lag": float(lag)}
            if len(self._told) >= MOST:
                self._check(before)
                self._sum_up()
                before = 0
        self._check(before)
        for once in rounds(unrolls) if self._observes else ():
            self.algorithm.observe(self.feed.delivery(once))
        if self.learners is not None:
            self.learners.observed()
        self.seconds += time.perf_counter() - began

    def weights(self, step: int) -> Weights:
        """The policy as actors need it; arrays are views where the device is the CPU."""
        if self._device.type != "cpu":
            state = self.algorithm.policy.state_dict()
            return Weights(self.version, step, {name: tensor.detach().cpu().numpy() for name, tensor in state.items()})
        if not self._views or any(
            home[name] is not tensor or tensor.data_ptr() != address for home, name, tensor, address in self._views
        ):  # a torso of the user's may put a new tensor in a buffer's place
            self._look()
        return Weights(self.version, step, self._arrays)

    def _look(self) -> None:
        """Where the policy's tensors are; what `state_dict` tells, at a tenth of the time per update."""
        policy = self.algorithm.policy
        self._arrays = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
        self._views = [
            (home, name, tensor, tensor.data_ptr())
            for module in policy.modules()
            for home in (module._parameters, module._buffers)
            for name, tensor in home.items()
            if tensor is not None
        ]

    def frozen(self, step: int) -> Weights:
        """A copy of the weights that later updates do not touch."""
        weights = self.weights(step)
        return Weights(weights.version, step, {name: np.copy(array) for name, array in weights.arrays.items()})

    def metrics(self) -> dict[str, float]:
        """Means over the updates since the last call, and what the feed has to say."""
        self._sum_up()
        means = {f"learner/{name}": total / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        if self._max_lag is not None:
            means["learner/skipped"] = float(self.skipped)
        return {**means, **self.feed.metrics()}

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        return {"version": self.version, "parts": self.parts()}

    def parts(self) -> dict[str, Any]:
        """The state of every part of the algorithm: what the fingerprint is taken of."""
        return {name: part.state_dict() for name, part in self.algorithm.parts().items()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.version = int(state["version"])
        for name, part in self.algorithm.parts().items():
            part.load_state_dict(to_tensors(state["parts"][name]))

    def _check(self, begin: int) -> None:
        """Refuse weights that came of a gradient that is no number; looked at once per delivery, not per update."""
        norms = [told["grad_norm"] for told in self._told[begin:] if "grad_norm" in told]
        if not norms or math.isfinite(_sum(norms)):
            return
        values = [float(norm) for norm in norms]
        bad = next((at for at, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is None:  # each is finite, their sum is not
            return
        raise diverged(f"the gradient of update {self.version - len(values) + bad + 1} is {values[bad]}")

    def _sum_up(self) -> None:
        """Add the metrics of the newest updates to the sums: one reading of the device for each name."""
        names = dict.fromkeys(name for told in self._told for name in told)
        for name in names:
            values = [told[name] for told in self._told if name in told]
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + _sum(values), count + len(values))
        self._told.clear()


def _sum(values: list[Any]) -> float:
    """The sum of numbers and of tensors without dimensions."""
    tensors = [value.detach() for value in values if isinstance(value, torch.Tensor)]
    numbers = sum(float(value) for value in values if not isinstance(value, torch.Tensor))
    if len(tensors) == 1:
        return numbers + float(tensors[0])
    return numbers + (float(torch.stack(tensors).sum()) if tensors else 0.0)
