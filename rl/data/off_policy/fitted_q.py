"""Fitted Q evaluation: the values of a policy's actions, learnt from recorded steps."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rltrain.algorithms.functions.optim import Adam, flatten, linear, step
from rltrain.algorithms.functions.rng import Rng
from rltrain.algorithms.networks.normalize import Normalizer
from rltrain.algorithms.off_policy.target_network import TargetNetwork, make_critics
from rltrain.algorithms.offline.settings import OfflineCritics
from rltrain.algorithms.settings import Lr, NormalizeObs, PolicyName, Widths
from rltrain.data.off_policy.target import ROWS, Steps
from rltrain.rollout.tree import Tree


class FittedQConfig(OfflineCritics):
    """Settings of the critics."""

    widths: Widths = (128, 128)
    lr: Lr = 1e-3
    lr_end: float = 0.1  # share of the step size at the last update
    tau: float = 0.05  # the target must follow for several horizons, 1 / (1 - gamma), within the updates
    normalize_obs: NormalizeObs = True
    policy: PolicyName = "evaluated"


class FittedQ:
    """Fitted Q evaluation, Le, Voloshin and Yue 2019 (arXiv:1903.08738), algorithm 3, with networks.

        Q <- argmin sum_i (Q(o_i, a_i) - r_i - gamma sum_a pi(a | o'_i) Q'(o'_i, a))^2

    Q' follows Q. The target of a termination is r alone; that of a time limit has the value of the true last
    observation. Several nets learn at once, each with its own target and with weights for the episodes.

    Args:
        own:    what the policy does at each observation: [M, n] probabilities of Discrete actions, or [M, K, *A]
                actions of other spaces, of which each update uses one.
        weight: [nets, N] of the episodes in the loss of each net.
    """

    def __init__(
        self, steps: Steps, own: np.ndarray, gamma: float, weight: np.ndarray, seed: int, config: FittedQConfig
    ) -> None:
        self.steps, self.gamma, self.config = steps, gamma, config
        spec = steps.spec
        self.discrete = spec.action.kind == "discrete"
        inputs, outputs = (0, spec.action.nvec[0]) if self.discrete else (self._encoded(steps.action[:1]).shape[1], 1)
        self.own = torch.from_numpy(own)
        self.weight = torch.from_numpy(weight[:, steps.episode].astype(np.float32))  # [nets, R]
        self.rows = np.flatnonzero(weight[:, steps.episode].any(0))  # steps that any net learns from
        self.normalizer = Normalizer(spec)
        for begin in range(0, len(self.rows), ROWS):
            obs, _ = steps.tensors(steps.row[self.rows[begin : begin + ROWS]])
            self.normalizer.update(obs, torch.ones(len(self.rows[begin : begin + ROWS]), dtype=torch.bool))
        self.scale = self._scale()
        generator = torch.Generator().manual_seed(seed)
        self.critics = make_critics(spec, config, inputs, outputs, generator)
        flat = flatten(self.critics)
        self.optimizer = Adam(flat, eps=config.adam_eps)
        self.target = TargetNetwork(self.critics, flat)
        self.rng = Rng(seed)

    def fit(self, updates: int) -> None:
        """So many updates, on batches that are drawn uniformly with replacement."""
        for update in range(updates):
            self.update(linear(1.0, self.config.lr_end, update / updates))

    def update(self, lr_fraction: float) -> Tensor:
        """One step of the critics and of their targets; returns the loss []."""
        steps, drawn = self.steps, (self.rng.uniform(self.config.batch) * len(self.rows)).long().numpy()
        at = self.rows[np.minimum(drawn, len(self.rows) - 1)]  # [B] steps
        row, weight = steps.row[at], self.weight[:, at]  # [nets, B]
        reward = torch.from_numpy(steps.reward[at]) / self.scale
        discount = self.gamma * torch.from_numpy(~steps.terminated[at])

        with torch.no_grad():
            next_v = self._value(self.target.module, self._obs(row + 1), self.own[row + 1])
            target = reward + discount * next_v  # [nets, B]
        error = self._taken(self._obs(row), torch.from_numpy(steps.action[at])) - target
        loss = 0.5 * (weight * error.square()).mean(1).sum()
        step(self.optimizer, loss, lr_fraction * self.config.lr, self.config.max_grad_norm)
        self.target.follow(self.config.tau)
        return loss.detach()

    @torch.no_grad()
    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """[nets, R] values of the recorded actions, and [nets, M] of the observations, as float64."""
        steps, q, v = self.steps, [], []
        for begin in range(0, len(steps.row), ROWS):
            at = slice(begin, begin + ROWS)
            q.append(self._taken(self._obs(steps.row[at]), torch.from_numpy(steps.action[at])))
        for begin in range(0, len(steps.obs[0]), ROWS):
            rows = np.arange(begin, min(begin + ROWS, len(steps.obs[0])))
            obs, own = self._obs(rows), self.own[rows]
            if self.discrete:
                v.append(self._value(self.critics, obs, own))
            else:
                each = [self._value(self.critics, obs, own[:, k : k + 1]) for k in range(own.shape[1])]
                v.append(torch.stack(each).mean(0))
        return tuple(torch.cat(x, 1).double().numpy() * self.scale for x in (q, v))  # type: ignore[return-value]

    def _value(self, critics: torch.nn.Module, obs: Tree, own: Tensor) -> Tensor:
        """[nets, B] the values of the policy's actions at normalised obs."""
        if self.discrete:
            q = critics(obs, rng=self.rng)  # [nets, B, n]
            return torch.as_tensor((q * own).sum(-1))
        k = int(self.rng.subset(own.shape[1], 1))
        return torch.as_tensor(critics(obs, self._encoded(own[:, k]), rng=self.rng).squeeze(-1))

    def _taken(self, obs: Tree, action: Tensor) -> Tensor:
        """[nets, B] the values of these actions at normalised obs."""
        if self.discrete:
            q = self.critics(obs, rng=self.rng)
            return torch.as_tensor(q.gather(-1, action.view(1, -1, 1).expand(len(q), -1, 1)).squeeze(-1))
        return torch.as_tensor(self.critics(obs, self._encoded(action), rng=self.rng).squeeze(-1))

    def _encoded(self, action: np.ndarray | Tensor) -> Tensor:
        """[B, F] actions as inputs: numbers of a Box within the bounds, others one-hot."""
        flat = torch.as_tensor(action).flatten(1)
        spec = self.steps.spec.action
        if spec.kind == "box":
            return flat if spec.unbounded else flat.clamp(-1.0, 1.0)
        heads = [F.one_hot(flat[:, i], size) for i, size in enumerate(spec.nvec)]
        return torch.cat(heads, 1).float()

    def _obs(self, rows: np.ndarray) -> Tree:
        obs, _ = self.steps.tensors(rows)
        return self.normalizer.forward(obs)

    def _scale(self) -> float:
        """The unit of the networks' values: the root mean square of the discounted rewards to come."""
        total, squares = 0.0, 0.0
        reward, episode = self.steps.reward[self.rows], self.steps.episode[self.rows]
        for i in reversed(range(len(reward))):
            ends = i + 1 == len(reward) or episode[i + 1] != episode[i]
            total = float(reward[i]) + (0.0 if ends else self.gamma * total)
            squares += total * total
        return max(math.sqrt(squares / max(len(reward), 1)), 1e-6)
