"""The learned weight of the entropy in soft actor-critic."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rltrain.algorithms.functions.optim import Adam, Flat


class Temperature:
    """The weight of the entropy. Its logarithm is learned, so it stays above 0."""

    def __init__(self, config: Any, device: torch.device) -> None:
        start = math.log(config.temperature) if config.temperature > 0 else -math.inf
        self.log = torch.full((1,), start, device=device)
        self._flat = Flat(self.log, torch.zeros_like(self.log))
        self._optimizer = Adam(self._flat, eps=config.adam_eps)
        self.config = config

    def value(self) -> Tensor:
        """[] the current weight, without a gradient."""
        return self.log.exp()[0]

    def update(self, surplus: Tensor, lr_fraction: float) -> None:
        """One step against the surplus [] of entropy over its target: the loss is log temperature times surplus.

        Args:
            lr_fraction: factor of the step size, from its schedule.
        """
        self._flat.grad.copy_(surplus)
        self._optimizer.update(lr_fraction * (self.config.lr_temperature or self.config.lr))

    def state_dict(self) -> dict[str, Any]:
        return {"log": self.log, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.log.copy_(state["log"])
        self._optimizer.load_state_dict(state["optimizer"])
