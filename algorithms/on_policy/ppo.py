"""Proximal policy optimisation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import (
    clipped_surrogate,
    clipped_value,
    explained_variance,
    masked_mean,
    normalised,
    squared_error,
)
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.returns import gae
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.on_policy.actor_critic import ActorCritic, reward_value
from rltrain.algorithms.on_policy.minibatch import Batch, Mean
from rltrain.algorithms.on_policy.settings import PPOConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.tree import Tree, tree_map
from rltrain.rollout.types import Trajectory, discounts, hooks_of, traces


class PPO:
    """Proximal policy optimisation with clipping, Schulman et al. 2017 (arXiv:1707.06347).

    Deviations: advantages are normalised per minibatch; the value loss is not clipped by default (Andrychowicz et al.
    2021 find that it does not help); Adam's epsilon is 1e-5, as in the authors' code. After a time limit the return is
    bootstrapped from the value of the final observation (Pardo et al. 2018).

    With `overlap` actors collect the next unrolls during the update, so their weights are one update old. The ratio of
    the surrogate accounts for this, the advantages do not; appo.py corrects both.
    """

    def __init__(self, spec: EnvSpec, config: PPOConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = StreamPlan(unroll=config.unroll, overlap=config.overlap)
        self.policy: ActorCritic = build_policy(spec, config, device, seed, streams)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        self.rng = Rng(seed)
        self.sync: GradientSync = SINGLE

    def update(self, unrolls: Trajectory, progress: float) -> Update:
        """`epochs` passes over the unrolls of all streams, in shuffled minibatches.

        Without a valid row nothing changes: Adam's momentum alone would move the weights.
        """
        config, valid = self.config, unrolls.valid  # [T, B]
        lr = linear(config.lr, config.lr_end, progress)
        if not valid.any():
            return Update({"lr": lr})
        clip = linear(config.clip, config.clip_end, progress)
        entropy_weight = linear(config.entropy, config.entropy_end, progress)

        with torch.no_grad():
            if getattr(self.policy, "value_memory", None) is not None:
                unrolls = self.policy.with_critic_cores(unrolls, self.sync)
            value = self.values(unrolls)  # [T+1, B]
            reward = self.policy.scaled(unrolls.reward)  # [T, B]
            advantage = gae(reward, value, discounts(unrolls, config.gamma), traces(unrolls, config.lam))  # [T, B]
            target = advantage + value[:-1]  # [T, B]
        batch = Batch.of(unrolls, value[:-1], advantage, target)
        if batch.core is None:
            batch = replace(batch, obs=hooks_of(self.policy).fast_layout(batch.obs))

        mean, kl_stops = Mean(), 0.0
        for _ in range(config.epochs):
            for minibatch in batch.shuffled(config.minibatches, self.rng):
                loss, metrics = self.loss(minibatch, clip, entropy_weight)
                rows, limit = minibatch.counted, config.max_grad_norm
                metrics["grad_norm"] = step(self.optimizer, loss, lr, limit, self.sync, rows, metrics)
                mean.add(metrics)
            if config.max_kl is not None and metrics["approx_kl"] > config.max_kl:
                kl_stops = 1.0
                break
        explained = explained_variance(value[:-1], target, valid, self.sync)
        return Update({**mean.result(), "explained_variance": explained, "kl_stops": kl_stops, "lr": lr})

    def values(self, unrolls: Trajectory) -> Tensor:
        """[T+1, B] V(obs). Values that the actor reported are used if it had the current weights and statistics for all
        T rows; the first unrolls were acted on without statistics."""
        policy, plan, reported = self.policy, self.plan, unrolls.extras.get("value")  # [T, B]
        stale = plan.overlap or plan.wait != "all" or bool((unrolls.version != unrolls.version[0]).any())
        if reported is not None and policy.normalizer is not None:
            stale = stale or not self.optimizer.steps
        if reported is None or stale or unrolls.num_rows is not None or unrolls.core is not None:
            core = None if unrolls.core is None else unrolls.core[0]  # [B, H] before row 0
            return policy.value(unrolls.obs, core, unrolls.first)
        return torch.cat([reported, policy.value(tree_map(lambda x: x[-1:], unrolls.obs))])

    def loss(self, batch: Batch, clip: float, entropy_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped surrogate, the value loss and the entropy bonus of one minibatch."""
        config, valid = self.config, batch.valid
        dist, value = self.policy.forward(batch.obs, batch.action_mask, batch.core, batch.first)
        advantage = normalised(batch.advantage, valid, self.sync) if config.normalize_advantage else batch.advantage
        surrogate = clipped_surrogate(dist.log_prob(batch.action), batch.log_prob, advantage, clip, valid)
        if config.value_clip is None:
            loss_value = squared_error(value, batch.target, valid)
        else:
            loss_value = clipped_value(value, batch.value, batch.target, config.value_clip, valid)
        entropy = masked_mean(dist.entropy(), valid)
        loss = surrogate.loss + config.value * loss_value - entropy_weight * entropy
        return loss, {
            "loss_policy": surrogate.loss,
            "loss_value": loss_value,
            "entropy": entropy,
            "clip_fraction": surrogate.clip_fraction,
            "approx_kl": surrogate.approx_kl,
        }

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the critic's value."""
        return reward_value(self.policy, obs)

    def observe(self, unrolls: Trajectory) -> None:
        """Update running statistics; called once per delivery, see `Algorithm`."""
        self.policy.observe(unrolls, self.config.gamma)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold."""
        return {"policy": self.policy, "optimizer": self.optimizer, "rng": self.rng}
