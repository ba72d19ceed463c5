"""Whole updates of SAC, TD3 and DDPG written anew: one net at a time by formulas, torch's distributions and optimisers.

Nothing here comes from `algorithms` but the first weights. Everything is float64.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

from rltrain.envs.spec import ActionSpec, EnvSpec, Leaf
from rltrain.rollout.types import Transition

Net = list[tuple[Tensor, ...]]  # weight and bias of each layer, and with layer normalisation its gain and shift

BOX = EnvSpec("box", Leaf("box", (3,), "float32"), ActionSpec("box", (2,), (), (0.5, -1.0), (3.0, 1.0)))
DISCRETE = EnvSpec("discrete", Leaf("box", (3,), "float32"), ActionSpec("discrete", (), (4,)))
MASKED = EnvSpec("masked", Leaf("box", (3,), "float32"), ActionSpec("discrete", (), (4,)), action_mask=True)


def batch_of(spec: EnvSpec, seed: int, rows: int = 12, weighted: bool = True) -> Transition:
    """Made-up samples: ended or not, of one to three steps, weighted."""
    rng = np.random.default_rng(seed)

    def tensor(x: Any) -> Tensor:
        return torch.as_tensor(x)

    masks = []
    for _ in range(2):
        mask = rng.random((rows, 4)) < 0.5
        mask[np.arange(rows), rng.integers(4, size=rows)] = True
        masks.append(tensor(mask) if spec.action_mask else None)
    if spec.action.kind == "box":
        action = tensor(rng.uniform(-1, 1, (rows, *spec.action.shape)))
    elif masks[0] is None:
        action = tensor(rng.integers(4, size=rows))
    else:
        action = tensor(np.array([rng.choice(np.flatnonzero(row)) for row in masks[0].numpy()]))
    discount = rng.choice([0.0, 0.99, 0.99**2, 0.99**3], rows)
    return Transition(
        obs=tensor(rng.standard_normal((rows, 3))),
        action=action,
        reward=tensor(rng.standard_normal(rows)),
        discount=tensor(discount),
        next_obs=tensor(rng.standard_normal((rows, 3))),
        action_mask=masks[0],
        next_action_mask=masks[1],
        weight=tensor(rng.uniform(0.1, 1, rows)) if weighted else None,
        index=torch.arange(rows) if weighted else None,
    )


def to_float(batch: Transition) -> Transition:
    """The batch as the feed gives it."""

    def of(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype == torch.float64 else x

    return Transition(*(of(getattr(batch, name)) for name in batch.__slots__))


def nets(dense: Any) -> list[Net]:
    """Each net of a BatchedMLP or NormalizedMLP as a list of layers (weight [out, in], bias [out], ...), to train."""
    normalized = hasattr(dense, "norms")
    pairs = list(zip(dense.weights, dense.biases, strict=True)) if normalized else dense.pairs
    norms = [(norm.gain, norm.shift) for norm in dense.norms] if normalized else []
    layers = [(*pair, *(norms[i] if i < len(norms) else ())) for i, pair in enumerate(pairs)]
    return [
        [(w[i].detach().clone(), *(x[i, 0].detach().clone() for x in others)) for w, *others in layers]
        for i in range(dense.nets)
    ]


def run(net: Net, *inputs: Tensor, activation: str = "relu", kept: list[Tensor] | None = None) -> Tensor:
    """`kept`: for each hidden layer the factors [B, width] of dropout."""
    x = torch.cat(inputs, -1)
    for i, (w, b, *norm) in enumerate(net):
        x = x @ w.T + b
        if i == len(net) - 1:
            break
        if kept:
            x = x * kept[i]
        if norm:
            mean = x.mean(1, keepdim=True)
            deviation = (((x - mean) ** 2).mean(1, keepdim=True) + 1e-5).sqrt()
            x = (x - mean) / deviation * norm[0] + norm[1]
        x = torch.tanh(x) if activation == "tanh" else torch.where(x > 0, x, 0.0)
    return x


def flat(net: list[Net]) -> list[Tensor]:
    return [x for one in net for layer in one for x in layer]


class BatchNormNet(torch.nn.Module):
    """One net of a NormalizedMLP with batch normalisation, from torch's own layers."""

    def __init__(self, dense: Any, index: int) -> None:
        super().__init__()
        self.linears, self.norms = torch.nn.ModuleList(), torch.nn.ModuleList()
        for weight, bias in zip(dense.weights, dense.biases, strict=True):
            self.linears.append(torch.nn.Linear(*reversed(weight.shape[1:])))
            self.linears[-1].weight.data.copy_(weight[index])
            self.linears[-1].bias.data.copy_(bias[index, 0])
            self.norms.append(torch.nn.BatchNorm1d(weight.shape[2]))

    def forward(self, x: Tensor, of_the_batch: bool) -> Tensor:
        for i, (norm, linear) in enumerate(zip(self.norms, self.linears, strict=True)):
            x = torch.relu(x) if i else x
            moments = (None, None) if of_the_batch else (norm.running_mean.clone(), norm.running_var.clone())
            y = torch.nn.functional.batch_norm(x, *moments, norm.weight, norm.bias, of_the_batch, eps=1e-3)
            if of_the_batch:
                with torch.no_grad():
                    norm.running_mean.mul_(0.99).add_(0.01 * x.mean(0))
                    norm.running_var.mul_(0.99).add_(0.01 * ((x - x.mean(0)) ** 2).mean(0))
            x = y
            x = linear(x)
        return x


