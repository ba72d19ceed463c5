"""What algorithms that learn from a replay have in common: their plan, slow copies, weighted losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rltrain.algorithms.functions.optim import Flat, flatten
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.off_policy.continuous_policy import deterministic
from rltrain.rollout.specs import ReplayPlan
from rltrain.rollout.tree import Tree


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


def replay_plan(config: Any) -> ReplayPlan:
    """What the settings of an algorithm ask of the replay."""
    return ReplayPlan(
        unroll=config.unroll,
        capacity=config.capacity,
        batch=config.batch,
        warmup=config.warmup,
        updates_per_step=config.updates_per_step,
        gamma=config.gamma,
        n_step=config.n_step,
        alpha=config.alpha if config.prioritized else 0.0,
        beta=config.beta,
        priority_eps=config.priority_eps,
        random_start=config.random_start,
        overlap=config.overlap,
        clip_reward=getattr(config, "clip_reward", False),
    )


def squared_loss(error: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Half the squared error [n, B], weighted [B], mean over the batch and sum over the n critics.

    Returns:
        The loss [], and its gradient [n, B, 1] along what the critics put out.
    """
    slope = error * (1.0 / error.shape[-1]) if weight is None else error * (weight * (1.0 / error.shape[-1]))
    return torch.dot(slope.view(-1), error.view(-1)).mul_(0.5), slope.unsqueeze(-1)


def uphill(critics: EncoderMLP, obs: Tree, actor: Any) -> tuple[Tensor, Callable[[Tensor], None]]:
    """The loss of a deterministic policy, minus the mean of what the first critic expects of its actions.

    Args:
        obs:   normalised.
        actor: the policy's network; a `EncoderMLP` is walked back without autograd.

    Returns:
        The loss [], and its backward pass.
    """
    action, down = _acts(actor, obs)
    walk = critics.walk(obs, action.detach(), frozen=True, first=True)

    def backward(loss: Tensor) -> None:
        slope = torch.full_like(walk.out, -1.0 / len(action))
        down(walk.back_to(slope, action.shape[-1]))

    return -walk.out.mean(), backward


def _acts(actor: Any, obs: Tree) -> tuple[Tensor, Callable[[Tensor], None]]:
    """The actions [B, A] of a deterministic policy's network, and the way back from a gradient along them."""
    if not isinstance(actor, EncoderMLP):
        action = deterministic(actor, obs)
        return action, action.backward
    walk = actor.walk(obs)
    action = torch.tanh(walk.out[0])
    return action, lambda slope: walk.back(torch.ops.aten.tanh_backward(slope, action).unsqueeze(0))


def priority(error: Tensor, index: Tensor | None) -> Tensor | None:
    """[B] what the replay's priorities are made of: the mean size of the critics' errors [n, B]; None if not asked."""
    return None if index is None else error.abs().mean(0)
