"""Deep Q-learning and the extensions that make up Rainbow, each with a switch of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.q_losses import categorical_loss, q_loss
from rltrain.algorithms.functions.returns import project
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.off_policy.q_policy import QNetwork, greedy
from rltrain.algorithms.off_policy.sequences import learned_steps
from rltrain.algorithms.off_policy.settings import DQNConfig
from rltrain.algorithms.off_policy.target_network import TargetNetwork, priority, replay_plan
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build_policy
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, Transition


class DQN:
    """Deep Q-learning, Mnih et al. 2015, and its extensions.

    double       van Hasselt et al. 2016 (arXiv:1509.06461): the online network selects, the target network evaluates
    dueling      Wang et al. 2016 (arXiv:1511.06581)
    n_step       Sutton 1988; the replay sums the rewards
    prioritized  Schaul et al. 2016 (arXiv:1511.05952); the replay samples and weights, this class computes the errors
    atoms        Bellemare et al. 2017 (arXiv:1707.06887): C51
    noisy        Fortunato et al. 2018 (arXiv:1706.10295)

    All of them together are Rainbow (Hessel et al. 2018, arXiv:1710.02298). Deviations: Adam in place of RMSProp; the
    priority of C51 is the cross-entropy. A time limit does not end the return: the sample's `discount` is 0 after a
    termination only.
    """

    def __init__(self, spec: EnvSpec, config: DQNConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.observes = config.normalize_obs
        self.policy = build_policy(spec, config, device, seed, streams)
        self.plan = replay_plan(config, core_size=self.policy.core_size)
        self.net: QNetwork = self.policy.net
        flat = flatten(self.policy)
        self.target = TargetNetwork(self.net, flat)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.rng = Rng(seed)
        self.sync: GradientSync = SINGLE
        self.last_progress: float | None = None  # of the previous update, for target_every = 0
        self.net.draw(self.rng.generator)  # the noise of actors until the first update

    def update(self, batch: Transition | Trajectory, progress: float) -> Update:
        """One gradient step on one sample of the replay, then one step of the target network."""
        config, policy = self.config, self.policy
        if isinstance(batch, Trajectory):
            batch = learned_steps(batch, config)
        if config.target_every == 0 and progress != self.last_progress:  # the first update after new data
            self.target.follow(1.0)
            self.last_progress = progress
        lr, epsilon = linear(config.lr, config.lr_end, progress), policy.explore(progress)
        target = self.targets(batch, policy.normalised(batch.next_obs))
        if config.noisy:
            self.net.draw(self.rng.generator)  # actors then use this noise too
        out = self.net.forward(policy.normalised(batch.obs))  # [B, n], or logits [B, n, atoms]
        if config.atoms == 1:
            loss, error = q_loss(out, batch.action, target, batch.weight, config.loss)  # [], [B]
            q = target + error  # = Q(o, a)
        else:
            logits = _select(out, batch.action)  # [B, atoms]
            loss, error = categorical_loss(logits, target, batch.weight)
            q = torch.softmax(logits.detach(), -1) @ self.net.support
        metrics = {"loss_q": loss.detach(), "q_mean": q.mean()}
        metrics["grad_norm"] = step(self.optimizer, loss, lr, config.max_grad_norm, self.sync, len(target), metrics)
        self.target.follow_on_schedule(config.tau, config.target_every, self.optimizer.steps)
        schedules = {"lr": lr} if config.noisy else {"lr": lr, "epsilon": epsilon}
        return Update({**metrics, **schedules}, priority(error.unsqueeze(0), batch))

    @torch.no_grad()
    def targets(self, batch: Transition, next_obs: Tree) -> Tensor:
        """[B] r + discount * max_a Q'(o', a), or [B, atoms] the projected distribution of r + discount * Z'(o', a*)."""
        config, net, target = self.config, self.net, self.target.module
        if config.noisy:
            target.draw(self.rng.generator)
            if config.double:
                net.draw(self.rng.generator)
        next_q = target.forward(next_obs)  # [B, n] or [B, n, atoms]
        if not config.double and config.atoms == 1 and batch.next_action_mask is None:
            return torch.addcmul(batch.reward, batch.discount, next_q.amax(-1))
        selector = net.forward(next_obs) if config.double else next_q
        next_q = _select(next_q, greedy(net.expected(selector), batch.next_action_mask))  # [B] or [B, atoms]
        if config.atoms == 1:
            return torch.addcmul(batch.reward, batch.discount, next_q)
        return project(torch.softmax(next_q, -1), net.support, batch.reward, batch.discount)

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics, once per delivery and after its updates: the next unroll acts with them."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything that a checkpoint must hold; the optimiser's step count also times the copies of the target."""
        return {"policy": self.policy, "target": self.target, "optimizer": self.optimizer, "rng": self.rng}


def _select(out: Tensor, action: Tensor) -> Tensor:
    """The entries of out [B, n] or [B, n, atoms] at action [B]: [B] or [B, atoms]."""
    index = action.view(-1, *(1,) * (out.ndim - 1)).expand(-1, 1, *out.shape[2:])
    return out.gather(1, index).squeeze(1)
