"""Proximal policy optimisation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import clipped_surrogate, clipped_value, masked_mean, normalised, squared_error
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.returns import gae
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.on_policy.minibatch import FlatBatch, Mean, Sequences
from rltrain.algorithms.on_policy.settings import PPOConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.specs import StreamPlan
from rltrain.rollout.tree import tree_map
from rltrain.rollout.types import Trajectory, discounts, hooks_of, traces


class PPO:
    """Proximal policy optimisation with clipping, Schulman et al. 2017 (arXiv:1707.06347).

    Deviations: advantages are normalised per minibatch; the value loss is not clipped unless asked for (Andrychowicz
    et al. 2021 find it does not help); Adam epsilon 1e-5 as in the authors' code. A time limit is not a death: the
    value of the final observation stands in for what would have followed (Pardo et al. 2018).

    With `overlap` the next unroll is acted while this one is learnt from, by weights that are one update old. The
    surrogate's ratio knows who acted, the advantages do not correct for it: see appo.py for what does.
    """

    def __init__(self, spec: EnvSpec, config: PPOConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = StreamPlan(unroll=config.unroll, overlap=config.overlap)
        self.policy = placed(build(policy_factory(config.policy), spec, config, streams, seed), device)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        self.rng = Rng(seed)
        self.group: GradientSync = SINGLE

    def update(self, unrolls: Trajectory, progress: float) -> Update:
        """`epochs` passes over the unrolls of all streams, in shuffled minibatches.

        Without a valid row nothing changes: reset rows alone teach nothing, and Adam would move by its momentum.
        """
        config = self.config
        lr = linear(config.lr, config.lr_end, progress)
        valid = unrolls.valid  # [T, B]
        count = int(self.group.whole(valid).sum())
        if count == 0:
            return Update({"lr": lr})
        clip = linear(config.clip, config.clip_end, progress)
        entropy = linear(config.entropy, config.entropy_end, progress)
        with torch.no_grad():
            value = self.values(unrolls)  # [T+1, B]
            reward = self.policy.scaled(unrolls.reward)  # [T, B]
            advantage = gae(reward, value, discounts(unrolls, config.gamma), traces(unrolls, config.lam))  # [T, B]
            target = advantage + value[:-1]  # [T, B]

        rows: FlatBatch | Sequences
        if unrolls.core is None:
            rows = FlatBatch.of(unrolls, value[:-1], advantage, target)
            rows = replace(rows, obs=hooks_of(self.policy).fast_layout(rows.obs))
        else:
            rows = Sequences.of(unrolls, value[:-1], advantage, target)
        places = self.group.places(unrolls)
        metrics, stopped = Mean(), 0.0
        for _ in range(config.epochs):
            for batch in rows.shuffled(config.minibatches, self.rng.generator, places):
                loss, info = self.loss(batch, clip, entropy)
                merge = self.group.over(batch.count, info)
                info["grad_norm"] = step(self.optimizer, loss, lr, config.max_grad_norm, merge)
                metrics.add(info)
            if config.max_kl is not None and info["approx_kl"] > config.max_kl:
                stopped = 1.0
                break
        told: dict[str, Tensor | float] = {**metrics.result(), "kl_stops": stopped, "lr": lr}
        if count > 1:  # one row has no variance
            left = self.group.moments((target - value[:-1])[valid]).variance
            told["explained_variance"] = 1 - left / self.group.moments(target[valid]).variance.clamp_min(1e-8)
        return Update(told)

    def values(self, unrolls: Trajectory) -> Tensor:
        """[T+1, B] V(obs). Values that the actor reported are used if it had the weights of now for all T rows."""
        policy, acted = self.policy, unrolls.extras.get("value")  # [T, B]
        old = self.config.overlap or unrolls.num_rows is not None or bool((unrolls.version != unrolls.version[0]).any())
        if acted is None or old:
            core = None if unrolls.core is None else unrolls.core[0]
            value: Tensor = policy.value(unrolls.obs, core, unrolls.first)
            return value
        return torch.cat([acted, policy.value(tree_map(lambda x: x[-1:], unrolls.obs))])

    def loss(
        self, batch: FlatBatch | Sequences, clip: float, entropy_weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate, the value loss and the entropy bonus of one minibatch."""
        config = self.config
        valid = batch.valid
        if isinstance(batch, Sequences):
            dist, value = self.policy.forward(batch.obs, batch.action_mask, batch.core, batch.first)
        else:
            dist, value = self.policy.forward(batch.obs, batch.action_mask)
        advantage = normalised(batch.advantage, valid, self.group) if config.normalize_advantage else batch.advantage
        surrogate = clipped_surrogate(dist.log_prob(batch.action), batch.log_prob, advantage, clip, valid)
        if config.value_clip is None:
            value_loss = squared_error(value, batch.target, valid)
        else:
            value_loss = clipped_value(value, batch.value, batch.target, config.value_clip, valid)
        entropy = masked_mean(dist.entropy(), valid)
        total = surrogate.loss + config.value * value_loss - entropy_weight * entropy
        return total, {
            "loss_policy": surrogate.loss,
            "loss_value": value_loss,
            "entropy": entropy,
            "clip_fraction": surrogate.clip_fraction,
            "approx_kl": surrogate.approx_kl,
        }

    def observe(self, unrolls: Trajectory) -> None:
        """Running statistics, once per delivery and after the update: the next unroll acts with them."""
        self.policy.observe(unrolls, self.config.gamma)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold."""
        return {"policy": self.policy, "optimizer": self.optimizer, "rng": self.rng}
