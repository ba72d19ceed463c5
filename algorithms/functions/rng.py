"""A random generator that can be written into a checkpoint."""

from __future__ import annotations

from typing import Any

import torch


class Rng:
    """Torch's generator on the CPU, with a state_dict. Every device then shuffles alike."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["state"])
