"""Importance weighted actor-learner architecture: actor-critic on data of slightly older weights."""

from __future__ import annotations

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import masked_mean, squared_error
from rltrain.algorithms.functions.optim import flatten, linear, make_optimizer, step
from rltrain.algorithms.functions.returns import vtrace
from rltrain.algorithms.on_policy.actor_critic import ActorCritic, evaluate_actions, reward_value
from rltrain.algorithms.on_policy.settings import IMPALAConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, discounts, traces


class IMPALA:
    """Actor-critic with V-trace, Espeholt et al. 2018 (arXiv:1802.01561).

    Actors collect during the update, so an unroll comes from weights mu that are some updates old. V-trace weights each
    step by pi(a|o) / mu(a|o). With memory the learner recomputes the recurrent states, starting from the core that the
    actor had at the first row of the unroll.

    Deviations: losses are means over the valid rows, not sums, so that the step size does not depend on their number;
    rewards are not clipped; after a time limit the return is bootstrapped from the final observation.
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
        self.policy: ActorCritic = build_policy(spec, config, device, seed, streams)
        self.optimizer = make_optimizer(flatten(self.policy), config)
        self.sync: GradientSync = SINGLE

    def update(self, unrolls: Trajectory, progress: float) -> Update:
        """One gradient step on the unrolls that have arrived; none if no row is valid."""
        config, valid = self.config, unrolls.valid  # [T, B]
        lr = linear(config.lr, config.lr_end, progress)
        if not valid.any():
            return Update({"lr": lr})

        dist, log_prob, value = evaluate_actions(self.policy, unrolls)
        with torch.no_grad():
            log_ratio = log_prob - unrolls.extras["log_prob"]  # [T, B] log pi - log mu
            target, advantage = vtrace(
                log_ratio,
                self.policy.scaled(unrolls.reward),
                value.detach(),
                discounts(unrolls, config.gamma),
                traces(unrolls, config.lam),
                valid,
                config.rho_bar,
                config.c_bar,
                config.rho_bar_pg,
            )  # [T, B] each
            log_ratio.masked_fill_(~valid, 0.0)
            approx_kl = masked_mean(log_ratio.exp() - 1 - log_ratio, valid)  # KL(mu || pi)
        loss_policy = -masked_mean(log_prob * advantage, valid)
        loss_value = squared_error(value[:-1], target, valid)
        entropy = masked_mean(dist.entropy()[:-1], valid)
        entropy_weight = linear(config.entropy, config.entropy_end, progress)
        loss = loss_policy + config.value * loss_value - entropy_weight * entropy

        metrics = {"loss_policy": loss_policy.detach(), "loss_value": loss_value.detach(), "entropy": entropy.detach()}
        metrics["approx_kl"] = approx_kl
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
