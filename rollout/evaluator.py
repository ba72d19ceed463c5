"""The evaluating worker: whole episodes with frozen weights, beside the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.episodes import play
from rltrain.rollout.memory import SharedMemory
from rltrain.rollout.types import Episode


@dataclass(frozen=True)
class EvaluatorJob:
    """Everything an evaluator is made from."""

    spec: EnvSpec
    make: Callable[[], Any]  # one environment
    make_policy: Callable[[], Any]
    at_random: bool = False  # against somebody who moves so


class Evaluator:
    """Plays episodes with the weights it is given."""

    def __init__(self, job: EvaluatorJob, progress: Any) -> None:
        self.job = job
        memory = SharedMemory.attach(progress) if isinstance(progress, tuple) else progress
        self._progress = memory.array(0, (1,), np.int64)
        self.policy = job.make_policy()
        self._parameters = {name: tensor.numpy() for name, tensor in self.policy.state_dict().items()}

    def evaluate(self, arrays: dict[str, np.ndarray], seeds: list[int], explore: bool) -> list[Episode]:
        """One episode per seed with these weights; exploration is off unless asked for."""
        for name, array in self._parameters.items():
            array[...] = arrays[name]

        def alive(_: Any) -> None:
            self._progress[0] += 1

        return play(
            self.job.make, self.job.spec, self.policy, seeds, explore, frame=alive, at_random=self.job.at_random
        )

    def close(self) -> None:
        """Nothing to close: environments live as long as a call."""
