"""TD3+BC: TD3 with a term that keeps the policy near the actions of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import critic_loss
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.off_policy.continuous_policy import deterministic
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.target_network import TargetNetwork, make_critics, replay_plan
from rltrain.algorithms.offline.policies import require_one_of
from rltrain.algorithms.offline.settings import TD3BCConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory, Transition


class TD3BC:
    """TD3+BC, Fujimoto and Gu 2021 (arXiv:2106.06860).

    TD3 (see there), and the policy also minimises its squared distance to the actions of the data. The critic's value
    is divided by the mean absolute value of the batch, so that `q_weight` has the same effect for all scales of reward.
    """

    def __init__(self, spec: EnvSpec, config: TD3BCConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        require_one_of(spec, "box")
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = make_critics(spec, config, self.policy.size, 1, generator).to(device)
        flat, critics_flat = flatten(self.policy), flatten(self.critics)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.critics_optimizer = Adam(critics_flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.policy.actor, flat)
        self.critics_target = TargetNetwork(self.critics, critics_flat)
        self.rng = Rng(seed)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition | Trajectory, progress: float) -> Update:
        """One step of the critics; at every `policy_delay`-th one also a step of the policy and of both targets."""
        config, policy, critics = self.config, self.policy, self.critics
        if isinstance(batch, Trajectory):
            batch = learned_steps(batch, self.plan)
        lr_fraction = linear(1.0, config.lr_end_share, progress)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        action = batch.action.reshape(len(batch.action), -1)  # [B, A]
        rows = len(action)
        noise = self.rng.normal(*action.shape).to(action.device)  # [B, A]

        with torch.no_grad():
            smoothing = noise.mul_(config.smoothing).clamp_(-config.smoothing_clip, config.smoothing_clip)
            next_action = deterministic(self.target.module, next_obs).add_(smoothing).clamp_(-1.0, 1.0)
            next_q = self.critics_target.module(next_obs, next_action, rng=self.rng).amin(0).squeeze(-1)  # [B]
            target = torch.addcmul(batch.reward, batch.discount, next_q)
        q = critics(obs, action, rng=self.rng)  # [n, B, 1]
        loss_q, _ = critic_loss(q, target, None)
        metrics = {"loss_q": loss_q.detach(), "q_mean": q.detach().mean()}
        lr_q, limit = lr_fraction * (config.lr_q or config.lr), config.max_grad_norm
        grad_norm = step(self.critics_optimizer, loss_q, lr_q, limit, self.sync, rows, metrics)

        if self.critics_optimizer.steps % config.policy_delay == 0:
            chosen = deterministic(policy.actor, obs)  # [B, A]
            q = critics(obs, chosen, frozen=True, first=True, rng=self.rng)  # [1, B, 1]
            loss_policy = imitating_loss(q, chosen, action, config.q_weight)
            policy_metrics = {"loss_policy": loss_policy.detach()}
            step(self.optimizer, loss_policy, lr_fraction * config.lr, limit, self.sync, rows, policy_metrics)
            self.target.follow(config.tau)
            self.critics_target.follow(config.tau)
            metrics |= policy_metrics
        return Update({**metrics, "grad_norm": grad_norm})

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics of observations; called with the data before the first update."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold; the delay counts the steps of the critics' optimiser."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "critics": self.critics,
            "critics_optimizer": self.critics_optimizer,
            "target": self.target,
            "critics_target": self.critics_target,
            "rng": self.rng,
        }


def imitating_loss(q: Tensor, chosen: Tensor, action: Tensor, weight: float) -> Tensor:
    """[] -weight * mean(Q) / mean(|Q|) + mean((pi - a)^2), equation 3 of the paper; the divisor has no gradient."""
    scale = weight / q.detach().abs().mean()
    return (chosen - action).square().mean() - scale * q.mean()
