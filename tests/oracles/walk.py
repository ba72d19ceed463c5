"""Walks through games of several agents, for tests of what their rows hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from rltrain.envs.make import read_spec, resolve
from rltrain.envs.vector.serial_multi import SerialMultiVectorEnv
from rltrain.envs.vector.unroll_rows import UnrollBuffer
from rltrain.rollout.buffers import empty_rows


class Walk:
    """One stream, stepped by hand."""

    def __init__(self, env: Any, seed: int = 0, steps: int = 20, **kwargs: Any) -> None:
        source = resolve(env, kwargs)
        self.spec = read_spec(source, seed)
        self.env = SerialMultiVectorEnv(source.make, self.spec, [0], [seed])
        self.rows: UnrollBuffer = empty_rows(self.spec, steps, 1)
        self.env.reset(self.rows)
        self.t = 0

    def step(self, *action: Any) -> None:
        self.env.step(np.array([action]), self.rows, self.t)
        self.t += 1
