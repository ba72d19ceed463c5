"""CrossQ: soft actor-critic with batch normalisation and without target networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import critic_loss
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.off_policy.continuous_policy import require_box
from rltrain.algorithms.off_policy.settings import CrossQConfig
from rltrain.algorithms.off_policy.state_value import sampled_value, smallest
from rltrain.algorithms.off_policy.target_network import make_critics, priority, replay_plan
from rltrain.algorithms.off_policy.temperature import Temperature
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree, leaves, unflatten
from rltrain.rollout.types import Trajectory, Transition

BETAS = (0.5, 0.999)  # of Adam, for the policy and the critics


class CrossQ:
    """CrossQ, Bhatt et al. 2024 (arXiv:1902.05605).

    The critics compute the values of a batch and of its next observations in one pass, so that batch normalisation sees
    both distributions at once; the values of the next observations, without gradient, make the target. The policy is
    normalised too. Batches give their moments in the pass that learns, else the running moments are used.

    The learners of a run cannot share an update, because the moments are those of the whole batch. The rest is SAC: see
    there for deviations.
    """

    def __init__(self, spec: EnvSpec, config: CrossQConfig, device: torch.device, seed: int, streams: int) -> None:
        require_box(spec)
        self.config = config
        self.plan = replay_plan(config)
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.size = math.prod(spec.action.shape)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critics = make_critics(spec, config, self.size, 1, generator, norm="batch").to(device)
        self.optimizer = Adam(flatten(self.policy), config.adam_eps, BETAS)
        self.critics_optimizer = Adam(flatten(self.critics), config.adam_eps, BETAS)
        self.target_entropy = -float(self.size) if config.target_entropy is None else config.target_entropy
        self.temperature = Temperature(config, device)
        self.rng = Rng(seed)

    def update(self, batch: Transition, progress: float) -> Update:
        """A step of the critics; at every `policy_delay`-th one also of the policy and of the temperature."""
        config, policy, critics = self.config, self.policy, self.critics
        lr_fraction = linear(1.0, config.lr_end_share, progress)
        obs, next_obs = policy.normalised(batch.obs), policy.normalised(batch.next_obs)
        rows = len(batch.reward)
        noise = self.rng.normal(2, rows, self.size).to(batch.reward.device)  # [2, B, A]
        temperature = self.temperature.value()  # []

        with torch.no_grad():
            next_action, next_log_prob = policy.sample(next_obs, noise[0])
        actions = torch.cat([batch.action.reshape(rows, -1), next_action.reshape(rows, -1)])  # [2B, A]
        both = critics(joined(obs, next_obs), actions, batch_statistics=True)  # [n, 2B, 1]
        q, next_q = both.split(rows, 1)  # [n, B, 1] each
        with torch.no_grad():
            next_q = next_q.amin(0).squeeze(-1)  # [B]
            target = torch.addcmul(batch.reward, batch.discount, next_q - temperature * next_log_prob)
        loss_q, error = critic_loss(q.squeeze(-1), target, batch.weight)
        metrics = {"loss_q": loss_q.detach(), "q_mean": q.detach().mean()}
        lr_q, limit = lr_fraction * (config.lr_q or config.lr), config.max_grad_norm
        grad_norm = step(self.critics_optimizer, loss_q, lr_q, limit)

        if self.critics_optimizer.steps % config.policy_delay == 0:
            action, log_prob = policy.sample(obs, noise[1], batch_statistics=True)
            q = critics(obs, action.reshape(rows, -1), frozen=True).min(0).values  # [B, 1]
            loss_policy = (temperature * log_prob).mean() - q.mean()
            entropy = -log_prob.detach().mean()
            step(self.optimizer, loss_policy, lr_fraction * config.lr, limit)
            if config.learn_temperature:
                self.temperature.update(entropy - self.target_entropy, lr_fraction)
            metrics |= {"loss_policy": loss_policy.detach(), "entropy": entropy}

        metrics |= {"temperature": temperature, "grad_norm": grad_norm}
        return Update({**metrics}, priority(error, batch))

    def state_value(self, obs: Tree, action_mask: Tensor | None) -> Tensor:
        """See `Algorithm`: the mean of the smallest critic's value minus temperature * log pi over fixed draws."""
        return sampled_value(self.policy, self.critics, obs, self.size, self.temperature.value(), smallest)

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics, once per delivery and after its updates: the next unroll acts with them."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold; the step count of the critics also times the policy."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "critics": self.critics,
            "critics_optimizer": self.critics_optimizer,
            "temperature": self.temperature,
            "rng": self.rng,
        }


def joined(obs: Tree, next_obs: Tree) -> Tree:
    """Two trees of [B, *O] to one of [2B, *O]."""
    pairs = zip(leaves(obs), leaves(next_obs), strict=True)
    return unflatten(obs, [torch.cat(pair) for pair in pairs])
