"""Deep deterministic policy gradient."""

from __future__ import annotations

import torch

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import critic_loss
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.off_policy.continuous_policy import deterministic
from rltrain.algorithms.off_policy.settings import DDPGConfig
from rltrain.algorithms.off_policy.target_network import TargetNetwork, priority, replay_plan
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory, Transition


class DDPG:
    """Deep deterministic policy gradient, Lillicrap et al. 2016 (arXiv:1509.02971).

    Deviations: no batch normalisation and no weight decay, and the action enters the critic at its first layer, as in
    every later implementation; exploration noise is Gaussian by default. A time limit does not end the return: the
    sample's `discount` is 0 after a termination only.
    """

    def __init__(self, spec: EnvSpec, config: DDPGConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = replay_plan(config)
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critic = EncoderMLP(spec, config, self.policy.size, 1, 1, generator).to(device)
        flat, critic_flat = flatten(self.policy), flatten(self.critic)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.critic_optimizer = Adam(critic_flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.policy.actor, flat)
        self.critic_target = TargetNetwork(self.critic, critic_flat)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition, progress: float) -> Update:
        """One step of the critic, then of the policy, then of both targets."""
        config, policy, critic = self.config, self.policy, self.critic
        policy.schedule(progress)
        lr_fraction = linear(1.0, config.lr_end_share, progress)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)

        with torch.no_grad():
            next_action = deterministic(self.target.module, next_obs)  # [B, A]
            next_q = self.critic_target.module(next_obs, next_action)[0, :, 0]  # [B]
            target = torch.addcmul(batch.reward, batch.discount, next_q)
        q = critic(obs, batch.action.reshape(len(batch.action), -1))  # [1, B, 1]
        loss_q, error = critic_loss(q, target, batch.weight)
        metrics = {"loss_q": loss_q.detach(), "q_mean": q.detach().mean()}
        lr_q = lr_fraction * (config.lr_q or config.lr)
        grad_norm = step(self.critic_optimizer, loss_q, lr_q, config.max_grad_norm, self.sync, len(target), metrics)

        loss_policy = -critic(obs, deterministic(policy.actor, obs), frozen=True).mean()
        policy_metrics = {"loss_policy": loss_policy.detach()}
        step(
            self.optimizer,
            loss_policy,
            lr_fraction * config.lr,
            config.max_grad_norm,
            self.sync,
            len(target),
            policy_metrics,
        )

        self.target.follow(config.tau)
        self.critic_target.follow(config.tau)
        return Update({**metrics, **policy_metrics, "grad_norm": grad_norm}, priority(error, batch))

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics, once per delivery and after its updates: the next unroll acts with them."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "critic": self.critic,
            "critic_optimizer": self.critic_optimizer,
            "target": self.target,
            "critic_target": self.critic_target,
        }
