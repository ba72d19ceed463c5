"""Soft actor-critic, for Box actions; for Discrete actions see discrete_sac.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.off_policy.settings import SACConfig
from rltrain.algorithms.off_policy.target_network import TargetNetwork, priority, replay_plan, squared_loss
from rltrain.algorithms.off_policy.temperature import Temperature
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory, Transition


class SAC:
    """Soft actor-critic with a learnt temperature, Haarnoja et al. 2018 (arXiv:1812.05905).

    Two critics, each with a slow copy; the smaller value counts. Deviations: log temperature is what is optimised, as
    in the authors' code, and entropy is that of actions in [-1, 1], whatever the environment's bounds. A time limit is
    not a death: the sample's `discount` is 0 after a termination only.
    """

    def __init__(self, spec: EnvSpec, config: SACConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = replay_plan(config)
        self.observes = config.normalize_obs
        self.policy = placed(build(policy_factory(config.policy), spec, config, streams, seed), device)
        self.size = math.prod(spec.action.shape)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = EncoderMLP(spec, config, self.size, 1, 2, generator).to(device)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        flat = flatten(self.critics)
        self.critics_optimizer = Adam(flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.critics, flat)
        self.target_entropy = -float(self.size) if config.target_entropy is None else config.target_entropy
        self.temperature = Temperature(config, device)
        self.rng = Rng(seed)
        self.group: GradientSync = SINGLE

    def update(self, batch: Transition, progress: float) -> Update:
        """One step of the critics, then of the policy, then of the temperature; the target critics follow."""
        config, policy, critics = self.config, self.policy, self.critics
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        rows = len(batch.reward)
        noise = self.group.part(self.draw, rows, dim=1).to(batch.reward.device)  # [2, B, A]
        temperature = self.temperature.value()  # []

        with torch.no_grad():
            next_action, next_log_prob = policy.sample(next_obs, noise[0])
            follow = self.target.module(next_obs, next_action.reshape(rows, -1)).amin(0).squeeze(-1)  # [B]
        target = torch.addcmul(batch.reward, batch.discount, follow - temperature * next_log_prob)
        walk = critics.walk(obs, batch.action.reshape(rows, -1))
        error = walk.out.squeeze(-1) - target  # [2, B]
        loss_q, slope = squared_loss(error, batch.weight)
        left = linear(1.0, config.lr_end_share, progress)
        lr_q = left * (config.lr_q or config.lr)
        told = {"loss_q": loss_q, "q_mean": walk.out.mean()}
        merge = self.group.over(rows, told)
        norm = step(self.critics_optimizer, loss_q, lr_q, config.max_grad_norm, lambda _: walk.back(slope), merge)

        sampled, log_prob = policy.sample(obs, noise[1])
        action = sampled.reshape(rows, -1)
        look = critics.walk(obs, action.detach(), frozen=True)
        best, which = look.out.min(0)  # [B, 1]
        entropy = -log_prob.detach().mean()
        loss_policy = -(temperature * entropy + best.mean())

        def backward(loss: Tensor) -> None:
            slope = torch.zeros_like(look.out).scatter_(0, which.unsqueeze(0), -1.0 / rows)
            along = look.back_to(slope, self.size), (temperature / rows).expand(rows)
            torch.autograd.backward([action, log_prob], along)

        acts = {"loss_policy": loss_policy, "entropy": entropy}
        merge = self.group.over(rows, acts)
        step(self.optimizer, loss_policy, left * config.lr, config.max_grad_norm, backward, merge)
        if config.learn_temperature:
            self.temperature.update(acts["entropy"] - self.target_entropy, left)
        if self.critics_optimizer.steps % config.target_every == 0:
            self.target.follow(config.tau)
        return Update({**told, **acts, "temperature": temperature, "grad_norm": norm}, priority(error, batch.index))

    def draw(self, rows: int) -> Tensor:
        """[2, rows, A] noise of an update: for the actions that follow, and for those that are judged."""
        return torch.randn(2, rows, self.size, generator=self.rng.generator)

    def observe(self, unrolls: Trajectory) -> None:
        """Running statistics, once per delivery and after its updates: the next unroll acts with them."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; the optimiser's count of steps also times the target critics."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "critics": self.critics,
            "critics_optimizer": self.critics_optimizer,
            "target": self.target,
            "temperature": self.temperature,
            "rng": self.rng,
        }
