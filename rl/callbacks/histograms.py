"""A callback that writes histograms of weights and gradients to TensorBoard."""

from __future__ import annotations

from typing import Any

from rltrain.callbacks.callback import Callback
from rltrain.callbacks.run_view import RunView
from rltrain.errors import ConfigError


class Histograms(Callback):
    """Every `every` steps: `weights/NAME` and `gradients/NAME` of each parameter of the networks in training.

    Args:
        every: steps between two sets of histograms.
    """

    def __init__(self, every: int = 10_000) -> None:
        if every < 1:
            raise ConfigError(f"Histograms: every must be at least 1, got {every}")
        self.every = every
        self.next = every

    def on_update(self, run: RunView) -> None:
        if run.steps < self.next:
            return
        self.next = (run.steps // self.every + 1) * self.every
        for part, module in run.modules.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    run.histogram(f"weights/{part}.{name}", parameter)
                    if run.updates and parameter.grad is not None:
                        run.histogram(f"gradients/{part}.{name}", parameter.grad)

    def state(self) -> dict[str, Any]:
        return {"next": self.next}
