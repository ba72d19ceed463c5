"""Twin delayed deep deterministic policy gradient."""

from __future__ import annotations

import torch

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import critic_loss
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.off_policy.continuous_policy import deterministic
from rltrain.algorithms.off_policy.settings import TD3Config
from rltrain.algorithms.off_policy.target_network import TargetNetwork, make_critics, priority, replay_plan
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory, Transition


class TD3:
    """Twin delayed deep deterministic policy gradient, Fujimoto et al. 2018 (arXiv:1802.09477).

    The settings also give it many critics, of which a random subset makes the target (REDQ), and critics with dropout
    and layer normalisation (DroQ).

    Actions are in [-1, 1] throughout: those of the policy, its noise, the smoothing noise of the targets and its clip.
    A time limit does not end the return: the sample's `discount` is 0 after a termination only.
    """

    def __init__(self, spec: EnvSpec, config: TD3Config, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = replay_plan(config)
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = make_critics(spec, config, self.policy.size, 1, generator).to(device)
        flat, critics_flat = flatten(self.policy), flatten(self.critics)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.critics_optimizer = Adam(critics_flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.policy.actor, flat)
        self.critics_target = TargetNetwork(self.critics, critics_flat)
        self.rng = Rng(seed)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition, progress: float) -> Update:
        """One step of the critics; at every `policy_delay`-th one also a step of the policy and of both targets."""
        config, policy, critics = self.config, self.policy, self.critics
        policy.schedule(progress)
        lr_fraction = linear(1.0, config.lr_end_share, progress)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        action = batch.action.reshape(len(batch.action), -1)  # [B, A]
        noise = self.rng.normal(*action.shape).to(action.device)  # [B, A]

        with torch.no_grad():
            smoothing = noise.mul_(config.smoothing).clamp_(-config.smoothing_clip, config.smoothing_clip)
            next_action = deterministic(self.target.module, next_obs).add_(smoothing).clamp_(-1.0, 1.0)
            subset = self.rng.subset(config.critics, config.target_critics) if config.target_critics else None
            next_q = self.critics_target.module(next_obs, next_action, nets=subset, rng=self.rng)
            next_q = next_q.amin(0).squeeze(-1)  # [B]
            target = torch.addcmul(batch.reward, batch.discount, next_q)
        q = critics(obs, action, rng=self.rng)  # [n, B, 1]
        loss_q, error = critic_loss(q, target, batch.weight)
        metrics = {"loss_q": loss_q.detach(), "q_mean": q.detach().mean()}
        lr_q = lr_fraction * (config.lr_q or config.lr)
        grad_norm = step(self.critics_optimizer, loss_q, lr_q, config.max_grad_norm, self.sync, len(action), metrics)

        if self.critics_optimizer.steps % config.policy_delay == 0:
            first = config.policy_value == "first"
            q = critics(obs, deterministic(policy.actor, obs), frozen=True, first=first, rng=self.rng)  # [n, B, 1]
            loss_policy = -(q.min(0).values if config.policy_value == "min" else q).mean()
            policy_metrics = {"loss_policy": loss_policy.detach()}
            step(
                self.optimizer,
                loss_policy,
                lr_fraction * config.lr,
                config.max_grad_norm,
                self.sync,
                len(action),
                policy_metrics,
            )
            self.target.follow(config.tau)
            self.critics_target.follow(config.tau)
            metrics |= policy_metrics
        return Update({**metrics, "grad_norm": grad_norm}, priority(error, batch))

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics, once per delivery and after its updates: the next unroll acts with them."""
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
