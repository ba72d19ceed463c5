"""Deep Q-learning, with everything that makes it Rainbow as a switch each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rltrain.algorithms.functions.gradient_sync import SINGLE, GradientSync
from rltrain.algorithms.functions.losses import gather_action
from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.returns import project
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks.mlp import Tape
from rltrain.algorithms.off_policy.q_policy import QNetwork, greedy
from rltrain.algorithms.off_policy.settings import DQNConfig
from rltrain.algorithms.off_policy.target_network import TargetNetwork, replay_plan
from rltrain.algorithms.protocol import Stateful, Update
from rltrain.algorithms.registry import build, placed, policy_factory
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree
from rltrain.rollout.types import Trajectory, Transition


class Loss(NamedTuple):
    """What one pass over a batch says."""

    mean: Tensor  # [] over the batch, weighted
    slope: Tensor  # [B, n] or [B, n, atoms] its gradient, with respect to what the network put out
    error: Tensor  # [B] its size is what priorities are made of, not weighted
    q: Tensor  # [B] Q(obs, action)


class DQN:
    """Deep Q-learning, Mnih et al. 2015, and its switches.

    double       van Hasselt et al. 2016 (arXiv:1509.06461): the online network chooses, the target network judges
    dueling      Wang et al. 2016 (arXiv:1511.06581)
    n_step       Sutton 1988; the replay sums the rewards
    prioritized  Schaul et al. 2016 (arXiv:1511.05952); the replay samples and weights, the error comes from here
    atoms        Bellemare et al. 2017 (arXiv:1707.06887): C51
    noisy        Fortunato et al. 2018 (arXiv:1706.10295)

    All of them together are Rainbow (Hessel et al. 2018, arXiv:1710.02298). Deviations: Adam in place of RMSProp; the
    priority of C51 is the cross-entropy. A time limit is not a death: the sample's `discount` is 0 after a
    termination only.
    """

    def __init__(self, spec: EnvSpec, config: DQNConfig, device: torch.device, seed: int, streams: int) -> None:
        self.config = config
        self.plan = replay_plan(config)
        self.observes = config.normalize_obs
        self.policy = placed(build(policy_factory(config.policy), spec, config, streams, seed), device)
        self.net: QNetwork = self.policy.net
        flat = flatten(self.policy)
        self.target = TargetNetwork(self.net, flat)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.tape = Tape(self.net)
        self.rng = Rng(seed)
        self.group: GradientSync = SINGLE
        self.round: float | None = None  # which share of the run was done when the newest round of updates began
        self.net.draw(self.rng.generator)  # for actors, until the first update

    def update(self, batch: Transition, progress: float) -> Update:
        """One step on one sample of the replay; the target network then follows."""
        config, policy = self.config, self.policy
        if config.target_every == 0 and progress != self.round:  # the same for all updates that a delivery buys
            self.target.follow(1.0)
            self.round = progress
        lr = linear(config.lr, config.lr_end, progress)
        epsilon = policy.explore(progress)
        target = self.targets(batch, policy.normalised(batch.next_obs))
        if config.noisy:
            self.net.draw(self.rng.generator)  # actors then act with this noise
        with self.tape:
            out = self.net.forward(policy.normalised(batch.obs))  # [B, n] or [B, n, atoms]
        loss = self.loss(out.detach(), batch.action, target, batch.weight)
        told = {"loss_q": loss.mean, "q_mean": loss.q.mean()}
        merge = self.group.over(len(loss.q), told)
        told["grad_norm"] = step(
            self.optimizer, out, lr, config.max_grad_norm, lambda out: self.tape.backward(out, loss.slope), merge
        )
        self.follow()
        explored = {} if config.noisy else {"epsilon": epsilon}
        return Update({**told, "lr": lr, **explored}, None if batch.index is None else loss.error.abs())

    @torch.no_grad()
    def targets(self, batch: Transition, next_obs: Tree) -> Tensor:
        """[B] what Q(obs, action) should become, or [B, atoms] what its distribution should."""
        if self.config.noisy:
            self.target.module.draw(self.rng.generator)
            if self.config.double:
                self.net.draw(self.rng.generator)
        judged = self.target.module.forward(next_obs)  # [B, n] or [B, n, atoms]
        chooser = self.net.forward(next_obs) if self.config.double else judged
        if chooser is judged and self.config.atoms == 1 and batch.next_action_mask is None:
            return torch.addcmul(batch.reward, batch.discount, judged.amax(-1))
        best = greedy(self.net.expected(chooser), batch.next_action_mask)  # [B]
        if self.config.atoms == 1:
            return torch.addcmul(batch.reward, batch.discount, gather_action(judged, best))
        probs = torch.softmax(picked(judged, best), -1)  # [B, atoms]
        return project(probs, self.net.support, batch.reward, batch.discount)

    @torch.no_grad()
    def loss(self, out: Tensor, action: Tensor, target: Tensor, weight: Tensor | None) -> Loss:
        """The loss of what the network put out, and its gradient, which is shorter than the way there and back."""
        share = 1 / len(action) if weight is None else weight / len(action)  # of the mean
        column = action.view(-1, 1)
        if self.config.atoms > 1:
            log_probs = torch.log_softmax(picked(out, action), -1)  # [B, atoms]
            probs = log_probs.exp()
            error = -(target * log_probs).sum(-1)
            mean = (error * share).sum()
            slope = ((probs - target).t() * share).t().unsqueeze(1)  # [B, 1, atoms]
            q = probs @ self.net.support
            column = column.unsqueeze(-1).expand_as(slope)
        else:
            q = out.gather(1, column).squeeze(1)
            error = q - target
            if self.config.loss == "huber":
                bounded = error.clamp(-1, 1)
                each = bounded * share
                mean = each.dot(torch.sub(error, bounded, alpha=0.5))
            else:
                each = error * share
                mean = each.dot(error)
                each *= 2
            slope = each.view(-1, 1)
        return Loss(mean, torch.zeros_like(out).scatter_(1, column, slope), error, q)

    def follow(self) -> None:
        """After an update: the target network copies the online one now and then, or moves a little towards it."""
        config = self.config
        if config.tau is not None:
            self.target.follow(config.tau)
        elif config.target_every and self.optimizer.steps % config.target_every == 0:
            self.target.follow(1.0)

    def observe(self, unrolls: Trajectory) -> None:
        """Running statistics, once per delivery and after its updates: the next unroll acts with them."""
        self.policy.observe(unrolls)

    def parts(self) -> dict[str, Stateful]:
        """Everything a checkpoint must hold; the optimiser's count of steps also times the target's copies."""
        return {"policy": self.policy, "target": self.target, "optimizer": self.optimizer, "rng": self.rng}


def picked(out: Tensor, action: Tensor) -> Tensor:
    """[B, atoms] the rows of out [B, n, atoms] that action [B] picks."""
    return out.gather(1, action[:, None, None].expand(-1, 1, out.shape[-1])).squeeze(1)
