"""The least that learns from a replay: linear values of actions, and noise that no algorithm would want."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import rltrain
from rltrain.algorithms.protocol import Act, Noise, Stateful, Update
from rltrain.algorithms.registry import build, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.tree import Tree, leaves
from rltrain.rollout.types import Trajectory, Transition


class TinyConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    streams: int = Field(3, ge=1)
    unroll: int = Field(4, ge=1)
    capacity: int = Field(1000, ge=1)
    batch: int = Field(8, ge=1)
    warmup: int = Field(30, ge=0)
    updates_per_step: float = Field(0.5, ge=0)
    random_start: bool = True
    overlap: bool = False
    wait: int | Literal["all"] = "all"
    gamma: float = 0.9
    n_step: int = 1
    length: int = 1
    alpha: float = 0.0
    lr: float = 0.01
    idle: bool = False  # updates do nothing at all
    policy: str = "tiny"


class TinyPolicy(nn.Module):
    """Discrete or Box actions from the first leaf of an observation."""

    core_size = 0
    sequence = 1

    def __init__(self, spec: EnvSpec, config: TinyConfig, streams: int, generator: torch.Generator) -> None:
        super().__init__()
        leaf = spec.leaves()[0]
        size = int(torch.Size(leaf.shape).numel())
        self.box = spec.action.kind == "box"
        outputs = int(torch.Size(spec.action.shape).numel()) if self.box else spec.action.mask_size
        self.shape = spec.action.shape
        self.noise = Noise("normal", outputs, stream=True)
        self.weight = nn.Parameter(torch.randn(outputs, size, generator=generator) * 0.1)
        self.register_buffer("scale", torch.linspace(0.1, 1.0, streams))  # of a stream's noise
        self.register_buffer("seen", torch.zeros(size, dtype=torch.float64))

    def forward(self, obs: Tree) -> Tensor:
        x = leaves(obs)[0]
        return x.reshape(x.shape[0], -1).float() @ self.weight.T

    def act(self, obs: Tree, core: Tensor | None, action_mask: Tensor | None, noise: Tensor, explore: bool) -> Act:
        value = self.forward(obs)
        if explore:
            value = value + noise[:, :-1] * self.scale[noise[:, -1].long()][:, None]
        if action_mask is not None:
            value = value.masked_fill(~action_mask, -1e9)
        action = value.clamp(-1, 1).reshape(-1, *self.shape) if self.box else value.argmax(-1)
        return Act(action, {}, core)


class Tiny:
    """One step down the gradient of the squared error of a one-action value, for each sample."""

    def __init__(self, spec: EnvSpec, config: TinyConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        names = ("unroll", "capacity", "batch", "warmup", "updates_per_step", "random_start", "overlap", "wait")
        names += ("gamma", "n_step", "length", "alpha")
        self.plan = ReplayPlan(**{name: getattr(config, name) for name in names})
        self.policy: Any = build(policy_factory(config.policy), spec, config, streams, seed).to(device)
        self.observed = 0  # deliveries

    def update(self, batch: Transition, progress: float) -> Update:
        if self.config.idle:
            return Update()
        value = self.policy.forward(batch.obs)
        with torch.no_grad():
            target = batch.reward + batch.discount * self.policy.forward(batch.next_obs).max(-1).values
        chosen = value.mean(-1) if self.policy.box else value.gather(-1, batch.action[:, None]).squeeze(-1)
        error = target - chosen
        weight = 1.0 if batch.weight is None else batch.weight
        (grad,) = torch.autograd.grad((weight * error.square()).mean(), self.policy.weight)
        norm = grad.norm()
        with torch.no_grad():
            self.policy.weight -= self.config.lr * grad / norm.clamp_min(1.0)
        return Update({"grad_norm": norm}, error.detach().abs())

    def observe(self, unrolls: Trajectory) -> None:
        self.observed += 1
        if not self.config.idle:
            x = leaves(unrolls.obs)[0][:-1]
            self.policy.seen += x.reshape(-1, self.policy.seen.numel()).double().sum(0)

    def parts(self) -> dict[str, Stateful]:
        return {"policy": self.policy}


NAME = "tiny"  # of the algorithm and of its policy
rltrain.register_policy(NAME, TinyPolicy)
rltrain.register_algorithm(NAME, Tiny, TinyConfig)
