"""Conservative Q-learning for Discrete actions."""

from __future__ import annotations

import torch

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import gather_action
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import q_loss
from rltrain.algorithms.off_policy.q_policy import greedy
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.target_network import TargetNetwork, replay_plan
from rltrain.algorithms.offline.settings import CQLConfig
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory, Transition


class DiscreteCQL:
    """CQL(H) of Kumar et al. 2020 (arXiv:2006.04779) on top of double Q-learning, with the Huber loss.

    The logits of the policy are the values of the actions, so its most likely action is the greedy one. The
    conservative term log sum exp Q(o, .) - Q(o, a) is minus the log-likelihood of the data's action. Deviation: the
    paper's values are quantiles (QR-DQN), and its targets are copied.
    """

    def __init__(self, spec: EnvSpec, config: CQLConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size)
        flat = flatten(self.policy)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.policy.actor, flat)
        self.sync: GradientSync = SINGLE

    def update(self, batch: Transition | Trajectory, progress: float) -> Update:
        """One step of the values, and of their target."""
        config, policy = self.config, self.policy
        if isinstance(batch, Trajectory):
            batch = learned_steps(batch, self.plan)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        with torch.no_grad():
            best = greedy(policy.actor.forward(next_obs)[0], batch.next_action_mask)  # [B]
            next_q = gather_action(self.target.module.forward(next_obs)[0], best)
            target = torch.addcmul(batch.reward, batch.discount, next_q)
        dist = policy.distribution(obs, batch.action_mask)  # its logits are values; those of illegal actions are lowest
        loss_q, error = q_loss(dist.logits, batch.action, target, None, "huber")
        gap = -dist.log_prob(batch.action).mean()
        metrics = {
            "loss_q": loss_q.detach(),
            "q_mean": (target + error).mean(),
            "conservative_gap": gap.detach(),
        }
        lr = linear(1.0, config.lr_end_share, progress) * (config.lr_q or config.lr)
        loss = loss_q + config.conservative * gap
        grad_norm = step(self.optimizer, loss, lr, config.max_grad_norm, self.sync, len(target), metrics)
        self.target.follow(config.tau)
        return Update({**metrics, "grad_norm": grad_norm})

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics of observations; called with the data before the first update."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold."""
        return {"policy": self.policy, "optimizer": self.optimizer, "target": self.target}
