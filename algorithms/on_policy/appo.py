"""Asynchronous proximal policy optimisation, with a target network."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import clipped_surrogate, masked_mean, squared_error
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.returns import vtrace
from rltrain.algorithms.networks.distributions import kl_divergence
from rltrain.algorithms.on_policy.actor_critic import ActorCritic, evaluate_actions, reward_value
from rltrain.algorithms.on_policy.settings import APPOConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, discounts, traces


class APPO:
    """PPO's clipped surrogate on V-trace advantages, as IMPACT: Luo et al. 2020 (arXiv:1912.00167).

    An update uses three policies: mu, which acted; pi', the target network, which follows the trained weights every
    few updates; and pi, which is trained. V-trace corrects from mu to pi'. The surrogate's ratio is

        min(mu / pi', ratio_bar) * pi / mu        which is pi / pi' wherever the bound does not apply,

    clipped to 1 +- clip. So pi stays near one policy, the target's, although the data may be old (mu differs from
    unroll to unroll) and a batch is used several times from a circular buffer.

    Deviations: values are those of the trained network, not of the target network, as in RLlib's APPO, which also has
    this form of the ratio. Advantages are not normalised: the batches in the buffer are of different ages, and a scale
    per batch would weight them by their noise; `normalize_return` gives all of them one scale. Losses are means.
    After a time limit the return is bootstrapped from the final observation.
    """

    def __init__(self, spec: EnvSpec, config: APPOConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = StreamPlan(
            unroll=config.unroll,
            wait="all" if config.wait is None else min(config.wait, streams),
            overlap=config.overlap,
            max_in_flight=config.max_in_flight,
            max_lag=config.max_lag,
            buffer_size=config.buffer_size,
            reuse=config.reuse,
        )
        self.policy: ActorCritic = build_policy(spec, config, device, seed, streams)
        self.target = copy.deepcopy(self.policy)
        self.flat, self.target_flat = flatten(self.policy), flatten(self.target).param
        self.target.requires_grad_(False)
        self.optimizer = Adam(self.flat, eps=config.adam_eps)
        self.sync: GradientSync = SINGLE

    def update(self, unrolls: Trajectory, progress: float) -> Update:
        """One gradient step on one batch of the buffer, then one of the target network.

        Without a valid row nothing changes: Adam's momentum alone would move the weights.
        """
        config, valid = self.config, unrolls.valid  # [T, B]
        lr = linear(config.lr, config.lr_end, progress)
        clip = linear(config.clip, config.clip_end, progress)
        if not valid.any():
            return Update({"lr": lr})

        log_mu = unrolls.extras["log_prob"]  # [T, B]
        with torch.no_grad():
            target_dist, log_target, _ = evaluate_actions(self.target, unrolls)  # pi'
        dist, log_prob, value = evaluate_actions(self.policy, unrolls)  # pi
        with torch.no_grad():
            target, advantage = vtrace(
                log_target - log_mu,
                self.policy.scaled(unrolls.reward),
                value.detach(),
                discounts(unrolls, config.gamma),
                traces(unrolls, config.lam),
                valid,
                config.rho_bar,
                config.c_bar,
                config.rho_bar_pg,
            )  # [T, B] each
            log_anchor = torch.maximum(log_target, log_mu - math.log(config.ratio_bar))  # the ratio is pi / anchor
        surrogate = clipped_surrogate(log_prob, log_anchor, advantage, clip, valid)
        loss_value = squared_error(value[:-1], target, valid)
        entropy = masked_mean(dist.entropy()[:-1], valid)
        entropy_weight = linear(config.entropy, config.entropy_end, progress)
        loss = surrogate.loss + config.value * loss_value - entropy_weight * entropy
        if config.kl:
            loss = loss + config.kl * masked_mean(kl_divergence(target_dist, dist)[:-1], valid)

        with torch.no_grad():
            clipped = (log_prob - log_anchor).exp_().sub_(1).abs_().gt_(clip)  # [T, B] 0 or 1
            version = unrolls.version
            metrics = {
                "loss_policy": surrogate.loss.detach(),
                "loss_value": loss_value.detach(),
                "entropy": entropy.detach(),
                "approx_kl": surrogate.approx_kl,
                "clip_fraction": surrogate.clip_fraction,
                "clip_fraction_newest": masked_mean(clipped, valid & (version == version.max())),
                "clip_fraction_oldest": masked_mean(clipped, valid & (version == version.min())),
            }
        grad_norm = step(self.optimizer, loss, lr, config.max_grad_norm, self.sync, valid, metrics)
        if config.tau is not None:
            self.target_flat.lerp_(self.flat.param, config.tau)
        elif config.target_every is not None and self.optimizer.steps % config.target_every == 0:
            self.target_flat.copy_(self.flat.param)
        return Update({**metrics, "grad_norm": grad_norm, "lr": lr})

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the critic's value."""
        return reward_value(self.policy, obs)

    def observe(self, unrolls: Trajectory) -> None:
        """Update running statistics, once per delivery; the target network gets the same ones."""
        self.policy.observe(unrolls, self.config.gamma)
        for mine, theirs in zip(self.policy.buffers(), self.target.buffers(), strict=True):
            theirs.copy_(mine)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; the optimiser's step count also times the copies of the target."""
        return {"policy": self.policy, "target": self.target, "optimizer": self.optimizer}
