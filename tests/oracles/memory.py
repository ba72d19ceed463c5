"""Deep Q-learning and soft actor-critic with memory, one sequence and one row at a time, in float64.

The memory, the rows that are learnt from and their targets are loops; networks, losses and optimisers are those of
`q_learning` and `off_policy`. Nothing here comes from `algorithms` but the first weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from oracles import off_policy, q_learning
from oracles.streams import BOTH, RUN, TERMINATED, TRUNCATED, make
from torch import Tensor

from rltrain.envs.spec import EnvSpec
from rltrain.rollout.types import Trajectory, Transition

Weights = list[Tensor]  # of inputs and of the state, and both biases


class Seen(NamedTuple):
    """Some rows of sequences: in place of observations."""

    batch: Trajectory
    burn_in: int
    rows: list[tuple[int, int]]  # (row, column)

    def __len__(self) -> int:
        return len(self.rows)


def sequences(spec: EnvSpec, seed: int, rows: int, columns: int, core_size: int, weighted: bool = True) -> Trajectory:
    """Consecutive rows of streams, among them ends of every kind and reset rows, with recurrent states."""
    rng = np.random.default_rng(seed)
    ends = rng.choice([RUN, TERMINATED, TRUNCATED, BOTH], (rows, columns), p=[0.7, 0.12, 0.12, 0.06]).tolist()
    plain, _ = make(ends, [number % 3 for number in range(columns)], seed)
    if spec.action.kind == "box":
        action = torch.from_numpy(rng.uniform(-1, 1, (rows, columns, *spec.action.shape)))
    else:
        action = torch.from_numpy(rng.integers(spec.action.mask_size, size=(rows, columns)))
    mask = None
    if spec.action_mask:
        mask = torch.from_numpy(rng.random((rows + 1, columns, spec.action.mask_size)) < 0.4)
        mask[:-1].scatter_(-1, action[..., None], True)
        mask[-1, :, 0] = True
    return replace(
        plain,
        obs=plain.obs.double(),
        reward=plain.reward.double(),
        action=action,
        action_mask=mask,
        core=torch.from_numpy(rng.normal(size=(1, columns, core_size))),
        weight=torch.from_numpy(rng.uniform(0.1, 1, columns)) if weighted else None,
        index=torch.arange(columns) if weighted else None,
    )


def samples(batch: Trajectory, config: Any) -> Transition:
    """What is learnt from a batch: each row behind the burn-in that is no reset row, ordered by row, then by column."""
    here: list[tuple[int, int]] = []
    after: list[tuple[int, int]] = []
    reward, discount = [], []
    last = len(batch.reward)
    for t in range(config.burn_in, last):
        for b in range(len(batch.stream)):
            if batch.first[t + 1, b]:
                continue
            total, power, row = 0.0, 1.0, t
            over = False
            while not over:
                total += power * batch.reward[row, b].item()
                power *= config.gamma
                ended = bool(batch.terminated[row, b] | batch.truncated[row, b])
                row += 1
                over = ended or row - t == config.n_step or row == last
            here.append((t, b))
            after.append((row, b))
            reward.append(total)
            discount.append(0.0 if batch.terminated[row - 1, b] else power)

    def at(x: Tensor, rows: list[tuple[int, int]]) -> Tensor:
        return torch.stack([x[t, b] for t, b in rows])

    mask = batch.action_mask
    return Transition(
        obs=Seen(batch, config.burn_in, here),
        action=at(batch.action, here),
        reward=torch.tensor(reward),
        discount=torch.tensor(discount),
        next_obs=Seen(batch, config.burn_in, after),
        action_mask=None if mask is None else at(mask, here),
        next_action_mask=None if mask is None else at(mask, after),
        weight=None if batch.weight is None else torch.stack([batch.weight[b] for _, b in here]),
        index=batch.index,
    )


def priorities(errors: Tensor, seen: Seen) -> Tensor:
    """Of each sequence, from the absolute errors of its rows: Kapturowski et al. 2019, section 2.3."""
    found = []
    for column in range(len(seen.batch.stream)):
        mine = [error.item() for error, (_, b) in zip(errors, seen.rows, strict=True) if b == column]
        found.append(0.9 * max(mine) + 0.1 * sum(mine) / len(mine) if mine else 0.0)
    return torch.tensor(found)


def cell(kind: str, weights: Weights, x: Tensor, core: Tensor) -> Tensor:
    """The next core of one row: Cho et al. 2014, or Hochreiter and Schmidhuber 1997, as torch writes them."""
    wx, wh, bx, bh = weights
    gx, gh = wx @ x + bx, wh @ core[: wh.shape[1]] + bh
    if kind == "gru":
        (rx, zx, nx), (rh, zh, nh) = gx.chunk(3), gh.chunk(3)
        z = torch.sigmoid(zx + zh)
        return (1 - z) * torch.tanh(nx + torch.sigmoid(rx + rh) * nh) + z * core
    i, f, g, o = (gx + gh).chunk(4)
    c = torch.sigmoid(f) * core[wh.shape[1] :] + torch.sigmoid(i) * torch.tanh(g)
    return torch.cat([torch.sigmoid(o) * torch.tanh(c), c])


def remembered(kind: str, weights: Weights, seen: Seen, acts: bool) -> Tensor:
    """[N, H] outputs of the memory at some rows; `acts`: it begins with the state of the batch, else empty."""
    batch, burn_in = seen.batch, seen.burn_in
    outputs: dict[tuple[int, int], Tensor] = {}
    for b in range(len(batch.stream)):
        core = batch.core[0, b] if acts else torch.zeros_like(batch.core[0, b])
        for t in range(len(batch.reward) + 1):
            if batch.first[t, b]:
                core = torch.zeros_like(core)
            if t == burn_in:
                core = core.detach()
            core = cell(kind, weights, batch.obs[t, b], core)
            outputs[t, b] = core[: weights[1].shape[1]]
    return torch.stack([outputs[place] for place in seen.rows])


NAMES = [f"encoder.memory.{name}" for name in ("weight_x", "weight_h", "bias_x", "bias_h")]


class DQN(q_learning.Reference):
    """Deep Q-learning whose observations are `Seen`."""

    def see(self, p: q_learning.Params, obs: Any) -> Tensor:
        return remembered(self.config.memory, [p[name] for name in NAMES], obs, acts=True)


class SAC(off_policy.Reference):
    """Soft actor-critic with one memory of the policy and one of the critics."""

    def __init__(self, algorithm: Any, seed: int) -> None:
        super().__init__(algorithm, seed)

        def weights(module: Any) -> Weights:
            memory = module.encoder.memory
            found = [memory.weight_x, memory.weight_h, memory.bias_x, memory.bias_h]
            return [x.detach().clone().requires_grad_() for x in found]

        self.memory, self.memory_q = weights(algorithm.policy.actor), weights(algorithm.critics)
        self.target_memory_q = [x.detach().clone() for x in weights(algorithm.target.module)]
        config = self.config
        self.of_actor = torch.optim.Adam(self.actor_params(), lr=config.lr, eps=config.adam_eps)
        self.of_critics = torch.optim.Adam(self.critics_params(), lr=config.lr_q or config.lr, eps=config.adam_eps)

    def actor_params(self) -> list[Tensor]:
        return super().actor_params() + getattr(self, "memory", [])

    def critics_params(self) -> list[Tensor]:
        return super().critics_params() + self.memory_q

    def gaussian(self, obs: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
        return super().gaussian(remembered(self.config.memory, self.memory, obs, True), noise)

    def choice(self, obs: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().choice(remembered(self.config.memory, self.memory, obs, True), mask)

    def q(self, critics: list[off_policy.Net], *inputs: Any) -> list[Tensor]:
        obs, *others = inputs
        online = critics and any(critics[0] is net for net in self.critics)
        weights = self.memory_q if online else self.target_memory_q
        return super().q(critics, remembered(self.config.memory, weights, obs, False), *others)

    def follow(self, targets: list[off_policy.Net], online: list[off_policy.Net]) -> None:
        super().follow(targets, online)
        with torch.no_grad():
            for slow, fast in zip(self.target_memory_q, self.memory_q, strict=True):
                slow.copy_((1 - self.config.tau) * slow + self.config.tau * fast)
