"""Importance weighted actor-learner architecture: actor-critic on data that is a little old."""

from __future__ import annotations

import torch

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import masked_mean, squared_error
from rltrain.algorithms.functions.optim import flatten, linear, make_optimizer, step
from rltrain.algorithms.functions.returns import vtrace
from rltrain.algorithms.on_policy.settings import IMPALAConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.types import Trajectory, discounts, traces


class IMPALA:
    """Actor-critic with V-trace, Espeholt et al. 2018 (arXiv:1802.01561).

    Actors go on while the learner learns, so an unroll was made by weights that are some updates old; V-trace weighs
    each step by how likely the policy of today is to take it. With memory the learner runs anew from the core that the
    actor had where the unroll began.

    Deviations: losses are means over the valid rows, not sums, so that the step size does not depend on their number;
    rewards are not clipped. A time limit is not a death: it bootstraps from the final observation.
    """

    def __init__(self, spec: EnvSpec, config: IMPALAConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = StreamPlan(
            unroll=config.unroll,
            wait="all" if config.wait is None else min(config.wait, streams),
            overlap=config.overlap,
            max_in_flight=config.max_in_flight,
            max_lag=config.max_lag,
        )
        self.policy = placed(build(policy_factory(config.policy), spec, config, streams, seed), device)
        self.optimizer = make_optimizer(flatten(self.policy), config)
        self.group: GradientSync = SINGLE

    def update(self, unrolls: Trajectory, progress: float) -> Update:
        """One gradient step on the unrolls that have come; none where no row is valid."""
        config, policy = self.config, self.policy
        lr = linear(config.lr, config.lr_end, progress)
        entropy_weight = linear(config.entropy, config.entropy_end, progress)
        valid = unrolls.valid  # [T, B]
        if not self.group.whole(valid).any():
            return Update({"lr": lr})
        core = None if unrolls.core is None else unrolls.core[0]  # [B, H] before row 0
        padded = torch.cat([unrolls.action, unrolls.action[-1:]])  # [T+1, B, *A]; the last row bootstraps only
        dist, value = policy.forward(unrolls.obs, unrolls.action_mask, core, unrolls.first)  # over T+1 rows
        log_prob = dist.log_prob(padded)[:-1]  # [T, B]
        log_ratio = log_prob.detach() - unrolls.extras["log_prob"]  # [T, B]
        with torch.no_grad():
            target, advantage = vtrace(
                log_ratio,
                policy.scaled(unrolls.reward),
                value.detach(),
                discounts(unrolls, config.gamma),
                traces(unrolls, config.lam),
                valid,
                config.rho_bar,
                config.c_bar,
                config.rho_bar_pg,
            )  # [T, B] each
            log_ratio.masked_fill_(~valid, 0.0)
            approx_kl = masked_mean(log_ratio.exp() - 1 - log_ratio, valid)  # how far the data is from the policy
        loss_policy = -masked_mean(log_prob * advantage, valid)
        loss_value = squared_error(value[:-1], target, valid)
        entropy = masked_mean(dist.entropy()[:-1], valid)
        loss = loss_policy + config.value * loss_value - entropy_weight * entropy
        told = {"loss_policy": loss_policy, "loss_value": loss_value, "entropy": entropy, "approx_kl": approx_kl}
        merge = self.group.over(valid, told)
        told["grad_norm"] = step(self.optimizer, loss, lr, config.max_grad_norm, merge)
        return Update({**{name: value.detach() for name, value in told.items()}, "lr": lr})

    def observe(self, unrolls: Trajectory) -> None:
        """Running statistics, once per delivery and after the update: the next unroll acts with them."""
        self.policy.observe(unrolls, self.config.gamma)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold."""
        return {"policy": self.policy, "optimizer": self.optimizer}
