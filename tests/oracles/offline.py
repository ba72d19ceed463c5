"""Whole updates of the algorithms that learn from data alone, written out by formulas, from first weights on.

Nets are the lists of weights and biases of `oracles.off_policy`; gradients and Adam are torch's own. All is float64.
With memory the observations are `oracles.memory.Seen`, and each net has the weights of the memory before it.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from oracles import memory
from oracles.off_policy import Net, nets, run
from torch import Tensor
from torch.distributions import Categorical, Normal

from rltrain.rollout.types import Transition


class Remembering(list[Any]):
    """A net, and the memory before it, which all nets of a network share."""

    def __init__(self, layers: Net, network: Any) -> None:
        super().__init__(layers)
        self.acts = network.encoder.acts
        self.memory: list[Tensor] = []


def flat(group: list[Net]) -> list[Tensor]:
    """All weights of the nets of a network, and those of their memory."""
    return [x for net in group for layer in net for x in layer] + getattr(group[0], "memory", [])


class Reference:
    """What the algorithms share: nets that begin with those of `algorithm`, and an Adam for each of them."""

    def __init__(self, algorithm: Any) -> None:
        self.config, self.spec = algorithm.config, algorithm.policy.spec
        self.box = self.spec.action.kind == "box"
        self.actor = self.learned(algorithm.policy.actor)
        self.of_actor = self.adam(flat(self.actor))

    def learned(self, network: Any) -> list[Net]:
        found: list[Any] = nets(network.dense)
        if self.config.memory != "none":
            cell = network.encoder.memory
            weights = [x.detach().clone() for x in (cell.weight_x, cell.weight_h, cell.bias_x, cell.bias_h)]
            found = [Remembering(net, network) for net in found]
            for net in found:
                net.memory = weights
        for x in flat(found):
            x.requires_grad_()
        return found

    def adam(self, params: list[Tensor], lr: float | None = None) -> torch.optim.Adam:
        return torch.optim.Adam(params, lr=lr or self.config.lr, eps=self.config.adam_eps)

    def apply(self, optimizer: torch.optim.Adam, loss: Tensor) -> None:
        """One step of these parameters alone."""
        params = optimizer.param_groups[0]["params"]
        for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = grad
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(params, self.config.max_grad_norm)
        optimizer.step()

    def of(self, net: Net, obs: Any, *inputs: Tensor) -> Tensor:
        if isinstance(net, Remembering):
            obs = memory.remembered(self.config.memory, net.memory, obs, net.acts)
        return run(net, obs, *inputs, activation=self.config.activation)

    def probabilities(self, obs: Tensor, mask: Tensor | None) -> Tensor:
        """[B, n] probabilities of actions, 0 where the mask forbids."""
        logits = self.of(self.actor[0], obs)
        return Categorical(logits=logits if mask is None else torch.where(mask, logits, -1e30)).probs


class BCReference(Reference):
    """Squared error of the mean action (Fujimoto and Gu 2021, section 4), or the log-likelihood of a class."""

    def update(self, batch: Transition) -> None:
        rows = len(batch.reward)
        if self.box:
            action = torch.tanh(self.of(self.actor[0], batch.obs))
            loss = sum(((action[b] - batch.action[b]) ** 2).mean() for b in range(rows)) / rows
        else:
            probs = self.probabilities(batch.obs, batch.action_mask)
            loss = -sum(torch.log(probs[b, batch.action[b]]) for b in range(rows)) / rows
        self.apply(self.of_actor, loss)


class WithCritics(Reference):
    """And critics, with targets that follow them."""

    def __init__(self, algorithm: Any, seed: int) -> None:
        super().__init__(algorithm)
        self.critics = self.learned(algorithm.critics)
        self.of_critics = self.adam(flat(self.critics), self.config.lr_q)
        self.target_critics = copy.deepcopy(self.critics)
        self.random = torch.Generator().manual_seed(seed)
        self.updates = 0

    def q(self, critics: list[Net], obs: Tensor, action: Tensor) -> list[Tensor]:
        """[B] of each critic: the value of these actions."""
        if self.box:
            return [self.of(net, obs, action)[:, 0] for net in critics]
        return [self.of(net, obs)[torch.arange(len(action)), action] for net in critics]

    def least(self, critics: list[Net], obs: Tensor, action: Tensor) -> Tensor:
        return torch.stack(self.q(critics, obs, action)).min(0).values

    def learn_critics(self, batch: Transition, target: Tensor) -> None:
        loss = sum(0.5 * ((q - target) ** 2).mean() for q in self.q(self.critics, batch.obs, batch.action))
        self.apply(self.of_critics, loss)

    def follow(self, slow: list[Net], fast: list[Net]) -> None:
        with torch.no_grad():
            for old, new in zip(flat(slow), flat(fast), strict=True):
                old.copy_((1 - self.config.tau) * old + self.config.tau * new)


class TD3BCReference(WithCritics):
    """Fujimoto and Gu 2021: equations 3 and 5, and Fujimoto et al. 2018, algorithm 1."""

    def __init__(self, algorithm: Any, seed: int) -> None:
        super().__init__(algorithm, seed)
        self.target_actor = copy.deepcopy(self.actor)

    def update(self, batch: Transition) -> None:
        config = self.config
        self.updates += 1
        noise = torch.randn(batch.action.shape, generator=self.random) * config.smoothing
        with torch.no_grad():
            action = torch.tanh(self.of(self.target_actor[0], batch.next_obs))
            action = (action + noise.clip(-config.smoothing_clip, config.smoothing_clip)).clip(-1, 1)
            target = batch.reward + batch.discount * self.least(self.target_critics, batch.next_obs, action)
        self.learn_critics(batch, target)
        if self.updates % config.policy_delay:
            return
        action = torch.tanh(self.of(self.actor[0], batch.obs))
        q = self.q(self.critics[:1], batch.obs, action)[0]
        weight = config.q_weight / (q.detach().abs().sum() / len(q))
        self.apply(self.of_actor, -(weight * q).mean() + torch.nn.functional.mse_loss(action, batch.action))
        self.follow(self.target_actor, self.actor)
        self.follow(self.target_critics, self.critics)


class WeightedReference(WithCritics):
    """A policy that imitates the data's actions with weights: normal around tanh(net), or a class."""

    def __init__(self, algorithm: Any, seed: int) -> None:
        super().__init__(algorithm, seed)
        params = flat(self.actor)
        if self.box:
            self.log_std = algorithm.policy.log_std.detach().clone().requires_grad_()
            params = [self.log_std, *params]
        self.of_actor = self.adam(params)

    def normal(self, obs: Tensor) -> Normal:
        return Normal(torch.tanh(self.of(self.actor[0], obs)), self.log_std.clip(-5, 2).exp())

    def imitate(self, batch: Transition, advantage: Tensor, lr: float) -> None:
        weight = torch.exp(self.config.advantage_factor * advantage).clip(max=self.config.max_weight)
        if self.box:
            log_prob = self.normal(batch.obs).log_prob(batch.action).sum(1)
        else:
            probs = self.probabilities(batch.obs, batch.action_mask)
            log_prob = torch.log(probs[torch.arange(len(weight)), batch.action])
        self.of_actor.param_groups[0]["lr"] = lr
        self.apply(self.of_actor, -(weight * log_prob).mean())


