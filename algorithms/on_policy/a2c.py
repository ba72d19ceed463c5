"""Advantage actor-critic, synchronous."""

from __future__ import annotations

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import masked_mean, normalised, squared_error
from rltrain.algorithms.functions.optim import flatten, linear, make_optimizer, step
from rltrain.algorithms.functions.returns import gae
from rltrain.algorithms.on_policy.actor_critic import ActorCritic, evaluate_actions, reward_value
from rltrain.algorithms.on_policy.settings import A2CConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, discounts, traces


class A2C:
    """Advantage actor-critic, Mnih et al. 2016 (arXiv:1602.01783), with all streams in one synchronous update.

    Deviations: lambda-returns in place of n-step returns (the same for lam 1); losses are means, so that the step size
    does not depend on the number of rows; after a time limit the return is bootstrapped from the final observation.
    """

    def __init__(self, spec: EnvSpec, config: A2CConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = StreamPlan(unroll=config.unroll)
        self.policy: ActorCritic = build_policy(spec, config, device, seed, streams)
        self.optimizer = make_optimizer(flatten(self.policy), config)
        self.sync: GradientSync = SINGLE

    def update(self, unrolls: Trajectory, progress: float) -> Update:
        """One gradient step on the unrolls of all streams; none if no row is valid."""
        config, valid = self.config, unrolls.valid  # [T, B]
        lr = linear(config.lr, config.lr_end, progress)
        if not valid.any():
            return Update({"lr": lr})

        dist, log_prob, value = evaluate_actions(self.policy, unrolls)
        with torch.no_grad():
            reward, discount = self.policy.scaled(unrolls.reward), discounts(unrolls, config.gamma)  # [T, B] each
            advantage = gae(reward, value.detach(), discount, traces(unrolls, config.lam))  # [T, B]
            target = advantage + value[:-1]  # [T, B]
            if config.normalize_advantage:
                advantage = normalised(advantage, valid, self.sync)
        loss_policy = -masked_mean(log_prob * advantage, valid)
        loss_value = squared_error(value[:-1], target, valid)
        entropy = masked_mean(dist.entropy()[:-1], valid)
        entropy_weight = linear(config.entropy, config.entropy_end, progress)
        loss = loss_policy + config.value * loss_value - entropy_weight * entropy

        metrics = {"loss_policy": loss_policy.detach(), "loss_value": loss_value.detach(), "entropy": entropy.detach()}
        grad_norm = step(self.optimizer, loss, lr, config.max_grad_norm, self.sync, valid, metrics)
        return Update({**metrics, "grad_norm": grad_norm, "lr": lr})

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the critic's value."""
        return reward_value(self.policy, obs)

    def observe(self, unrolls: Trajectory) -> None:
        """Update running statistics; called once per delivery, see `Algorithm`."""
        self.policy.observe(unrolls, self.config.gamma)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold."""
        return {"policy": self.policy, "optimizer": self.optimizer}
