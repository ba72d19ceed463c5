"""What replay-based algorithms share: critics, target networks, the replay plan, priorities."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import Flat, flatten
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.networks.memory import History
from rltrain.algorithms.networks.normalized_mlp import Norm
from rltrain.algorithms.off_policy.sequences import sequence_priority
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.types import Transition


class TargetNetwork:
    """A copy of a module that follows it: theta' += tau (theta - theta'), one operation on flat vectors.

    Each step also copies the buffers (constants, statistics of a user's torso). The copy is in eval mode, so it updates
    no statistics itself.

    Args:
        module: the module to follow.
        flat:   all its parameters, in their order.
    """

    def __init__(self, module: nn.Module, flat: Flat) -> None:
        self.module: Any = copy.deepcopy(module).eval()
        pairs = zip(self.module.modules(), module.modules(), strict=True)
        self._buffers = [(own._buffers, source._buffers) for own, source in pairs]
        self._param, self._source = flatten(self.module).param, flat.param
        for param in self.module.parameters():
            param.grad = None
        self.module.requires_grad_(False)

    @torch.no_grad()
    def follow(self, tau: float) -> None:
        """One step of the parameters; tau = 1 copies them."""
        self._param.lerp_(self._source, tau)
        for own, source in self._buffers:
            for name, buffer in source.items():
                copied = own.get(name)
                if copied is None or buffer is None:  # created or removed since the last step
                    own[name] = None if buffer is None else buffer.clone()
                else:
                    copied.copy_(buffer)

    def follow_on_schedule(self, tau: float | None, every: int | None, updates: int) -> None:
        """After update number `updates`: one step with `tau`; if it is None, a copy every `every` updates (0: none)."""
        if tau is not None:
            self.follow(tau)
        elif every and updates % every == 0:
            self.follow(1.0)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.module.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state)


def make_critics(
    spec: EnvSpec, config: Any, inputs: int, outputs: int, generator: torch.Generator, norm: Norm | None = None
) -> EncoderMLP:
    """The critics of SAC, TD3 and their kin, with the number, the widths and the layers of the settings.

    Args:
        inputs: numbers per row in addition to the observation's features.
        norm:   of the hidden layers; None: layer normalisation if the settings ask for it.
    """
    if norm is None:
        norm = "layer" if config.layer_norm else "none"
    dropout = 0.0 if norm == "batch" else config.dropout
    return EncoderMLP(spec, config, inputs, outputs, config.critics, generator, config.widths_q, norm, dropout)


def replay_plan(config: BaseModel, **changes: Any) -> ReplayPlan:
    """The replay plan with the values of the settings of the same names; `changes` replace single values.

    `core_size` is the policy's. With `memory` the replay keeps its recurrent state, and samples are sequences.

    Raises:
        ValueError: one line: the settings ask for a memory, and the policy has none.
    """
    fields = [field.name for field in dataclasses.fields(ReplayPlan)]
    settings = {**{name: getattr(config, name) for name in fields if hasattr(config, name)}, **dict(config)}
    if "burn_in" in settings:
        if settings["memory"] == "none":
            changes |= {"length": 1, "burn_in": 0, "core_size": 0}
        elif not changes["core_size"]:
            raise ValueError(f"policy {settings['policy']} has no memory: set memory to none")
    if not settings.get("prioritized"):
        settings["alpha"] = 0.0
    return ReplayPlan(**{name: settings[name] for name in fields if name in settings} | changes)


def priority(error: Tensor, batch: Transition) -> Tensor | None:
    """[B] mean over the critics of their absolute errors [n, B], for prioritized replay; None if it is off.

    With memory the errors are [n, N], and the result has a number for each sequence.
    """
    if batch.index is None:
        return None
    error = error.abs().mean(0)
    return sequence_priority(error, batch.obs) if isinstance(batch.obs, History) else error
