"""Implicit Q-learning. The name `iql` belongs to independent Q-learning, for several agents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, step
from rltrain.algorithms.functions.q_losses import critic_loss, expectile_loss
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.target_network import TargetNetwork, replay_plan
from rltrain.algorithms.offline.action_values import action_critics, taken
from rltrain.algorithms.offline.settings import ImplicitQConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, Transition


class ImplicitQ:
    """Implicit Q-learning, Kostrikov et al. 2021 (arXiv:2110.06169), for Box and Discrete actions.

    The value is an expectile of the critics' values over the actions of the data. So no update needs the value of an
    action that the data does not contain. The policy imitates the data's actions, weighted by exp(factor * advantage).
    """

    def __init__(self, spec: EnvSpec, config: ImplicitQConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = action_critics(spec, config, generator).to(device)
        self.value = EncoderMLP(spec, config, 0, 1, 1, generator, config.widths_q).to(device)
        flat = flatten(self.critics)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        self.critics_optimizer = Adam(flat, eps=config.adam_eps)
        self.value_optimizer = Adam(flatten(self.value), eps=config.adam_eps)
        self.target = TargetNetwork(self.critics, flat)
        self.rng = Rng(seed)  # of dropout
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition | Trajectory, progress: float) -> Update:
        """One step of the value, of the critics, of their targets, and of the policy."""
        config, policy = self.config, self.policy
        if isinstance(batch, Trajectory):
            batch = learned_steps(batch, self.plan)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        rows, limit, lr_q = len(batch.reward), config.max_grad_norm, config.lr_q or config.lr

        with torch.no_grad():
            next_value = self.value.forward(next_obs).view(-1)  # [B]
            target = torch.addcmul(batch.reward, batch.discount, next_value)
            q = taken(self.target.module, obs, batch.action, self.rng).amin(0).view(-1)  # [B]
        value = self.value.forward(obs)  # [1, B, 1]
        loss_value, advantage = expectile_loss(value, q, config.expectile)
        metrics = {"loss_value": loss_value.detach()}
        step(self.value_optimizer, loss_value, lr_q, limit, self.sync, rows, metrics)

        q = taken(self.critics, obs, batch.action, self.rng)  # [n, B, 1]
        loss_q, _ = critic_loss(q, target, None)
        metrics |= (of_q := {"loss_q": loss_q.detach(), "q_mean": q.detach().mean()})
        metrics["grad_norm"] = step(self.critics_optimizer, loss_q, lr_q, limit, self.sync, rows, of_q)
        self.target.follow(config.tau)

        weight = (config.advantage_factor * advantage).exp_().clamp_(max=config.max_weight)  # [B]
        loss_policy = -(weight * policy.distribution(obs, batch.action_mask).log_prob(batch.action)).mean()
        of_policy = {"loss_policy": loss_policy.detach()}
        lr = config.lr * (0.5 * (1 + math.cos(math.pi * progress)) if config.cosine else 1.0)
        step(self.optimizer, loss_policy, lr, limit, self.sync, rows, of_policy)
        return Update({**metrics, **of_q, **of_policy})

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the learned expectile of the values of the data's actions."""
        return self.value.forward(self.policy.normalised(obs)).view(-1)

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics of observations; called with the data before the first update."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "critics": self.critics,
            "critics_optimizer": self.critics_optimizer,
            "value": self.value,
            "value_optimizer": self.value_optimizer,
            "target": self.target,
            "rng": self.rng,
        }
