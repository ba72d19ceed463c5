"""Soft actor-critic for Discrete actions: expectations over the actions replace samples."""

from __future__ import annotations

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import gather_action
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import critic_loss
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.settings import SACConfig
from rltrain.algorithms.off_policy.target_network import TargetNetwork, make_critics, priority, replay_plan
from rltrain.algorithms.off_policy.temperature import Temperature
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, Transition


class DiscreteSAC:
    """Soft actor-critic for Discrete actions, Christodoulou 2019 (arXiv:1910.07207), with action masks.

    The critics return a value for each action, so the target, the policy loss and the temperature loss are expectations
    over the legal actions, without sampling. The target entropy of a row is a share of log(number of legal actions).
    """

    def __init__(self, spec: EnvSpec, config: SACConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size)
        (self.actions,) = spec.action.nvec
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = make_critics(spec, config, 0, self.actions, generator).to(device)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        flat = flatten(self.critics)
        self.critics_optimizer = Adam(flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.critics, flat)
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
        temperature = self.temperature.value()  # []

        with torch.no_grad():
            log_probs = policy.distribution(next_obs, batch.next_action_mask).log_probs  # [B, n]
            subset = self.rng.subset(config.critics, config.target_critics) if config.target_critics else None
            next_q = self.target.module(next_obs, nets=subset, rng=self.rng).amin(0)  # [B, n]
            next_value = expected(next_q - temperature * log_probs, log_probs)  # [B]
            target = batch.reward + batch.discount * next_value
        q = gather_action(critics(obs, rng=self.rng), batch.action.expand(config.critics, -1))  # [critics, B]
        loss_q, error = critic_loss(q, target, batch.weight)
        metrics = {"loss_q": loss_q.detach()}
        lr_q = lr_fraction * (config.lr_q or config.lr)
        grad_norm = step(self.critics_optimizer, loss_q, lr_q, config.max_grad_norm, self.sync, rows, metrics)

        if self.critics_optimizer.steps % config.policy_delay == 0:
            with torch.no_grad():
                q = critics(obs, first=config.policy_value == "first", rng=self.rng)  # [critics, B, n]
                q = q.amin(0) if config.policy_value == "min" else q.mean(0)  # [B, n]
            log_probs = policy.distribution(obs, batch.action_mask).log_probs  # [B, n]
            loss_policy = expected(temperature * log_probs - q, log_probs).mean()
            entropy = -expected(log_probs, log_probs).detach()  # [B]
            policy_metrics = {
                "loss_policy": loss_policy.detach(),
                "q_mean": q.mean(),
                "entropy": entropy.mean(),
                "surplus": (entropy - self.target_entropy(batch.action_mask, entropy)).mean(),
            }
            lr, limit = lr_fraction * config.lr, config.max_grad_norm
            step(self.optimizer, loss_policy, lr, limit, self.sync, rows, policy_metrics)
            surplus = policy_metrics.pop("surplus")
            if config.learn_temperature:
                self.temperature.update(surplus, lr_fraction)
            metrics |= policy_metrics

        if self.critics_optimizer.steps % config.target_every == 0:
            self.target.follow(config.tau)
        metrics |= {"temperature": temperature, "grad_norm": grad_norm}
        return Update({**metrics}, priority(error, batch))

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the expectation of the smallest critic's value minus temperature * log pi."""
        obs = self.policy.normalised(obs)
        log_probs = self.policy.distribution(obs, action_mask).log_probs  # [B, n]
        return expected(self.critics.forward(obs).amin(0) - self.temperature.value() * log_probs, log_probs)

    def target_entropy(self, action_mask: Tensor | None, like: Tensor) -> Tensor:
        """[B] in nats: the setting, or a share of the entropy of the uniform distribution over the legal actions."""
        if self.config.target_entropy is not None:
            return torch.full_like(like, self.config.target_entropy)
        if action_mask is None:
            legal = torch.full_like(like, self.actions)
        else:
            legal = action_mask.sum(-1).to(like.dtype)
        return self.config.target_entropy_share * legal.log()

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics, once per delivery and after its updates: the next unroll acts with them."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold; the step count of the critics also times policy and targets."""
        parts: dict[str, Stateful] = {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "critics": self.critics,
            "critics_optimizer": self.critics_optimizer,
            "target": self.target,
            "temperature": self.temperature,
        }
        random = self.config.dropout or self.config.target_critics  # else nothing is drawn
        return {**parts, "rng": self.rng} if random else parts


def expected(x: Tensor, log_probs: Tensor) -> Tensor:
    """[B] expectation of x [B, n] under exp(log_probs); illegal actions contribute 0, whatever x holds there."""
    probs = log_probs.exp()  # exactly 0 for illegal actions: their logit is the smallest finite number
    return (probs * x.masked_fill(probs == 0, 0.0)).sum(-1)
