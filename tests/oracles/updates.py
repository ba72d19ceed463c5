"""Whole updates of PPO and A2C written anew: a plain network by formulas, torch's distributions and optimisers.

Nothing here comes from `algorithms` but the first weights. Boxes of one dimension as observations; actions are Discrete
(with or without a mask) or a Box. Everything is float64.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from oracles import targets
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from rltrain.rollout.types import Trajectory

Params = dict[str, Tensor]


def dense(p: Params, name: str, x: Tensor, last_is_linear: bool) -> Tensor:
    """The layers called `name`.weight0, .weight1, ... with tanh between."""
    count = sum(key.startswith(f"{name}.weight") for key in p)
    for i in range(count):
        x = x @ p[f"{name}.weight{i}"].T + p[f"{name}.bias{i}"]
        if not (last_is_linear and i == count - 1):
            x = torch.tanh(x)
    return x


def gru(p: Params, x: Tensor, h: Tensor) -> Tensor:
    """Cho et al. 2014 as torch writes it: r, z, n."""
    gx = x @ p["memory.weight_x"].T + p["memory.bias_x"]
    gh = h @ p["memory.weight_h"].T + p["memory.bias_h"]
    (rx, zx, nx), (rh, zh, nh) = gx.chunk(3, -1), gh.chunk(3, -1)
    z = 1 / (1 + torch.exp(-(zx + zh)))
    n = torch.tanh(nx + nh / (1 + torch.exp(-(rx + rh))))
    return (1 - z) * n + z * h


def outputs(
    p: Params, obs: Tensor, mask: Tensor | None, core: Tensor | None, first: Tensor, squash: bool = False
) -> tuple[Any, Tensor]:
    """Distribution and value at rows obs [L, N, O]; core [N, H] is forgotten where first [L, N] says so."""
    x = obs
    if any(key.startswith("trunk") for key in p):
        x = dense(p, "trunk", x, last_is_linear=False)
    if core is not None:
        rows = []
        for t in range(len(x)):
            core = torch.where(first[t][:, None], torch.zeros_like(core), core)
            core = gru(p, x[t], core)
            rows.append(core)
        x = torch.stack(rows)
    value = dense(p, "critic", x, True)[..., 0]
    if "state_noise.weight" in p:  # gSDE, Raffin et al. 2021, equation 8
        h = dense(p, "hidden", x, last_is_linear=False)
        variance = torch.einsum("...i,ij->...j", h.detach() ** 2, p["state_noise.weight"].exp() ** 2)
        normal = Normal(dense(p, "actor", h, True), torch.sqrt(variance + 1e-6))
    else:
        head = dense(p, "actor", x, True)
        normal = Normal(head, p["log_std"].exp().expand_as(head)) if "log_std" in p else None
    if normal is not None:
        dist = Independent(normal, 1)
        return (TransformedDistribution(dist, [TanhTransform()]) if squash else dist), value
    if mask is not None:
        head = torch.where(mask, head, -1e30)
    return Categorical(logits=head), value


def entropy_of(dist: Any, mask: Tensor | None) -> Tensor:
    """Over the legal actions; torch's own would meet 0 * inf. Of a squashed Gaussian: an integral, by small steps."""
    if isinstance(dist, TransformedDistribution):
        normal = dist.base_dist.base_dist
        z = torch.linspace(-9, 9, 2001)
        u = normal.loc.unsqueeze(-1) + normal.scale.unsqueeze(-1) * z
        weight = torch.exp(-0.5 * z**2) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
        slope = (2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u)) * weight).sum(-1)
        return (normal.entropy() + slope).sum(-1)
    if mask is None:
        found: Tensor = dist.entropy()
        return found
    p = dist.probs
    return -torch.where(mask, p * torch.log(torch.where(mask, p, 1.0)), 0.0).sum(-1)


