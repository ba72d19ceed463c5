"""A vector environment whose code runs with its own settings of torch, and outside of the actor's inference mode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from rltrain.envs.vector.unroll_rows import UnrollBuffer, VectorEnv
from rltrain.rollout.workers.process_state import TORCH, SeparateSettings


class IsolatedEnv:
    """Passes each call on to a vector environment, which can neither change the actor's results nor its gradients.

    Args:
        make: makes the vector environment.
    """

    def __init__(self, make: Callable[[], VectorEnv]) -> None:
        self._settings = SeparateSettings(TORCH)
        self._outside = torch.inference_mode(False)
        with self._isolated():
            self._env: Any = make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, rows: UnrollBuffer) -> None:
        with self._isolated():
            self._env.reset(rows)

    def step(self, action: np.ndarray, rows: UnrollBuffer, t: int) -> None:
        settings, ours = self._settings, self._ours
        with self._outside:
            if settings.differ:
                settings.enter()
            try:
                self._env.step(action, rows, t)
            finally:
                settings.leave(ours)

    def state(self) -> list[dict[str, Any]]:
        with self._isolated():
            return self._env.state()  # type: ignore[no-any-return]

    def load(self, state: list[dict[str, Any]], rows: UnrollBuffer) -> None:
        with self._isolated():
            self._env.load(state, rows)

    def close(self) -> None:
        with self._isolated():
            self._env.close()

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        with self._outside:
            self._ours = self._settings.enter()
            try:
                yield
            finally:
                self._settings.leave(self._ours)
