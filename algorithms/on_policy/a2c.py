"""Advantage actor-critic, synchronous."""

from __future__ import annotations

import torch

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import masked_mean, normalised, squared_error
from rltrain.algorithms.functions.optim import flatten, linear, make_optimizer, step
from rltrain.algorithms.functions.returns import gae
from rltrain.algorithms.on_policy.settings import A2CConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.types import Trajectory, discounts, traces


class A2C:
    """Advantage actor-critic, Mnih et al. 2016 (arXiv:1602.01783), with all streams in one synchronous update.

    Deviations: lambda-returns instead of n-step ones (the same at lam 1); losses are means, so that the step size does
    not depend on the number of rows. A time limit is not a death: it bootstraps from the final observation.
    """

    def __init__(self, spec: EnvSpec, config: A2CConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = StreamPlan(unroll=config.unroll)
        self.policy = placed(build(policy_factory(config.policy), spec, config, streams, seed), device)
        self.optimizer = make_optimizer(flatten(self.policy), config)
        self.group: GradientSync = SINGLE

    def update(self, unrolls: Trajectory, progress: float) -> Update:
        """One gradient step on the unrolls of all streams; none where no row is valid."""
        config, policy = self.config, self.policy
        lr = linear(config.lr, config.lr_end, progress)
        entropy_weight = linear(config.entropy, config.entropy_end, progress)
        valid = unrolls.valid  # [T, B]
        if not self.group.whole(valid).any():
            return Update({"lr": lr})
        core = None if unrolls.core is None else unrolls.core[0]  # [B, H] before row 0
        dist, value = policy.forward(unrolls.obs, unrolls.action_mask, core, unrolls.first)  # over T+1 rows
        values = value.detach()  # [T+1, B]; a final observation stands in its own row, the reset row
        with torch.no_grad():
            reward = policy.scaled(unrolls.reward)
            advantage = gae(reward, values, discounts(unrolls, config.gamma), traces(unrolls, config.lam))  # [T, B]
            target = advantage + values[:-1]  # [T, B]
            weight = normalised(advantage, valid, self.group) if config.normalize_advantage else advantage
        padded = torch.cat([unrolls.action, unrolls.action[-1:]])  # [T+1, B, *A]; the last row bootstraps only
        loss_policy = -masked_mean(dist.log_prob(padded)[:-1] * weight, valid)
        loss_value = squared_error(value[:-1], target, valid)
        entropy = masked_mean(dist.entropy()[:-1], valid)
        loss = loss_policy + config.value * loss_value - entropy_weight * entropy
        told = {"loss_policy": loss_policy, "loss_value": loss_value, "entropy": entropy}
        merge = self.group.over(valid, told)
        told["grad_norm"] = step(self.optimizer, loss, lr, config.max_grad_norm, merge)
        return Update({**{name: value.detach() for name, value in told.items()}, "lr": lr})

    def observe(self, unrolls: Trajectory) -> None:
        """Running statistics, once per delivery and after the update: the next unroll acts with them."""
        self.policy.observe(unrolls, self.config.gamma)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold."""
        return {"policy": self.policy, "optimizer": self.optimizer}
