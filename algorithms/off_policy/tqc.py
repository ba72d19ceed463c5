"""Truncated quantile critics: soft actor-critic whose critics return quantiles of the return."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import quantile_loss
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.off_policy.continuous_policy import require_box
from rltrain.algorithms.off_policy.settings import TQCConfig
from rltrain.algorithms.off_policy.state_value import sampled_value
from rltrain.algorithms.off_policy.target_network import TargetNetwork, make_critics, priority, replay_plan
from rltrain.algorithms.off_policy.temperature import Temperature
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, Transition


class TQC:
    """Truncated quantile critics, Kuznetsov et al. 2020 (arXiv:2005.04269).

    N critics return M quantiles of the return each. The target is the distribution of all N M quantiles of the target
    critics without the `drop` N largest ones, which keeps the values from being overestimated. The policy maximises the
    mean of all quantiles. The rest is SAC: see there for deviations.
    """

    def __init__(self, spec: EnvSpec, config: TQCConfig, device: torch.device, seed: int, streams: int) -> None:
        require_box(spec)
        self.config = config
        self.plan = replay_plan(config)
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.size = math.prod(spec.action.shape)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = make_critics(spec, config, self.size, config.quantiles, generator).to(device)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        flat = flatten(self.critics)
        self.critics_optimizer = Adam(flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.critics, flat)
        self.target_entropy = -float(self.size) if config.target_entropy is None else config.target_entropy
        self.temperature = Temperature(config, device)
        self.kept = config.critics * (config.quantiles - config.drop)  # quantiles of the target
        self.rng = Rng(seed)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition, progress: float) -> Update:
        """A step of the critics, at every `policy_delay`-th one also of policy and temperature, then of the targets."""
        config, policy, critics = self.config, self.policy, self.critics
        lr_fraction = linear(1.0, config.lr_end_share, progress)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        rows = len(batch.reward)
        noise = self.rng.normal(2, rows, self.size, batch_dim=1).to(batch.reward.device)  # [2, B, A]
        temperature = self.temperature.value()  # []

        with torch.no_grad():
            next_action, next_log_prob = policy.sample(next_obs, noise[0])
            next_z = self.target.module(next_obs, next_action.reshape(rows, -1), rng=self.rng)  # [n, B, M]
            next_z = next_z.transpose(0, 1).flatten(1).sort(-1).values[:, : self.kept]  # [B, K]
            soft = next_z - (temperature * next_log_prob).unsqueeze(-1)
            target = batch.reward.unsqueeze(-1) + batch.discount.unsqueeze(-1) * soft  # [B, K]
        z = critics(obs, batch.action.reshape(rows, -1), rng=self.rng)  # [n, B, M]
        loss_q, error = quantile_loss(z, target, batch.weight)
        metrics = {"loss_q": loss_q.detach(), "q_mean": z.detach().mean()}
        lr_q, limit = lr_fraction * (config.lr_q or config.lr), config.max_grad_norm
        grad_norm = step(self.critics_optimizer, loss_q, lr_q, limit, self.sync, rows, metrics)

        if self.critics_optimizer.steps % config.policy_delay == 0:
            action, log_prob = policy.sample(obs, noise[1])
            z = critics(obs, action.reshape(rows, -1), frozen=True, rng=self.rng)
            loss_policy = (temperature * log_prob).mean() - z.mean()
            policy_metrics = {"loss_policy": loss_policy.detach(), "entropy": -log_prob.detach().mean()}
            step(self.optimizer, loss_policy, lr_fraction * config.lr, limit, self.sync, rows, policy_metrics)
            if config.learn_temperature:
                self.temperature.update(policy_metrics["entropy"] - self.target_entropy, lr_fraction)
            metrics |= policy_metrics

        if self.critics_optimizer.steps % config.target_every == 0:
            self.target.follow(config.tau)
        metrics |= {"temperature": temperature, "grad_norm": grad_norm}
        return Update({**metrics}, priority(error, batch))

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: mean of the quantiles that a target keeps, minus temperature * log pi, over fixed draws."""
        return sampled_value(self.policy, self.critics, obs, self.size, self.temperature.value(), self._kept_mean)

    def _kept_mean(self, z: Tensor) -> Tensor:
        """[D, B] mean of the kept quantiles of z [n, D, B, M]."""
        return z.movedim(0, 2).flatten(2).sort(-1).values[..., : self.kept].mean(-1)

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