class ImplicitQReference(WeightedReference):
    """Kostrikov et al. 2021: equations 5, 6 and 7, with targets of the critics and a cosine for the policy."""

    def __init__(self, algorithm: Any, seed: int) -> None:
        super().__init__(algorithm, seed)
        self.value = self.learned(algorithm.value)
        self.of_value = self.adam(flat(self.value), self.config.lr_q)

    def update(self, batch: Transition, progress: float) -> None:
        with torch.no_grad():
            target = batch.reward + batch.discount * self.of(self.value[0], batch.next_obs)[:, 0]
            q = self.least(self.target_critics, batch.obs, batch.action)
        advantage = q - self.of(self.value[0], batch.obs)[:, 0]
        loss = (torch.abs(self.config.expectile - (advantage < 0).double()) * advantage**2).mean()
        self.apply(self.of_value, loss)
        self.learn_critics(batch, target)
        self.follow(self.target_critics, self.critics)
        share = (1 + math.cos(math.pi * progress)) / 2 if self.config.cosine else 1.0
        self.imitate(batch, advantage.detach(), share * self.config.lr)


class MARWILReference(WeightedReference):
    """Wang et al. 2018: section 4.1, with returns R = reward + discount * V(last observation), and the norm c."""

    def __init__(self, algorithm: Any) -> None:
        Reference.__init__(self, algorithm)
        params = flat(self.actor)
        if self.box:
            self.log_std = algorithm.policy.log_std.detach().clone().requires_grad_()
            params = [self.log_std, *params]
        self.of_actor = self.adam(params)
        self.value = self.learned(algorithm.value)
        self.of_value = self.adam(flat(self.value))
        self.square = None

    def update(self, batch: Transition, progress: float) -> None:
        config, rows = self.config, len(batch.reward)
        lr = config.lr * (1 if config.lr_end_share is None else 1 + (config.lr_end_share - 1) * progress)
        value = self.of(self.value[0], batch.obs)[:, 0]
        after = self.of(self.value[0], batch.next_obs)[:, 0].detach()
        returns = [batch.reward[b] + batch.discount[b] * after[b] for b in range(rows)]
        advantage = torch.stack([returns[b] - value[b].detach() for b in range(rows)])
        self.of_value.param_groups[0]["lr"] = lr
        self.apply(self.of_value, sum(0.5 * (returns[b] - value[b]) ** 2 for b in range(rows)) / rows)
        mean = float(sum(x * x for x in advantage) / rows)
        self.square = mean if self.square is None else (1 - config.norm_rate) * self.square + config.norm_rate * mean
        norm = math.sqrt(self.square) if config.norm_rate else 1.0
        self.imitate(batch, advantage / norm, lr)


