"""AWAC: actor-critic with a policy that imitates the better actions of the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import critic_loss
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.off_policy.discrete_sac import expected
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.state_value import fixed_noise
from rltrain.algorithms.off_policy.target_network import TargetNetwork, replay_plan
from rltrain.algorithms.offline.action_values import action_critics, taken
from rltrain.algorithms.offline.settings import AWACConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, Transition


class AWAC:
    """Advantage-weighted actor-critic, Nair et al. 2020 (arXiv:2006.09359), for Box and Discrete actions.

    The critics learn the policy's own value. The policy imitates the data's actions, weighted by exp(factor *
    advantage). The value of a state is that of one sampled Box action, or the expectation over Discrete ones. The
    weights are not divided by their sum, as in the authors' later code, but limited by `max_weight`.
    """

    def __init__(self, spec: EnvSpec, config: AWACConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size)
        self.box, self.size = spec.action.kind == "box", math.prod(spec.action.shape)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = action_critics(spec, config, generator).to(device)
        flat = flatten(self.critics)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        self.critics_optimizer = Adam(flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.critics, flat)
        self.rng = Rng(seed)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition | Trajectory, progress: float) -> Update:
        """One step of the critics, of their targets, and of the policy."""
        config, policy = self.config, self.policy
        if isinstance(batch, Trajectory):
            batch = learned_steps(batch, self.plan)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        rows, limit = len(batch.reward), config.max_grad_norm
        lr_fraction = linear(1.0, config.lr_end_share, progress)

        with torch.no_grad():
            next_value = self._sampled_value(self.target.module, next_obs, batch.next_action_mask)  # [B]
            target = torch.addcmul(batch.reward, batch.discount, next_value)
        q = taken(self.critics, obs, batch.action, self.rng)  # [n, B, 1]
        loss_q, _ = critic_loss(q, target, None)
        metrics = {"loss_q": loss_q.detach(), "q_mean": q.detach().mean()}
        lr_q = lr_fraction * (config.lr_q or config.lr)
        grad_norm = step(self.critics_optimizer, loss_q, lr_q, limit, self.sync, rows, metrics)

        with torch.no_grad():
            q = taken(self.critics, obs, batch.action, self.rng).amin(0).view(-1)  # [B]
            advantage = q - self._sampled_value(self.critics, obs, batch.action_mask)
            weight = (config.advantage_factor * advantage).exp_().clamp_(max=config.max_weight)
        loss_policy = -(weight * policy.distribution(obs, batch.action_mask).log_prob(batch.action)).mean()
        of_policy = {"loss_policy": loss_policy.detach()}
        step(self.optimizer, loss_policy, lr_fraction * config.lr, limit, self.sync, rows, of_policy)
        self.target.follow(config.tau)
        return Update({**metrics, **of_policy, "grad_norm": grad_norm})

    def _sampled_value(self, critics: EncoderMLP, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """[B] the smallest of the critics' values of the policy at normalised obs; of one action if they are Box."""
        dist = self.policy.distribution(obs, action_mask)
        if self.box:
            noise = self.rng.normal(*dist.mean.shape).to(dist.mean.device)  # [B, A]
            action = dist.sample(noise).clamp(-1.0, 1.0)
            return taken(critics, obs, action, self.rng).amin(0).view(-1)
        return expected(critics.forward(obs, rng=self.rng).amin(0), dist.log_probs)

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the smallest critic's value, over fixed draws of Box actions or all Discrete ones."""
        obs = self.policy.normalised(obs)
        dist = self.policy.distribution(obs, action_mask)
        if not self.box:
            return expected(self.critics.forward(obs).amin(0), dist.log_probs)
        draws = fixed_noise(self.size).to(dist.mean.device)
        chosen = [dist.sample(noise.expand(dist.mean.shape)).clamp(-1.0, 1.0) for noise in draws]
        actions = torch.stack(chosen).reshape(len(draws), -1, self.size)  # [D, B, A]
        return self.critics.of_actions(obs, actions).amin(0).mean(0).view(-1)

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
            "target": self.target,
            "rng": self.rng,
        }
