"""A vector environment whose code runs with its own settings of torch, and with gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from rltrain.envs.vector.unroll_rows import UnrollBuffer, VectorEnv
from rltrain.rollout.workers.process_state import ONE, TINY, TORCH, SeparateSettings

set_gradients, gradients = torch._C._set_grad_enabled, torch.is_grad_enabled  # names, for speed
dtype, threads, modes = torch.get_default_dtype, torch.get_num_threads, torch._C._len_torch_function_stack
dispatch_modes = torch._C._len_torch_dispatch_stack


def acting() -> Any:
    """A block in which a policy acts: in inference mode, as the functions of the networks for actors require.

    It takes 0.3 us; `torch.inference_mode` takes 0.7 us more.
    """
    return torch._C._InferenceMode(True)


class IsolatedEnv:
    """Passes each call on to a vector environment, which cannot change the results of the policy.

    The caller is within `torch.no_grad`, and only its policy is `acting`: to leave inference mode at each step costs
    4 us.

    Args:
        make: makes the vector environment.
    """

    def __init__(self, make: Callable[[], VectorEnv]) -> None:
        self._settings = SeparateSettings(TORCH)
        self._ours: list[Any] = []
        with self._isolated():
            self._env: Any = make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    @property
    def vector(self) -> VectorEnv:
        """The vector environment itself."""
        vector: VectorEnv = self._env
        return vector

    def reset(self, rows: UnrollBuffer) -> None:
        with self._isolated():
            self._env.reset(rows)

    def step(self, action: np.ndarray, rows: UnrollBuffer, t: int) -> None:
        settings = self._settings
        set_gradients(True)
        if settings.theirs is not None:
            settings.enter()
        try:
            self._env.step(action, rows, t)
        finally:  # the settings that change most are compared at each step, all of them after each unroll
            if (
                settings.theirs is not None
                or not gradients()
                or dtype() is not self._dtype
                or threads() != self._threads
                or modes()
                or dispatch_modes()
                or (ONE + TINY) - (ONE - TINY)  # 0 if the processor rounds to the nearest number
            ):
                settings.leave(self._ours)
            set_gradients(False)

    def check(self, rows: UnrollBuffer, unroll: int) -> dict[int, int]:
        """After an unroll: see `VectorEnv.check`."""
        with self._isolated():
            return self._env.check(rows, unroll)  # type: ignore[no-any-return]

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
        before = torch.is_grad_enabled()
        set_gradients(True)
        self._dtype, self._threads = dtype(), threads()
        self._ours = self._settings.enter()
        try:
            yield
        finally:
            self._settings.leave(self._ours)
            set_gradients(before)
