"""Asynchronous proximal policy optimisation, with a target network."""

from __future__ import annotations

import copy
import math

import torch

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import clipped_surrogate, masked_mean, squared_error
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.returns import vtrace
from rltrain.algorithms.networks.distributions import kl_divergence
from rltrain.algorithms.on_policy.settings import APPOConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.types import Trajectory, discounts, traces


class APPO:
    """PPO's clipped surrogate on V-trace advantages, as IMPACT: Luo et al. 2020 (arXiv:1912.00167).

    Three policies meet in an update: mu, which acted; a target network pi', which follows the learner's weights every
    few updates; and pi, which is trained. V-trace corrects from mu to pi'. The surrogate's ratio is

        min(mu / pi', ratio_bar) * pi / mu        which is pi / pi' wherever the bound does not bite,

    kept within 1 +- clip: so that data may be old (mu differs from unroll to unroll) and a batch be used several times
    from a circular buffer, and still pi stays near one policy, the target's.

    Deviations: values are the trained network's, not the target's, as in RLlib's APPO, whose form of the ratio this is.
    Advantages are not normalised: batches in the buffer are of different ages, and one scale for each would weigh them
    by their noise; `normalize_return` gives all of them one unit. Losses are means. A time limit is not a death.
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
        self.policy = placed(build(policy_factory(config.policy), spec, config, streams, seed), device)
        self.target = copy.deepcopy(self.policy)
        self.flat, self.target_flat = flatten(self.policy), flatten(self.target).param
        self.target.requires_grad_(False)
        self.optimizer = Adam(self.flat, eps=config.adam_eps)
        self.group: GradientSync = SINGLE

    def update(self, unrolls: Trajectory, progress: float) -> Update:
        """One gradient step on one batch of the buffer, after which the target network follows.

        Without a valid row nothing changes: reset rows alone teach nothing, and Adam would move by its momentum.
        """
        config, policy = self.config, self.policy
        lr = linear(config.lr, config.lr_end, progress)
        clip = linear(config.clip, config.clip_end, progress)
        entropy_weight = linear(config.entropy, config.entropy_end, progress)
        valid = unrolls.valid  # [T, B]
        if not self.group.whole(valid).any():
            return Update({"lr": lr})
        core = None if unrolls.core is None else unrolls.core[0]  # [B, H] before row 0
        rows = unrolls.obs, unrolls.action_mask, core, unrolls.first
        padded = torch.cat([unrolls.action, unrolls.action[-1:]])  # [T+1, B, *A]; the last row bootstraps only
        acted = unrolls.extras["log_prob"]  # [T, B] log mu
        with torch.no_grad():
            slow, _ = self.target.forward(*rows)
            anchor = slow.log_prob(padded)[:-1]  # [T, B] log pi'
        dist, value = policy.forward(*rows)  # over T+1 rows
        log_prob = dist.log_prob(padded)[:-1]  # [T, B] log pi
        with torch.no_grad():
            target, advantage = vtrace(
                anchor - acted,
                policy.scaled(unrolls.reward),
                value.detach(),
                discounts(unrolls, config.gamma),
                traces(unrolls, config.lam),
                valid,
                config.rho_bar,
                config.c_bar,
                config.rho_bar_pg,
            )  # [T, B] each
            anchor = torch.maximum(anchor, acted - math.log(config.ratio_bar))  # what pi is divided by
            clipped = (log_prob - anchor).exp_().sub_(1).abs_().gt_(clip)  # [T, B] 0 or 1
            newest = valid & (unrolls.version == unrolls.version.max())
            oldest = valid & (unrolls.version == unrolls.version.min())
        surrogate = clipped_surrogate(log_prob, anchor, advantage, clip, valid)
        loss_value = squared_error(value[:-1], target, valid)
        entropy = masked_mean(dist.entropy()[:-1], valid)
        loss = surrogate.loss + config.value * loss_value - entropy_weight * entropy
        if config.kl:
            loss = loss + config.kl * masked_mean(kl_divergence(slow, dist)[:-1], valid)
        told = {
            "loss_policy": surrogate.loss,
            "loss_value": loss_value,
            "entropy": entropy,
            "approx_kl": surrogate.approx_kl,
            "clip_fraction": surrogate.clip_fraction,
        }
        merge = self.group.over(valid, told)
        told["grad_norm"] = step(self.optimizer, loss, lr, config.max_grad_norm, merge)
        self.follow()
        told["clip_fraction_newest"] = masked_mean(clipped, newest)  # of this learner's part
        told["clip_fraction_oldest"] = masked_mean(clipped, oldest)
        return Update({**{name: value.detach() for name, value in told.items()}, "lr": lr})

    def follow(self) -> None:
        """After an update: the target network copies the trained one now and then, or moves a little towards it."""
        if self.config.tau is not None:
            self.target_flat.lerp_(self.flat.param, self.config.tau)
        elif self.config.target_every is not None and self.optimizer.steps % self.config.target_every == 0:
            self.target_flat.copy_(self.flat.param)

    def observe(self, unrolls: Trajectory) -> None:
        """Running statistics, once per delivery and after its updates; the target network sees with the same ones."""
        self.policy.observe(unrolls, self.config.gamma)
        for mine, theirs in zip(self.policy.buffers(), self.target.buffers(), strict=True):
            theirs.copy_(mine)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; the optimiser's count of steps also times the target's copies."""
        return {"policy": self.policy, "target": self.target, "optimizer": self.optimizer}
