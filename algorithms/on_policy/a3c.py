"""Asynchronous advantage actor-critic: actors make the gradients, the learner applies them as they come."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rltrain.algorithms.functions.losses import masked_mean, squared_error
from rltrain.algorithms.functions.optim import flatten, linear, make_optimizer
from rltrain.algorithms.functions.returns import lambda_returns
from rltrain.algorithms.on_policy.settings import A3CConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import GradientPlan
from rltrain.rollout.trajectories import map_arrays
from rltrain.rollout.tree import unflatten
from rltrain.rollout.types import Gradients, Trajectory, discounts, traces


class A3C:
    """Asynchronous advantage actor-critic, Mnih et al. 2016 (arXiv:1602.01783), algorithm S3.

    Each actor bootstraps, computes and clips gradients with the weights that acted; meanwhile those of the learner move
    on, and it applies the gradients nevertheless, one after the other in the order in which they come, with one shared
    optimiser. `learner/policy_lag` says how many updates lay between. A gradient that an actor did not finish is not
    applied in part. Networks that keep running statistics, as batch normalisation does, are refused: gradients do not
    carry them.

    Deviations: an actor steps several streams, and its losses are means over them; the optimiser lives in one process
    and its steps do not race each other, as Hogwild's would. A time limit is not a death.
    """

    def __init__(self, spec: EnvSpec, config: A3CConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = GradientPlan(
            unroll=config.unroll,
            reduce=Reduce(config, seed),
            overlap=config.overlap,
            max_in_flight=config.max_in_flight,
            max_lag=config.max_lag,
        )
        policy = build(policy_factory(config.policy), spec, config, streams, seed)
        if kept := statistics(policy, spec):
            raise ValueError(
                f"a3c: {kept[0]} is a running statistic, as batch normalisation keeps them; it would stay with the "
                "actor that made the gradient: use layer or group normalisation, or another algorithm"
            )
        self.policy = placed(policy, device)
        self.optimizer = make_optimizer(flatten(self.policy), config)
        self._grads = {name: param.grad for name, param in self.policy.named_parameters() if param.requires_grad}

    def update(self, gradients: Gradients, progress: float) -> Update:
        """Apply what one actor made of one unroll; nothing where no row of it was valid."""
        lr = linear(self.config.lr, self.config.lr_end, progress)
        if gradients.arrays:
            for name, grad in self._grads.items():
                grad.copy_(torch.from_numpy(gradients.arrays[name]))
            self.optimizer.update(lr)
        return Update({**gradients.metrics, "lr": lr})

    def observe(self, gradients: list[Gradients]) -> None:
        """There are no running statistics: observations stay with the actors."""

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold."""
        return {"policy": self.policy, "optimizer": self.optimizer}


@dataclass(frozen=True)
class Reduce:
    """From an unroll to gradients, in the actor, with the weights that acted. Picklable."""

    config: A3CConfig
    seed: int = 0  # of the run's learner

    def __call__(self, policy: Any, unroll: Trajectory) -> Gradients:
        """Gradients of the loss of all valid rows, clipped by their global norm; none where there is no such row."""
        batch = map_arrays(torch.from_numpy, unroll)  # they share memory
        params = {name: param for name, param in policy.named_parameters() if param.requires_grad}
        arrays, metrics = {}, dict[str, float]()
        if batch.valid.any():
            with learning(policy, self.drawn(unroll)):
                loss, told = self.loss(policy, batch)
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
            grads = tuple(torch.zeros_like(p) if g is None else g for p, g in zip(params.values(), grads, strict=True))
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
            bound = self.config.max_grad_norm
            scale = (bound / (norm + 1e-6)).clamp(max=1.0) if bound > 0 else torch.ones(())
            arrays = {name: (grad * scale).numpy() for name, grad in zip(params, grads, strict=True)}
            metrics = {name: float(value.detach()) for name, value in {**told, "grad_norm": norm}.items()}
        return Gradients(
            arrays=arrays,
            metrics=metrics,
            version=unroll.version,
            stream=unroll.stream,
            row=unroll.row,
            rows=unroll.rows,
            steps=unroll.steps,
            episodes=unroll.episodes,
        )

    def drawn(self, unroll: Trajectory) -> int:
        """What this unroll's dropout is drawn from: its place in its streams, whoever acted."""
        place = np.random.SeedSequence((self.seed, int(unroll.stream[0]), int(unroll.row[0])))
        return int(place.generate_state(1)[0])

    def loss(self, policy: Any, unroll: Trajectory) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Policy gradient, value loss and entropy bonus; the returns bootstrap from the actor's own values."""
        config, valid = self.config, unroll.valid  # [T, B]
        core = None if unroll.core is None else unroll.core[0]  # [B, H] before row 0
        dist, value = policy.forward(unroll.obs, unroll.action_mask, core, unroll.first)  # over T+1 rows
        values = value.detach()
        reward = policy.scaled(unroll.reward)
        target = lambda_returns(reward, values, discounts(unroll, config.gamma), traces(unroll, config.lam))  # [T, B]
        padded = torch.cat([unroll.action, unroll.action[-1:]])  # [T+1, B, *A]; the last row bootstraps only
        loss_policy = -masked_mean(dist.log_prob(padded)[:-1] * (target - values[:-1]), valid)
        loss_value = squared_error(value[:-1], target, valid)
        entropy = masked_mean(dist.entropy()[:-1], valid)
        loss = loss_policy + config.value * loss_value - config.entropy * entropy
        return loss, {"loss_policy": loss_policy, "loss_value": loss_value, "entropy": entropy}


@contextlib.contextmanager
def learning(policy: Any, seed: int) -> Iterator[None]:
    """Whatever of a user's network differs between learning and use learns, with torch's random numbers from `seed`."""
    generator, mode = torch.default_generator, policy.training
    state = generator.get_state()
    generator.manual_seed(seed)
    policy.train()
    try:
        yield
    finally:
        policy.train(mode)
        generator.set_state(state)


def statistics(policy: Any, spec: EnvSpec) -> list[str]:
    """The names of buffers that learning writes to in a forward pass."""
    tried = copy.deepcopy(policy)
    before = {name: buffer.clone() for name, buffer in tried.named_buffers()}
    if before:
        rows = [torch.zeros(2, 4, *leaf.shape, dtype=getattr(torch, leaf.dtype)) for leaf in spec.leaves()]
        mask = torch.ones(2, 4, spec.action.mask_size, dtype=torch.bool) if spec.action_mask else None
        core = torch.zeros(4, tried.core_size) if tried.core_size else None
        with torch.no_grad(), learning(tried, 0):
            tried.forward(unflatten(spec.obs, rows), mask, core, torch.zeros(2, 4, dtype=torch.bool))
    return [name for name, buffer in tried.named_buffers() if not torch.equal(buffer, before[name])]
