"""What algorithms that learn from a replay have in common: their plan, slow copies, weighted losses."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import Flat, flatten
from rltrain.rollout.specs import ReplayPlan


class TargetNetwork:
    """A copy of a module that follows it: theta' += tau (theta - theta'), one operation on flat vectors.

    Buffers, constants or what a user's torso keeps, are copied when it follows; the copy is in use (`eval`), so that it
    keeps no statistics of its own.

    Args:
        module: what is followed.
        flat:   its parameters, all of them and in their order.
    """

    def __init__(self, module: nn.Module, flat: Flat) -> None:
        self.module: Any = copy.deepcopy(module).eval()
        both = zip(self.module.modules(), module.modules(), strict=True)
        self._buffers = [(mine._buffers, theirs._buffers) for mine, theirs in both]
        self._param, self._of = flatten(self.module).param, flat.param
        for param in self.module.parameters():
            param.grad = None
        self.module.requires_grad_(False)

    @torch.no_grad()
    def follow(self, tau: float) -> None:
        """One step; tau 1 copies."""
        self._param.lerp_(self._of, tau)
        for mine, theirs in self._buffers:
            for name, followed in theirs.items():
                kept = mine.get(name)
                if kept is None or followed is None:  # made, or taken away, since
                    mine[name] = None if followed is None else followed.clone()
                else:
                    kept.copy_(followed)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.module.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state)


def replay_plan(config: BaseModel, **changes: Any) -> ReplayPlan:
    """The replay plan with the values of the settings of the same names; `changes` replace single values."""
    settings = dict(config)
    if not settings.get("prioritized"):
        settings["alpha"] = 0.0
    names = [field.name for field in dataclasses.fields(ReplayPlan) if field.name in settings]
    return ReplayPlan(**{name: settings[name] for name in names} | changes)


def priority(error: Tensor, index: Tensor | None) -> Tensor | None:
    """[B] mean over the critics of their absolute errors [n, B], for prioritized replay; None if it is off."""
    return None if index is None else error.abs().mean(0)
