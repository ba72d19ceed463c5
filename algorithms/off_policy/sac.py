"""Soft actor-critic, for Box actions; for Discrete actions see discrete_sac.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import critic_loss
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.settings import SACConfig
from rltrain.algorithms.off_policy.state_value import sampled_value, smallest
from rltrain.algorithms.off_policy.target_network import TargetNetwork, make_critics, priority, replay_plan
from rltrain.algorithms.off_policy.temperature import Temperature
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, Transition


class SAC:
    """Soft actor-critic with a learned temperature, Haarnoja et al. 2018 (arXiv:1812.05905).

    Two critics with a target network each; the smaller value counts. The settings also make it REDQ (Chen et al. 2021,
    arXiv:2101.05982: the target is the smallest of a random subset of many critics) and DroQ (Hiraoka et al. 2022,
    arXiv:2110.02034: critics with dropout and layer normalisation).

    Deviations: the log of the temperature is optimised, as in the authors' code, and the entropy is that of actions in
    [-1, 1], whatever the bounds of the environment. A time limit does not end the return: the sample's `discount` is 0
    after a termination only.
    """

    def __init__(self, spec: EnvSpec, config: SACConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size)
        self.size = math.prod(spec.action.shape)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = make_critics(spec, config, self.size, 1, generator).to(device)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        flat = flatten(self.critics)
        self.critics_optimizer = Adam(flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.critics, flat)
        self.target_entropy = -float(self.size) if config.target_entropy is None else config.target_entropy
        self.temperature = Temperature(config, device)
        self.rng = Rng(seed)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition | Trajectory, progress: float) -> Update:
        """A step of the critics, at every `policy_delay`-th one also of policy and temperature, then of the targets."""
        config, policy, critics = self.config, self.policy, self.critics
        if isinstance(batch, Trajectory):
            batch = learned_steps(batch, config)
        lr_fraction = linear(1.0, config.lr_end_share, progress)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        rows = len(batch.reward)
        noise = self.rng.normal(2, rows, self.size, batch_dim=1).to(batch.reward.device)  # [2, B, A]
        temperature = self.temperature.value()  # []

        with torch.no_grad():
            next_action, next_log_prob = policy.sample(next_obs, noise[0])
            subset = self.rng.subset(config.critics, config.target_critics) if config.target_critics else None
            next_q = self.target.module(next_obs, next_action.reshape(rows, -1), nets=subset, rng=self.rng)
            next_q = next_q.amin(0).squeeze(-1)  # [B]
            target = torch.addcmul(batch.reward, batch.discount, next_q - temperature * next_log_prob)
        q = critics(obs, batch.action.reshape(rows, -1), rng=self.rng)  # [n, B, 1]
        loss_q, error = critic_loss(q, target, batch.weight)
        metrics = {"loss_q": loss_q.detach(), "q_mean": q.detach().mean()}
        lr_q = lr_fraction * (config.lr_q or config.lr)
        grad_norm = step(self.critics_optimizer, loss_q, lr_q, config.max_grad_norm, self.sync, rows, metrics)

        if self.critics_optimizer.steps % config.policy_delay == 0:
            action, log_prob = policy.sample(obs, noise[1])
            first = config.policy_value == "first"
            q = critics(obs, action.reshape(rows, -1), frozen=True, first=first, rng=self.rng)  # [n, B, 1]
            if config.policy_value == "min":
                q = q.min(0).values
            loss_policy = (temperature * log_prob).mean() - q.mean()
            policy_metrics = {"loss_policy": loss_policy.detach(), "entropy": -log_prob.detach().mean()}
            lr, limit = lr_fraction * config.lr, config.max_grad_norm
            step(self.optimizer, loss_policy, lr, limit, self.sync, rows, policy_metrics)
            if config.learn_temperature:
                self.temperature.update(policy_metrics["entropy"] - self.target_entropy, lr_fraction)
            metrics |= policy_metrics

        if self.critics_optimizer.steps % config.target_every == 0:
            self.target.follow(config.tau)
        metrics |= {"temperature": temperature, "grad_norm": grad_norm}
        return Update({**metrics}, priority(error, batch))

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the mean of the smallest critic's value minus temperature * log pi over fixed draws."""
        return sampled_value(self.policy, self.critics, obs, self.size, self.temperature.value(), smallest)

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics, once per delivery and after its updates: the next unroll acts with them."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold; the step count of the critics also times policy and targets."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "critics": self.critics,
            "critics_optimizer": self.critics_optimizer,
            "target": self.target,
            "temperature": self.temperature,
            "rng": self.rng,
        }
