"""MARWIL: imitation of the actions of the data, weighted by their advantage. AWR is a setting of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import critic_loss
from rltrain.algorithms.networks.batched_mlp import EncoderMLP
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.target_network import replay_plan
from rltrain.algorithms.offline.settings import MARWILConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, Transition

SMALLEST = 1e-6  # c


class MARWIL:
    """Monotonic advantage re-weighted imitation learning, Wang et al. 2018 (NeurIPS), for Box and Discrete actions.

    The advantage of an action of the data is the discounted return that followed it, minus the value of its state. The
    return is that of the rest of the episode; where a time limit or the end of the data cuts it off, the value of the
    last observation takes the place of the rest. The value learns the same returns. The advantage is divided by its
    running norm c, so that `advantage_factor` has the same effect for all scales of reward. With the factor 0 this is
    behaviour cloning by likelihood.

    With `norm_rate` 0, c is 1: the update of advantage-weighted regression, Peng et al. 2019 (arXiv:1910.00177).
    """

    def __init__(self, spec: EnvSpec, config: MARWILConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size)
        generator = torch.Generator().manual_seed(seed + 1)
        self.value = EncoderMLP(spec, config, 0, 1, 1, generator).to(device)
        self.norm = RunningNorm().to(device)
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        self.value_optimizer = Adam(flatten(self.value), eps=config.adam_eps)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition | Trajectory, progress: float) -> Update:
        """One step of the value, of the running norm, and of the policy."""
        config, policy = self.config, self.policy
        if isinstance(batch, Trajectory):
            batch = learned_steps(batch, self.plan)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        rows, limit = len(batch.reward), config.max_grad_norm
        lr_fraction = linear(1.0, config.lr_end_share, progress)

        with torch.no_grad():
            next_value = self.value.forward(next_obs).view(-1)  # [B]
            returns = torch.addcmul(batch.reward, batch.discount, next_value)
        value = self.value.forward(obs)  # [1, B, 1]
        loss_value, error = critic_loss(value, returns, None)
        metrics = {"loss_value": loss_value.detach()}
        lr = lr_fraction * config.lr
        step(self.value_optimizer, loss_value, lr, limit, self.sync, rows, metrics)

        advantage = -error.view(-1)  # [B], of the value before its step
        norm = self.norm.follow(advantage, config.norm_rate, self.sync)
        weight = (config.advantage_factor * advantage / norm).exp_().clamp_(max=config.max_weight)
        loss_policy = -(weight * policy.distribution(obs, batch.action_mask).log_prob(batch.action)).mean()
        of_policy = {"loss_policy": loss_policy.detach()}
        grad_norm = step(self.optimizer, loss_policy, lr, limit, self.sync, rows, of_policy)
        return Update({**metrics, **of_policy, "advantage_norm": norm, "grad_norm": grad_norm})

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the learned mean return of the data."""
        return self.value.forward(self.policy.normalised(obs)).view(-1)

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics of observations; called with the data before the first update."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "value": self.value,
            "value_optimizer": self.value_optimizer,
            "norm": self.norm,
        }


class RunningNorm(nn.Module):
    """c, where c^2 += rate * (mean(x^2) - c^2), and the first batch sets c^2; with the rate 0, c is 1."""

    square: Tensor  # [] c^2, 0 before the first batch

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("square", torch.zeros(()))

    def follow(self, x: Tensor, rate: float, sync: GradientSync) -> Tensor:
        """[] c after a batch x [B], of which other learners may have other rows."""
        if not rate:
            return torch.ones_like(self.square)
        mean = sync.moments(x.square()).mean
        self.square.copy_(torch.where(self.square > 0, self.square + rate * (mean - self.square), mean))
        return self.square.sqrt().clamp(min=SMALLEST)