class AWACReference(WeightedReference):
    """Nair et al. 2020: equations 5 and 13, the value of a state from one sample, or exact for classes."""

    def state_value(self, critics: list[Net], obs: Tensor, mask: Tensor | None) -> Tensor:
        if self.box:
            dist = self.normal(obs)
            action = dist.loc + dist.scale * torch.randn(dist.loc.shape, generator=self.random)
            return self.least(critics, obs, action.clip(-1, 1))
        q = torch.stack([self.of(net, obs) for net in critics]).min(0).values
        return (self.probabilities(obs, mask) * q).sum(1)

    def update(self, batch: Transition) -> None:
        with torch.no_grad():
            value = self.state_value(self.target_critics, batch.next_obs, batch.next_action_mask)
        self.learn_critics(batch, batch.reward + batch.discount * value)
        with torch.no_grad():
            q = self.least(self.critics, batch.obs, batch.action)
            advantage = q - self.state_value(self.critics, batch.obs, batch.action_mask)
        self.imitate(batch, advantage, self.config.lr)
        self.follow(self.target_critics, self.critics)


class CQLReference(WithCritics):
    """Kumar et al. 2020: equation 4 with the estimate of appendix F, one row and one action at a time; then SAC."""

    def __init__(self, algorithm: Any, seed: int) -> None:
        super().__init__(algorithm, seed)
        self.log_temperature = torch.tensor(math.log(self.config.temperature), requires_grad=True)
        self.of_temperature = self.adam([self.log_temperature], self.config.lr_temperature)

    def squashed(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        head = self.of(self.actor[0], obs)
        half = head.shape[1] // 2
        dist = Normal(head[:, :half], head[:, half:].clip(-20, 2).exp())
        u = dist.loc + dist.scale * noise
        return torch.tanh(u), (dist.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(1)

    def update(self, batch: Transition) -> None:
        config, (rows, size) = self.config, batch.action.shape
        count = config.samples
        noise = torch.randn(2, count + 1, rows, size, generator=self.random)
        uniform = torch.rand(count, rows, size, generator=self.random)
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            after, _ = self.squashed(batch.next_obs, noise[1, 0])
            target = batch.reward + batch.discount * self.least(self.target_critics, batch.next_obs, after)
            proposed = [(2 * uniform[k] - 1, torch.full((rows,), -size * math.log(2.0))) for k in range(count)]
            proposed += [self.squashed(batch.next_obs, noise[1, k]) for k in range(1, count + 1)]
            proposed += [self.squashed(batch.obs, noise[0, k]) for k in range(1, count + 1)]
        loss = torch.zeros(())
        for net in self.critics:
            of_data = self.of(net, batch.obs, batch.action)[:, 0]
            of_others = [self.of(net, batch.obs, action)[:, 0] - density for action, density in proposed]
            gap = torch.stack(of_others).exp().sum(0).log() - of_data
            loss = loss + ((of_data - target) ** 2).mean() + config.conservative * gap.mean()
        self.apply(self.of_critics, loss)

        action, log_prob = self.squashed(batch.obs, noise[0, 0])
        self.apply(self.of_actor, (temperature * log_prob - self.least(self.critics, batch.obs, action)).mean())
        if config.learn_temperature:
            wanted = -size if config.target_entropy is None else config.target_entropy
            loss = -(self.log_temperature * (log_prob.detach() + wanted)).mean()
            self.apply(self.of_temperature, loss)
        self.follow(self.target_critics, self.critics)


class DiscreteCQLReference(Reference):
    """Kumar et al. 2020, equation 4 for a finite set of actions; double Q-learning with the Huber loss."""

    def __init__(self, algorithm: Any) -> None:
        super().__init__(algorithm)
        self.of_actor = self.adam(flat(self.actor), self.config.lr_q)
        self.target_actor = copy.deepcopy(self.actor)

    def update(self, batch: Transition) -> None:
        config = self.config
        loss = torch.zeros(())
        with torch.no_grad():
            after_online, after_slow = (self.of(net[0], batch.next_obs) for net in (self.actor, self.target_actor))
        now = self.of(self.actor[0], batch.obs)
        for b in range(len(batch.reward)):
            n = 4
            legal = list(range(n)) if batch.action_mask is None else batch.action_mask[b].nonzero()[:, 0].tolist()
            after = range(n) if batch.next_action_mask is None else batch.next_action_mask[b].nonzero()[:, 0].tolist()
            with torch.no_grad():
                online, slow = after_online[b], after_slow[b]
                best = max(after, key=lambda a: float(online[a]))
                target = batch.reward[b] + batch.discount[b] * slow[best]
            q = now[b]
            u = q[batch.action[b]] - target
            gap = torch.log(sum(q[a].exp() for a in legal)) - q[batch.action[b]]
            huber = 0.5 * u**2 if abs(u) <= 1 else abs(u) - 0.5
            loss = loss + (huber + config.conservative * gap) / len(batch.reward)
        self.apply(self.of_actor, loss)
        with torch.no_grad():
            for old, new in zip(flat(self.target_actor), flat(self.actor), strict=True):
                old.copy_((1 - config.tau) * old + config.tau * new)