class Reference:
    """PPO or A2C. `config` is the algorithm's own settings object.

    Args:
        policy: whose weights to begin with.
        scale:  what rewards are multiplied with.
        seed:   of the order of minibatches.
    """

    def __init__(self, policy: Any, config: Any, scale: float = 1.0, seed: int = 0) -> None:
        self.p: Params = {name: x.requires_grad_() for name, x in self.weights(policy).items()}
        self.config, self.scale = config, scale
        self.order = torch.Generator().manual_seed(seed)
        if getattr(config, "optimizer", "adam") == "rmsprop":
            self.optimizer: Any = torch.optim.RMSprop(self.p.values(), alpha=config.rms_alpha, eps=config.rms_eps)
        else:
            self.optimizer = torch.optim.Adam(self.p.values(), eps=config.adam_eps)

    @staticmethod
    def weights(policy: Any) -> Params:
        """A copy of a policy's parameters."""
        return {name: x.detach().clone().double() for name, x in policy.named_parameters()}

    @staticmethod
    def remember(p: Params, obs: Tensor, core: Tensor) -> Tensor:
        """The core [N, H] after obs [N, O]."""
        return gru(p, dense(p, "trunk", obs, last_is_linear=False), core)

    def targets(self, u: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
        """Values, advantages and value targets [T, B]; NaN at reset rows."""
        with torch.no_grad():
            value = outputs(self.p, u.obs, None, None if u.core is None else u.core[0], u.first)[1]
        flags = [x.numpy() for x in (u.terminated, u.truncated, u.valid)]
        reward = (u.reward * self.scale).numpy()
        advantage = targets.gae_by_definition(reward, value.numpy(), *flags, self.config.gamma, self.config.lam)
        return value[:-1], torch.from_numpy(advantage), torch.from_numpy(advantage) + value[:-1]

    def apply(self, loss: Tensor, lr: float) -> None:
        """One step of the optimiser, after clipping."""
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(list(self.p.values()), self.config.max_grad_norm)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def scheduled(self, name: str, progress: float) -> float:
        start, end = getattr(self.config, name), getattr(self.config, f"{name}_end")
        return float(start if end is None else start + (end - start) * progress)

    def a2c(self, u: Trajectory, progress: float) -> None:
        """One update of A2C: rows in a loop of sequences, each with the core it was given."""
        config = self.config
        _, advantage, target = self.targets(u)
        keep = u.valid
        weight = advantage[keep]
        if config.normalize_advantage:
            weight = (weight - weight.mean()) / (weight.std() + 1e-8)
        pieces = 1 if u.core is None else len(u.core)
        length = len(u.reward) // pieces
        log_prob, value, entropy = [], [], []
        for i in range(pieces):
            part = slice(i * length, (i + 1) * length)
            mask = None if u.action_mask is None else u.action_mask[part]
            dist, v = outputs(
                self.p, u.obs[part], mask, None if u.core is None else u.core[i], u.first[part], config.squash
            )
            log_prob.append(dist.log_prob(u.action[part]))
            value.append(v)
            entropy.append(entropy_of(dist, mask))
        policy_loss = -(torch.cat(log_prob)[keep] * weight).mean()
        value_loss = 0.5 * ((torch.cat(value) - target)[keep] ** 2).mean()
        bonus = self.scheduled("entropy", progress) * torch.cat(entropy)[keep].mean()
        self.apply(policy_loss + config.value * value_loss - bonus, self.scheduled("lr", progress))

    def ppo(self, u: Trajectory, progress: float) -> None:
        """One update of PPO: all epochs, all minibatches, each as a list of places (t, b) or of sequences."""
        config = self.config
        old_value, advantage, target = self.targets(u)
        rows, streams = u.reward.shape
        if u.core is None:
            places = [[(t, b)] for t in range(rows) for b in range(streams) if u.valid[t, b]]
            length = 1
        else:
            length = rows // len(u.core)
            places = [[(t + i, b) for i in range(length)] for t in range(0, rows, length) for b in range(streams)]
        for _ in range(config.epochs):
            order = torch.randperm(len(places), generator=self.order).tolist()
            bounds = [len(places) * i // config.minibatches for i in range(config.minibatches + 1)]
            for begin, end in pairwise(bounds):
                chosen = np.array([places[i] for i in order[begin:end]])  # [N, L, 2]
                t, b = (torch.from_numpy(chosen[..., i].T.copy()) for i in range(2))  # [L, N]
                self.ppo_step(u, t, b, length, (old_value, advantage, target), progress)

    def ppo_step(self, u: Trajectory, t: Tensor, b: Tensor, length: int, made: Any, progress: float) -> None:
        config, clip = self.config, self.scheduled("clip", progress)
        old_value, advantage, target = (x[t, b] for x in made)
        core = None if u.core is None else u.core[t[0] // length, b[0]]
        mask = None if u.action_mask is None else u.action_mask[t, b]
        dist, value = outputs(self.p, u.obs[t, b], mask, core, u.first[t, b], self.config.squash)
        keep = u.valid[t, b]
        weight = advantage[keep]
        if config.normalize_advantage:
            weight = (weight - weight.mean()) / (weight.std() + 1e-8)
        ratio = torch.exp(dist.log_prob(u.action[t, b]) - u.extras["log_prob"][t, b])[keep]
        worse = torch.minimum(ratio * weight, ratio.clip(1 - clip, 1 + clip) * weight)
        error = (value - target)[keep] ** 2
        if config.value_clip is not None:
            near = old_value + (value - old_value).clip(-config.value_clip, config.value_clip)
            error = torch.maximum(error, (near - target)[keep] ** 2)
        bonus = self.scheduled("entropy", progress) * entropy_of(dist, mask)[keep].mean()
        loss = -worse.mean() + config.value * 0.5 * error.mean() - bonus
        self.apply(loss, self.scheduled("lr", progress))
