"""Twin delayed deep deterministic policy gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.off_policy.continuous_policy import deterministic
from rltrain.algorithms.off_policy.settings import TD3Config
from rltrain.algorithms.off_policy.target_network import TargetNetwork, priority, replay_plan, squared_loss, uphill
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory, Transition


class TD3:
    """Twin delayed deep deterministic policy gradient, Fujimoto et al. 2018 (arXiv:1802.09477).

    Everything about actions is in [-1, 1]: the policy, its noise, the noise of the targets and its limit. A time limit
    is not a death: the sample's `discount` is 0 after a termination only.
    """

    def __init__(self, spec: EnvSpec, config: TD3Config, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = replay_plan(config)
        self.observes = config.normalize_obs
        self.policy = placed(build(policy_factory(config.policy), spec, config, streams, seed), device)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = EncoderMLP(spec, config, self.policy.size, 1, 2, generator).to(device)
        flat, critics_flat = flatten(self.policy), flatten(self.critics)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.critics_optimizer = Adam(critics_flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.policy.actor, flat)
        self.critics_target = TargetNetwork(self.critics, critics_flat)
        self.rng = Rng(seed)
        self.group: GradientSync = SINGLE

    def update(self, batch: Transition, progress: float) -> Update:
        """One step of the critics; every `policy_delay` of them one of the policy, and only then do targets follow."""
        config, policy, critics = self.config, self.policy, self.critics
        policy.schedule(progress)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        action = batch.action.flatten(1)  # [B, A]
        noise = self.group.part(self.draw, len(action)).to(action.device)  # [B, A]

        with torch.no_grad():
            smoothing = noise.mul_(config.smoothing).clamp_(-config.smoothing_clip, config.smoothing_clip)
            next_action = deterministic(self.target.module, next_obs).add_(smoothing).clamp_(-1.0, 1.0)
            follow = self.critics_target.module(next_obs, next_action).amin(0).squeeze(-1)  # [B]
        target = torch.addcmul(batch.reward, batch.discount, follow)
        walk = critics.walk(obs, action)
        error = walk.out.squeeze(-1) - target  # [2, B]
        loss_q, slope = squared_loss(error, batch.weight)
        left = linear(1.0, config.lr_end_share, progress)
        lr_q = left * (config.lr_q or config.lr)
        told = {"loss_q": loss_q, "q_mean": walk.out.mean()}
        merge = self.group.over(len(action), told)
        norm = step(self.critics_optimizer, loss_q, lr_q, config.max_grad_norm, lambda _: walk.back(slope), merge)

        if self.critics_optimizer.steps % config.policy_delay == 0:
            loss_policy, climb = uphill(critics, obs, policy.actor)
            acts = {"loss_policy": loss_policy}
            merge = self.group.over(len(action), acts)
            step(self.optimizer, loss_policy, left * config.lr, config.max_grad_norm, climb, merge)
            self.target.follow(config.tau)
            self.critics_target.follow(config.tau)
            told |= acts
        return Update({**told, "grad_norm": norm}, priority(error, batch.index))

    def draw(self, rows: int) -> Tensor:
        """[rows, A] noise on the actions of the targets."""
        return torch.randn(rows, self.policy.size, generator=self.rng.generator)

    def observe(self, unrolls: Trajectory) -> None:
        """Running statistics, once per delivery and after its updates: the next unroll acts with them."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; the critics' count of steps is also what the delay counts."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "critics": self.critics,
            "critics_optimizer": self.critics_optimizer,
            "target": self.target,
            "critics_target": self.critics_target,
            "rng": self.rng,
        }
