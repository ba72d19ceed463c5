"""Behaviour cloning."""

from __future__ import annotations

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.off_policy.continuous_policy import deterministic
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.target_network import replay_plan
from rltrain.algorithms.offline.settings import BCConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory, Transition


class BC:
    """Behaviour cloning, Pomerleau 1991: supervised learning of the actions in the data.

    Box actions: a deterministic policy and the squared error, as in Fujimoto and Gu 2021 (arXiv:2106.06860). Discrete
    actions: the log-likelihood. With `filter_top` the data are the episodes of highest return, which is the "10% BC" of
    Chen et al. 2021 (arXiv:2106.01345).
    """

    def __init__(self, spec: EnvSpec, config: BCConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size, gamma=1.0, best=config.filter_top)
        self.box = spec.action.kind == "box"
        self.optimizer = Adam(flatten(self.policy), eps=config.adam_eps)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition | Trajectory, progress: float) -> Update:
        """One gradient step on one batch of the data."""
        config = self.config
        if isinstance(batch, Trajectory):
            batch = learned_steps(batch, self.plan)
        loss = self.loss(batch)
        metrics = {"loss_policy": loss.detach()}
        lr = linear(config.lr, config.lr_end, progress)
        grad_norm = step(self.optimizer, loss, lr, config.max_grad_norm, self.sync, len(batch.reward), metrics)
        return Update({**metrics, "grad_norm": grad_norm})

    def loss(self, batch: Transition) -> Tensor:
        """[] mean over rows and dimensions of (pi(o) - a)^2, or over rows of -log pi(a | o)."""
        obs = self.policy.normalised(batch.obs)
        if self.box:
            error: Tensor = deterministic(self.policy.actor, obs) - batch.action.reshape(len(batch.action), -1)
            return error.square().mean()
        log_prob: Tensor = self.policy.distribution(obs, batch.action_mask).log_prob(batch.action)  # [B]
        return -log_prob.mean()

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics of observations; called with the data before the first update."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold."""
        return {"policy": self.policy, "optimizer": self.optimizer}