class Reference:
    """SAC (Box or Discrete), TD3 or DDPG, whichever `algorithm` is; begins with its weights."""

    def __init__(self, algorithm: Any, seed: int) -> None:
        self.config, self.spec = algorithm.config, algorithm.policy.spec
        self.kind = type(algorithm).__name__
        if self.kind == "CrossQ":
            self.norm_actor = BatchNormNet(algorithm.policy.actor.dense, 0)
            self.norm_critics = [BatchNormNet(algorithm.critics.dense, i) for i in range(algorithm.config.critics)]
            self.learns_from_batch = False
            self.actor = [[tuple(self.norm_actor.parameters())]]
            self.critics = [[tuple(net.parameters())] for net in self.norm_critics]
        else:
            self.actor = nets(algorithm.policy.actor.dense)
            self.critics = self.critics_of(algorithm)
        self.target_actor, self.target_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.gsde: list[Tensor] | None = None  # weight and bias of the mean, and the log deviations [F, A] of the noise
        if getattr(self.config, "sde", False):
            policy = algorithm.policy
            shared = (*policy.head.pairs[0], policy.state_noise.weight)
            self.gsde = [x.detach().clone().requires_grad_() for x in shared]
        start = getattr(self.config, "temperature", 0.0)
        self.log_temperature = torch.tensor(math.log(start) if start else -math.inf, requires_grad=True)
        config = self.config
        for x in flat(self.actor) + flat(self.critics):
            x.requires_grad_()
        betas = (0.5, 0.999) if self.kind == "CrossQ" else (0.9, 0.999)

        def adam(params: list[Tensor], lr: float, betas: tuple[float, float] = betas) -> Any:
            return torch.optim.Adam(params, lr=lr, eps=config.adam_eps, betas=betas)

        self.of_actor = adam(self.actor_params(), config.lr)
        self.of_critics = adam(flat(self.critics), config.lr_q or config.lr)
        self.of_temperature = adam(
            [self.log_temperature], getattr(config, "lr_temperature", None) or config.lr, (0.9, 0.999)
        )
        self.random = torch.Generator().manual_seed(seed)
        self.updates = 0

    # --- pieces ---

    def actor_params(self) -> list[Tensor]:
        return flat(self.actor) + (self.gsde or [])

    def critics_params(self) -> list[Tensor]:
        return flat(self.critics)

    def critics_of(self, algorithm: Any) -> list[Net]:
        return nets((algorithm.critic if self.kind == "DDPG" else algorithm.critics).dense)

    def apply(self, optimizer: Any, params: list[Tensor], loss: Tensor) -> None:
        grads = torch.autograd.grad(loss, params)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(params, self.config.max_grad_norm)
        optimizer.step()

    def q(self, critics: list[Net], *inputs: Tensor) -> list[Tensor]:
        share, rows = getattr(self.config, "dropout", 0.0), len(inputs[0])
        kept = []  # of each hidden layer, for all critics
        for layer in critics[0][:-1] if share else []:
            drawn = torch.rand(len(critics), rows, len(layer[1]), generator=self.random)
            kept.append(torch.where(drawn < share, 0.0, 1 / (1 - share)))
        out = [
            run(net, *inputs, activation=self.config.activation, kept=[each[i] for each in kept])
            for i, net in enumerate(critics)
        ]
        return [x[:, 0] for x in out] if self.spec.action.kind == "box" else out

    def q_of_targets(self, *inputs: Tensor) -> Tensor:
        """The smallest value of all target critics, or of as many as the settings say, drawn at random."""
        critics = self.target_critics
        if self.config.target_critics is not None:
            order = torch.randperm(len(critics), generator=self.random)
            critics = [critics[i] for i in order[: self.config.target_critics]]
        return torch.stack(self.q(critics, *inputs)).amin(0)

    def q_of_policy(self, *inputs: Tensor) -> Tensor:
        """What the policy maximises."""
        kind = self.config.policy_value
        values = torch.stack(self.q(self.critics[:1] if kind == "first" else self.critics, *inputs))
        return values.amin(0) if kind == "min" else values.mean(0)

    def gaussian(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The density of tanh(u) by the change of variables, from u itself."""
        if self.kind == "CrossQ":
            head = self.norm_actor(obs, self.learns_from_batch)
        else:
            head = run(self.actor[0], obs, activation=self.config.activation)
        if self.gsde is not None:
            weight, bias, log_std = self.gsde
            h = torch.tanh(head) if self.config.activation == "tanh" else torch.relu(head)
            deviation = torch.sqrt((h**2) @ (log_std.exp() ** 2) + 1e-6)
            dist = Normal((h @ weight.T + bias).clip(-2, 2), deviation)
            u = dist.loc + dist.scale * noise
            return torch.tanh(u), (dist.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(1)
        half = head.shape[1] // 2
        dist = Normal(head[:, :half], head[:, half:].clip(-20, 2).exp())
        u = dist.loc + dist.scale * noise
        return torch.tanh(u), (dist.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(1)

    def choice(self, obs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Probabilities and their logs, both 0 where the mask forbids."""
        logits = run(self.actor[0], obs, activation=self.config.activation)
        legal = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
        probs = Categorical(logits=torch.where(legal, logits, -1e30)).probs
        return torch.where(legal, probs, 0.0), torch.where(legal, torch.where(legal, probs, 1.0).log(), 0.0)

    def learn_critics(self, batch: Transition, target: Tensor) -> Tensor:
        """The step of the critics; returns the mean size of their errors."""
        values = self.q(self.critics, batch.obs, *([batch.action] if self.spec.action.kind == "box" else []))
        if self.spec.action.kind != "box":
            values = [v[torch.arange(len(v)), batch.action] for v in values]
        weight = torch.ones_like(target) if batch.weight is None else batch.weight
        loss = sum(0.5 * (weight * (v - target) ** 2).mean() for v in values)
        errors = torch.stack([(v - target).abs() for v in values]).mean(0)
        self.apply(self.of_critics, self.critics_params(), loss)
        return errors.detach()

    def follow(self, targets: list[Net], online: list[Net]) -> None:
        with torch.no_grad():
            for slow, fast in zip(flat(targets), flat(online), strict=True):
                slow.copy_((1 - self.config.tau) * slow + self.config.tau * fast)

    # --- the papers ---

    def update(self, batch: Transition) -> Tensor:
        """One update; returns what the priorities should be made of."""
        self.updates += 1
        updates = {
            "SAC": self.sac,
            "DiscreteSAC": self.sac_discrete,
            "TQC": self.tqc,
            "CrossQ": self.crossq,
            "TD3": self.td3,
            "DDPG": self.ddpg,
        }
        return updates[self.kind](batch)

    def sac(self, batch: Transition) -> Tensor:
        config, size = self.config, batch.action.shape[1]
        noise = torch.randn(2, len(batch.reward), size, generator=self.random)
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            action, log_prob = self.gaussian(batch.next_obs, noise[0])
            soft = self.q_of_targets(batch.next_obs, action) - temperature * log_prob
        errors = self.learn_critics(batch, batch.reward + batch.discount * soft)
        delayed = self.updates % config.policy_delay != 0
        if not delayed:
            action, log_prob = self.gaussian(batch.obs, noise[1])
            value = self.q_of_policy(batch.obs, action)
            self.apply(self.of_actor, self.actor_params(), (temperature * log_prob - value).mean())
        if config.learn_temperature and not delayed:
            wanted = -size if config.target_entropy is None else config.target_entropy
            loss = -(self.log_temperature * (log_prob.detach() + wanted)).mean()
            self.log_temperature.grad = torch.autograd.grad(loss, self.log_temperature)[0]
            self.of_temperature.step()
        if self.updates % config.target_every == 0:
            self.follow(self.target_critics, self.critics)
        return errors

    def soft_policy(self, batch: Transition, noise: Tensor, temperature: Tensor, value: Any) -> None:
        """The delayed step of policy and temperature; `value(obs, action)` is what the policy maximises."""
        if self.updates % self.config.policy_delay:
            return
        action, log_prob = self.gaussian(batch.obs, noise)
        loss = (temperature * log_prob - value(batch.obs, action)).mean()
        self.apply(self.of_actor, self.actor_params(), loss)
        loss = -(self.log_temperature * (log_prob.detach() - batch.action.shape[1])).mean()
        self.log_temperature.grad = torch.autograd.grad(loss, self.log_temperature)[0]
        self.of_temperature.step()

    def tqc(self, batch: Transition) -> Tensor:
        """Kuznetsov et al. 2020, equations 10 to 13: one quantile, one sample and one row at a time."""
        config, rows, size = self.config, len(batch.reward), batch.action.shape[1]
        noise = torch.randn(2, rows, size, generator=self.random)
        temperature = self.log_temperature.exp().detach()
        quantiles = config.quantiles

        def z(critics: list[Net], *inputs: Tensor) -> list[Tensor]:
            return [run(net, *inputs, activation=config.activation) for net in critics]  # [B, M] each

        with torch.no_grad():
            action, log_prob = self.gaussian(batch.next_obs, noise[0])
            pooled = torch.cat(z(self.target_critics, batch.next_obs, action), 1)
            samples = []
            for b in range(rows):
                least = sorted(pooled[b].tolist())[: len(self.critics) * (quantiles - config.drop)]
                soft = torch.tensor(least) - temperature * log_prob[b]
                samples.append(batch.reward[b] + batch.discount[b] * soft)
        weight = torch.ones(rows) if batch.weight is None else batch.weight
        values = z(self.critics, batch.obs, batch.action)
        loss = torch.zeros(())
        for of_critic in values:
            for b in range(rows):
                for m in range(quantiles):
                    u = samples[b] - of_critic[b, m]
                    huber = torch.where(u.abs() <= 1, 0.5 * u**2, u.abs() - 0.5)
                    level = (2 * (m + 1) - 1) / (2 * quantiles)
                    loss = loss + weight[b] * ((level - (u < 0).double()).abs() * huber).mean()
        errors = torch.stack([(v.mean(1) - torch.stack(samples).mean(1)).abs() for v in values]).mean(0).detach()
        self.apply(self.of_critics, self.critics_params(), loss / (len(values) * rows * quantiles))
        self.soft_policy(
            batch, noise[1], temperature, lambda *inputs: torch.stack(z(self.critics, *inputs)).mean((0, 2))
        )
        self.follow(self.target_critics, self.critics)
        return errors

    def crossq(self, batch: Transition) -> Tensor:
        """Bhatt et al. 2024, algorithm 1, with plain batch normalisation (the first 100,000 updates)."""
        rows, size = len(batch.reward), batch.action.shape[1]
        noise = torch.randn(2, rows, size, generator=self.random)
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            action, log_prob = self.gaussian(batch.next_obs, noise[0])
        obs, actions = torch.cat([batch.obs, batch.next_obs]), torch.cat([batch.action, action])
        both = [net(torch.cat([obs, actions], 1), True)[:, 0] for net in self.norm_critics]
        soft = torch.stack([v[rows:] for v in both]).amin(0).detach() - temperature * log_prob
        target = batch.reward + batch.discount * soft
        weight = torch.ones(rows) if batch.weight is None else batch.weight
        loss = sum(0.5 * (weight * (v[:rows] - target) ** 2).mean() for v in both)
        errors = torch.stack([(v[:rows] - target).abs() for v in both]).mean(0).detach()
        self.apply(self.of_critics, [x for net in self.norm_critics for x in net.parameters()], loss)
        self.learns_from_batch = True
        self.soft_policy(
            batch,
            noise[1],
            temperature,
            lambda obs, action: torch.stack(
                [net(torch.cat([obs, action], 1), False)[:, 0] for net in self.norm_critics]
            ).amin(0),
        )
        self.learns_from_batch = False
        return errors

    def sac_discrete(self, batch: Transition) -> Tensor:
        config = self.config
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            probs, logs = self.choice(batch.next_obs, batch.next_action_mask)
            value = self.q_of_targets(batch.next_obs)
            soft = (probs * (value - temperature * logs)).sum(1)
        errors = self.learn_critics(batch, batch.reward + batch.discount * soft)
        delayed = self.updates % config.policy_delay != 0
        if not delayed:
            probs, logs = self.choice(batch.obs, batch.action_mask)
            value = self.q_of_policy(batch.obs).detach()
            self.apply(self.of_actor, self.actor_params(), (probs * (temperature * logs - value)).sum(1).mean())
        if config.learn_temperature and not delayed:
            legal = torch.full((len(probs),), 4.0) if batch.action_mask is None else batch.action_mask.sum(1).double()
            wanted = config.target_entropy_share * torch.log(legal)
            if config.target_entropy is not None:
                wanted = config.target_entropy
            entropy = -(probs * logs).sum(1).detach()
            loss = (self.log_temperature * (entropy - wanted)).mean()
            self.log_temperature.grad = torch.autograd.grad(loss, self.log_temperature)[0]
            self.of_temperature.step()
        if self.updates % config.target_every == 0:
            self.follow(self.target_critics, self.critics)
        return errors

    def td3(self, batch: Transition) -> Tensor:
        config = self.config
        noise = torch.randn(batch.action.shape, generator=self.random)
        with torch.no_grad():
            action = torch.tanh(run(self.target_actor[0], batch.next_obs, activation=config.activation))
            action = action + (noise * config.smoothing).clip(-config.smoothing_clip, config.smoothing_clip)
            value = self.q_of_targets(batch.next_obs, action.clip(-1, 1))
        errors = self.learn_critics(batch, batch.reward + batch.discount * value)
        if self.updates % config.policy_delay == 0:
            self.climb(batch)
        return errors

    def ddpg(self, batch: Transition) -> Tensor:
        with torch.no_grad():
            action = torch.tanh(run(self.target_actor[0], batch.next_obs, activation=self.config.activation))
            value = self.q(self.target_critics, batch.next_obs, action)[0]
        errors = self.learn_critics(batch, batch.reward + batch.discount * value)
        self.climb(batch)
        return errors

    def climb(self, batch: Transition) -> None:
        """The deterministic policy gradient; then both targets follow."""
        action = torch.tanh(run(self.actor[0], batch.obs, activation=self.config.activation))
        value = (
            self.q(self.critics, batch.obs, action)[0] if self.kind == "DDPG" else self.q_of_policy(batch.obs, action)
        )
        loss = -value.mean()
        self.apply(self.of_actor, self.actor_params(), loss)
        self.follow(self.target_actor, self.actor)
        self.follow(self.target_critics, self.critics)
