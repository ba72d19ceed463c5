"""Conservative Q-learning for Box actions; for Discrete actions see discrete_cql.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.state_value import sampled_value, smallest
from rltrain.algorithms.off_policy.target_network import TargetNetwork, make_critics, replay_plan
from rltrain.algorithms.off_policy.temperature import Temperature
from rltrain.algorithms.offline.settings import CQLConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, Transition


class CQL:
    """Conservative Q-learning, Kumar et al. 2020 (arXiv:2006.04779): CQL(H) with importance sampling, on top of SAC.

    The critics also minimise log sum exp Q(o, .), which is estimated from random actions, from actions of the policy at
    o and of the policy at the next observation, minus Q(o, a) of the data. The target has no entropy term, as in the
    authors' code. Deviations: no Lagrange multiplier, and the policy is trained by SAC's loss from the first update.
    """

    def __init__(self, spec: EnvSpec, config: CQLConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size)
        self.size = math.prod(spec.action.shape)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = make_critics(spec, config, self.size, 1, generator).to(device)
        flat = flatten(self.critics)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        self.critics_optimizer = Adam(flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.critics, flat)
        self.target_entropy = -float(self.size) if config.target_entropy is None else config.target_entropy
        self.temperature = Temperature(config, device)
        self.rng = Rng(seed)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition | Trajectory, progress: float) -> Update:
        """One step of the critics, of the policy, of the temperature and of the targets."""
        config, policy, critics = self.config, self.policy, self.critics
        if isinstance(batch, Trajectory):
            batch = learned_steps(batch, self.plan)
        lr_fraction, limit = linear(1.0, config.lr_end_share, progress), config.max_grad_norm
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        action, count = batch.action.reshape(len(batch.action), -1), config.samples  # [B, A]
        rows, temperature = len(action), self.temperature.value()
        noise = self.rng.normal(2, count + 1, rows, self.size, batch_dim=2).to(action.device)  # [2, K + 1, B, A]
        uniform = self.rng.uniform(count, rows, self.size, batch_dim=1).to(action.device)  # [K, B, A]

        with torch.no_grad():
            chosen, log_prob = policy.sample(obs, noise[0, 1:])  # [K, B, *A] and [K, B]
            after, after_log_prob = policy.sample(next_obs, noise[1])
            after = after.reshape(*after_log_prob.shape, -1)  # [K + 1, B, A]
            next_q = self.target.module(next_obs, after[0], rng=self.rng).amin(0).squeeze(-1)  # [B]
            target = torch.addcmul(batch.reward, batch.discount, next_q)
            proposed = torch.cat([2 * uniform - 1, after[1:], chosen.reshape(*log_prob.shape, -1)])  # [3 K, B, A]
            density = torch.cat([torch.full_like(log_prob, -self.size * math.log(2)), after_log_prob[1:], log_prob])
        actions = torch.cat([action.unsqueeze(0), proposed])  # [3 K + 1, B, A]
        q = critics.of_actions(obs, actions, self.rng).squeeze(-1)  # [n, 3 K + 1, B]
        error, gap = q[:, 0] - target, conservative_gap(q, density)  # [n, B] and [n]
        loss_q, loss_gap = error.square().mean(1).sum(), config.conservative * gap.sum()
        metrics = {
            "loss_q": loss_q.detach(),
            "q_mean": q.detach()[:, 0].mean(),
            "conservative_gap": gap.detach().mean(),
        }
        lr_q = lr_fraction * (config.lr_q or config.lr)
        grad_norm = step(self.critics_optimizer, loss_q + loss_gap, lr_q, limit, self.sync, rows, metrics)

        chosen, log_prob = policy.sample(obs, noise[0, 0])  # [B, *A] and [B]
        q = critics(obs, chosen.reshape(rows, -1), frozen=True, rng=self.rng).amin(0)  # [B, 1]
        loss_policy = (temperature * log_prob).mean() - q.mean()
        of_policy = {"loss_policy": loss_policy.detach(), "entropy": -log_prob.detach().mean()}
        step(self.optimizer, loss_policy, lr_fraction * config.lr, limit, self.sync, rows, of_policy)
        if config.learn_temperature:
            self.temperature.update(of_policy["entropy"] - self.target_entropy, lr_fraction)
        self.target.follow(config.tau)
        return Update({**metrics, **of_policy, "temperature": temperature, "grad_norm": grad_norm})

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the mean of the smallest critic's value over fixed draws of the policy."""
        return sampled_value(self.policy, self.critics, obs, self.size, 0.0, smallest)

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
            "temperature": self.temperature,
            "rng": self.rng,
        }


def conservative_gap(q: Tensor, log_density: Tensor) -> Tensor:
    """[n] mean over rows of log sum_i exp(Q(o, a_i)) / density(a_i), minus Q(o, a) of the data.

    Args:
        q:           [n, 1 + I, B]  of the data's action, then of the others.
        log_density: [I, B]  of the others, under the distributions that they were drawn from.
    """
    return (torch.logsumexp(q[:, 1:] - log_density, 1) - q[:, 0]).mean(1)
