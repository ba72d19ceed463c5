"""The learner: turns unrolls into updates of the algorithm, and returns metrics and new weights."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rltrain.algorithms.networks import products
from rltrain.algorithms.protocol import Algorithm, gives_values, observes, shares_updates, state_values
from rltrain.errors import diverged
from rltrain.learner.changes import change_settings
from rltrain.learner.feed import Feed, ReplayFeed, StreamFeed
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.trajectories import rounds
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Trajectory, Weights
from rltrain.storage.checkpoint import to_tensors

if TYPE_CHECKING:
    from rltrain.learner.data_parallel import LearnerGroup

Metrics = dict[str, torch.Tensor | float]

VALUED = 256  # observations whose values are computed at once, for a recording
MAX_PENDING = 256  # updates whose metrics are kept before they are added up


class Learner:
    """Turns deliveries of unrolls into new weights.

    Args:
        device:   of the algorithm.
        feed:     makes batches from deliveries; default: each delivery is one batch.
        learners: the learners that share each update, if there are several.

    Attributes:
        version: number of updates so far.
        seconds: time spent in `step`.
        skipped: batches that had become too old before their update.
        largest_reward: the largest absolute reward so far, of all agents of a stream together; 0 without rewards.
        newest: metrics of the newest update.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        device: torch.device,
        feed: Feed | None = None,
        learners: LearnerGroup | None = None,
    ) -> None:
        self.algorithm, self.learners = algorithm, learners
        self.feed: Feed = StreamFeed(device) if feed is None else feed
        self.version = self.skipped = 0
        self.seconds = self.largest_reward = 0.0
        self._device = device
        self._observes = observes(algorithm)
        self._observed = False  # a delivery is in the running statistics
        self._max_lag = None if isinstance(algorithm.plan, ReplayPlan) else algorithm.plan.max_lag
        self._tensors: list[tuple[dict[str, Any], str, torch.Tensor, int]] = []  # where the policy keeps its tensors
        self._arrays: dict[str, np.ndarray] = {}  # views of these tensors, by name
        self.newest: Metrics = {}
        self._pending: list[Metrics] = []  # of the newest updates, not yet in the sums
        self._sums: dict[str, tuple[float, int]] = {}  # name: (sum, number of values)

    def join(self) -> None:
        """Wait for the other learners, if there are any; from now on they take part in each update."""
        if self.learners is not None and shares_updates(self.algorithm):
            self.learners.join(self.algorithm)

    def close(self) -> None:
        """End the other learners."""
        if self.learners is not None:
            self.learners.close()

    def step(self, unrolls: list[Trajectory], progress: float) -> None:
        """Make the updates that these unrolls allow.

        Args:
            progress: fraction of the run that is done, for schedules.

        Raises:
            RunFailed: training diverged; the weights must not be used.
        """
        began = time.perf_counter()
        first = len(self._pending)  # of this delivery
        self.note_rewards(unrolls)
        is_first = not self._observed
        if is_first:
            self._observe(unrolls)
        updater = self.algorithm if self.learners is None else self.learners
        lags = not isinstance(self.feed, ReplayFeed)
        with products.learning():
            for batch in self.feed(unrolls, progress):
                lag = self.version - int(batch.version.min()) if lags else 0
                if self._max_lag is not None and lag > self._max_lag:
                    self.skipped += 1
                    continue
                update = updater.update(batch, progress)
                if update.priority is not None:
                    self.feed.reprioritise(batch, update.priority)
                self.newest = {**update.metrics, "policy_lag": float(lag)} if lags else update.metrics
                self._pending.append(self.newest)
                self.version += 1
                if len(self._pending) >= MAX_PENDING:
                    self._check(first)
                    self._add_up()
                    first = 0
        self._check(first)
        if not is_first:
            self._observe(unrolls)
        self.seconds += time.perf_counter() - began

    def change(self, changes: dict[str, Any]) -> None:
        """Give the algorithm, in all learners, new values of settings; they hold from the next update on."""
        change_settings(self.algorithm, changes)
        if self.learners is not None:
            self.learners.change(changes)

    def note_rewards(self, unrolls: list[Trajectory]) -> None:
        """Keep `largest_reward` up to date; gradients, which some actors send instead of unrolls, have no rewards."""
        for unroll in unrolls:
            reward = getattr(unroll, "reward", None)
            if reward is not None and reward.size:
                size = np.abs(reward) if reward.ndim < 3 else np.abs(reward).sum(-1)
                self.largest_reward = max(self.largest_reward, float(size.max()))

    def weights(self, step: int) -> Weights:
        """The policy's parameters and buffers for actors; on the CPU the arrays are views of its tensors."""
        policy = self.algorithm.policy
        if self._device.type != "cpu":
            state = policy.state_dict()
            return Weights(self.version, step, {name: tensor.detach().cpu().numpy() for name, tensor in state.items()})
        if not self._tensors or any(
            owner[name] is not tensor or tensor.data_ptr() != address for owner, name, tensor, address in self._tensors
        ):  # a user's network may replace a buffer by a new tensor; this check takes a tenth of the time of state_dict
            self._arrays = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
            self._tensors = [
                (owner, name, tensor, tensor.data_ptr())
                for module in policy.modules()
                for owner in (module._parameters, module._buffers)
                for name, tensor in owner.items()
                if tensor is not None
            ]
        return Weights(self.version, step, self._arrays)

    def frozen(self, step: int) -> Weights:
        """A copy of the weights, which later updates do not change."""
        weights = self.weights(step)
        return Weights(weights.version, step, {name: np.copy(array) for name, array in weights.arrays.items()})

    def state_values(self, unrolls: Trajectory) -> np.ndarray | None:
        """[T, B] values of the observations, for a recording: see `Algorithm`; None if the algorithm has none.

        With a memory there are none, because the critics' memories are not known.
        """
        if not gives_values(self.algorithm) or self.algorithm.policy.core_size:
            return None
        rows, columns = unrolls.reward.shape[:2]

        def flat(array: np.ndarray) -> torch.Tensor:
            """[T + 1, B, ...] to [T B, ...] on the device."""
            return torch.from_numpy(array[:rows].reshape(rows * columns, *array.shape[2:])).to(self._device)

        obs = tree_map(flat, unrolls.obs)
        mask = None if unrolls.action_mask is None else flat(unrolls.action_mask)
        parts = [slice(begin, begin + VALUED) for begin in range(0, rows * columns, VALUED)]
        found = [state_values(self.algorithm, _rows(obs, part), None if mask is None else mask[part]) for part in parts]
        return torch.cat(found).cpu().numpy().reshape(rows, columns)

    def metrics(self) -> dict[str, float]:
        """Means over the updates since the last call, and the metrics of the feed."""
        self._add_up()
        means = {f"learner/{name}": total / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        if self._max_lag is not None:
            means["learner/skipped"] = float(self.skipped)
        return {**means, **self.feed.metrics()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, except for the feed."""
        counters = {"version": self.version, "skipped": self.skipped, "observed": self._observed}
        return {**counters, "largest_reward": self.largest_reward, "parts": self.parts()}

    def parts(self) -> dict[str, Any]:
        """The state of each part of the algorithm; the fingerprint of a run is computed from it."""
        return {name: part.state_dict() for name, part in self.algorithm.parts().items()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.version, self.skipped = int(state["version"]), int(state.get("skipped", 0))
        self._observed = bool(state.get("observed", True))  # not in older checkpoints, nor is the next one
        self.largest_reward = float(state.get("largest_reward", 0.0))
        for name, part in self.algorithm.parts().items():
            part.load_state_dict(to_tensors(state["parts"][name]))

    def keep_statistics(self) -> None:
        """The running statistics are those of another run: the first delivery is not needed for them."""
        self._observed = True

    def _observe(self, unrolls: list[Trajectory]) -> None:
        """Update running statistics: after the updates, so that the probabilities that the actors reported are those
        of the first update; before those of the first delivery, which could not be scaled without them."""
        for delivery in rounds(unrolls) if self._observes else ():
            self.algorithm.observe(self.feed.delivery(delivery))
        if self.learners is not None:
            self.learners.observed()
        self._observed = self._observed or bool(unrolls)

    def _check(self, first: int) -> None:
        """RunFailed if a gradient norm since update `first` is not finite; one read from the device per delivery."""
        norms = [metrics["grad_norm"] for metrics in self._pending[first:] if "grad_norm" in metrics]
        if not norms or math.isfinite(_sum(norms)):
            return
        values = [float(norm) for norm in norms]
        for index, value in enumerate(values):  # the sum may overflow although each value is finite
            if not math.isfinite(value):
                raise diverged(f"the gradient of update {self.version - len(values) + index + 1} is {value}")

    def _add_up(self) -> None:
        """Add the pending metrics to the sums: one read from the device for each name."""
        for name in dict.fromkeys(name for metrics in self._pending for name in metrics):
            values = [metrics[name] for metrics in self._pending if name in metrics]
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + _sum(values), count + len(values))
        self._pending.clear()


def _rows(obs: Tree, part: slice) -> Tree:
    """Some rows of a tree of [N, *O]."""
    return tree_map(lambda leaf: leaf[part], obs)


def _sum(values: list[torch.Tensor | float]) -> float:
    """The sum of numbers and of tensors without dimensions."""
    tensors = [value.detach() for value in values if isinstance(value, torch.Tensor)]
    numbers = sum(float(value) for value in values if not isinstance(value, torch.Tensor))
    if len(tensors) == 1:
        return numbers + float(tensors[0])
    return numbers + (float(torch.stack(tensors).sum()) if tensors else 0.0)
