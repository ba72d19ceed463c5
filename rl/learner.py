"""The learner: holds the algorithm and the version of its weights. Unrolls in, metrics and weights out."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

from rl.checkpoint import to_tensors
from rl.errors import RunFailed
from rl.feed import StreamFeed
from rollout.types import Trajectory, Weights


class Learner:
    """Turns deliveries of unrolls into new weights."""

    def __init__(self, algorithm: Any, device: torch.device) -> None:
        self.algorithm = algorithm
        self.version = 0
        self.feed = StreamFeed(device)
        self.seconds = 0.0  # spent in updates
        self._sums: dict[str, tuple[Any, int]] = {}

    def step(self, unrolls: list[Trajectory], progress: float) -> None:
        """As many updates as the unrolls buy; `progress` is the share of the run that is done, for schedules."""
        began = time.perf_counter()
        for batch in self.feed(unrolls):
            update = self.algorithm.update(batch, progress)
            norm = update.metrics.get("grad_norm", 0.0)
            if not math.isfinite(norm):
                raise RunFailed(
                    f"training diverged: the gradient of update {self.version + 1} is {float(norm)}. Go on from "
                    "the last checkpoint with --resume, or begin anew with a smaller --lr, --max-grad-norm, "
                    "--normalize-obs or --normalize-return"
                )
            self.algorithm.observe(batch)
            self._record(update.metrics)
            self.version += 1
            self._record({"policy_lag": float(self.version - 1 - int(batch.version.min()))})
        self.seconds += time.perf_counter() - began

    def weights(self, step: int) -> Weights:
        """The policy as actors need it; arrays are views where the device is the CPU."""
        state = self.algorithm.policy.state_dict()
        return Weights(self.version, step, {name: tensor.detach().cpu().numpy() for name, tensor in state.items()})

    def frozen(self, step: int) -> Weights:
        """A copy of the weights that later updates do not touch."""
        weights = self.weights(step)
        return Weights(weights.version, step, {name: np.copy(array) for name, array in weights.arrays.items()})

    def metrics(self) -> dict[str, float]:
        """Means over the updates since the last call."""
        means = {f"learner/{name}": float(total) / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        return means

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

    def _record(self, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
