"""Asynchronous advantage actor-critic: actors compute gradients, the learner applies each one as it arrives."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rltrain.algorithms.functions.losses import masked_mean, squared_error
from rltrain.algorithms.functions.optim import flatten, linear, make_optimizer
from rltrain.algorithms.functions.returns import lambda_returns
from rltrain.algorithms.on_policy.actor_critic import ActorCritic, evaluate_actions
from rltrain.algorithms.on_policy.settings import A3CConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import GradientPlan
from rltrain.rollout.trajectories import map_arrays
from rltrain.rollout.tree import unflatten
from rltrain.rollout.types import Gradients, Trajectory, discounts, traces


class A3C:
    """Asynchronous advantage actor-critic, Mnih et al. 2016 (arXiv:1602.01783), algorithm S3.

    Each actor bootstraps, computes gradients and clips them with the weights that acted. Meanwhile the learner's
    weights change; it still applies the gradients, in the order of their arrival, with one shared optimizer.
    `learner/policy_lag` is the number of updates in between. The gradient of an unfinished unroll is never applied.
    Networks that update buffers in training, as batch normalisation does, are refused: gradients do not carry buffers.

    Deviations: an actor steps several streams, and its losses are means over them; the optimizer lives in one process,
    so that its steps do not race as in Hogwild. After a time limit the return is bootstrapped.
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
        self.policy: ActorCritic = build_policy(spec, config, device, seed, streams)
        if buffers := updated_buffers(self.policy, spec):
            raise ValueError(
                f"a3c: {buffers[0]} is a running statistic, as batch normalisation keeps them; it would stay with the "
                "actor that made the gradient: use layer or group normalisation, or another algorithm"
            )
        self.optimizer = make_optimizer(flatten(self.policy), config)
        self._grads = {name: param.grad for name, param in self.policy.named_parameters() if param.requires_grad}

    def update(self, gradients: Gradients, progress: float) -> Update:
        """Apply the gradients of one unroll; there are none if no row of it was valid."""
        lr = linear(self.config.lr, self.config.lr_end, progress)
        if gradients.arrays:
            for name, grad in self._grads.items():
                assert grad is not None
                grad.copy_(torch.from_numpy(gradients.arrays[name]))
            self.optimizer.update(lr)
        return Update({**gradients.metrics, "lr": lr})

    def observe(self, gradients: list[Gradients]) -> None:
        """No running statistics: the observations stay with the actors."""

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold."""
        return {"policy": self.policy, "optimizer": self.optimizer}


@dataclass(frozen=True)
class Reduce:
    """Computes the gradients of an unroll, in the actor, with the weights that acted. Picklable."""

    config: A3CConfig
    seed: int = 0  # of the run's learner

    def __call__(self, policy: ActorCritic, unroll: Trajectory) -> Gradients:
        """Gradients of the loss of all valid rows, clipped by their global norm; none if no row is valid."""
        batch = map_arrays(torch.from_numpy, unroll)  # tensors that share the memory of the arrays
        arrays, numbers = dict[str, np.ndarray](), dict[str, float]()
        if batch.valid.any():
            with train_mode(policy, self.dropout_seed(unroll)):
                loss, metrics = self.loss(policy, batch)
            params = {name: param for name, param in policy.named_parameters() if param.requires_grad}
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
            limit = self.config.max_grad_norm
            scale = (limit / (norm + 1e-6)).clamp(max=1.0) if limit > 0 else torch.ones(())
            arrays = {name: (grad * scale).numpy() for name, grad in zip(params, grads, strict=True)}
            numbers = {name: float(value.detach()) for name, value in {**metrics, "grad_norm": norm}.items()}
        return Gradients(
            arrays=arrays,
            metrics=numbers,
            version=unroll.version,
            stream=unroll.stream,
            row=unroll.row,
            rows=unroll.rows,
            steps=unroll.steps,
            episodes=unroll.episodes,
        )

    def dropout_seed(self, unroll: Trajectory) -> int:
        """A seed that depends on the unroll's first stream and row, not on the actor."""
        sequence = np.random.SeedSequence((self.seed, int(unroll.stream[0]), int(unroll.row[0])))
        return int(sequence.generate_state(1)[0])

    def loss(self, policy: ActorCritic, unroll: Trajectory) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy gradient, value loss and entropy bonus; the returns are bootstrapped from the actor's own values."""
        config, valid = self.config, unroll.valid  # [T, B]
        dist, log_prob, value = evaluate_actions(policy, unroll)
        reward, values = policy.scaled(unroll.reward), value.detach()  # [T, B], [T+1, B]
        target = lambda_returns(reward, values, discounts(unroll, config.gamma), traces(unroll, config.lam))  # [T, B]
        loss_policy = -masked_mean(log_prob * (target - values[:-1]), valid)
        loss_value = squared_error(value[:-1], target, valid)
        entropy = masked_mean(dist.entropy()[:-1], valid)
        loss = loss_policy + config.value * loss_value - config.entropy * entropy
        return loss, {"loss_policy": loss_policy, "loss_value": loss_value, "entropy": entropy}


@contextlib.contextmanager
def train_mode(policy: ActorCritic, seed: int) -> Iterator[None]:
    """The policy in train mode, with torch's global generator seeded; both are restored."""
    generator, mode = torch.default_generator, policy.training
    state = generator.get_state()
    generator.manual_seed(seed)
    policy.train()
    try:
        yield
    finally:
        policy.train(mode)
        generator.set_state(state)


def updated_buffers(policy: ActorCritic, spec: EnvSpec) -> list[str]:
    """The names of buffers that a forward pass in train mode changes."""
    policy = copy.deepcopy(policy).cpu()
    before = {name: buffer.clone() for name, buffer in policy.named_buffers()}
    if before:
        rows = [torch.zeros(2, 4, *leaf.shape, dtype=getattr(torch, leaf.dtype)) for leaf in spec.leaves()]
        mask = torch.ones(2, 4, spec.action.mask_size, dtype=torch.bool) if spec.action_mask else None
        core = torch.zeros(4, policy.core_size) if policy.core_size else None
        with torch.no_grad(), train_mode(policy, 0):
            policy.forward(unflatten(spec.obs, rows), mask, core, torch.zeros(2, 4, dtype=torch.bool))
    return [name for name, buffer in policy.named_buffers() if not torch.equal(buffer, before[name])]
