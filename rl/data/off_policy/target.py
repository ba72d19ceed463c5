"""What the evaluated policy does at recorded observations: probabilities of recorded actions, and its own actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltrain.data.episodes import Recorded
from rltrain.envs.spec import EnvSpec
from rltrain.evaluation.policy import Trained
from rltrain.rollout.actor.noise import DRAWS
from rltrain.rollout.buffers import padded, policy_inputs
from rltrain.rollout.tree import Tree, leaves, unflatten
from rltrain.rollout.types import hooks_of

ROWS = 256  # observations at a time
SAMPLES = 8  # actions per observation, where their distribution is sampled


@dataclass(frozen=True)
class Steps:
    """Episodes one after the other. Episode i has observations start[i] ... start[i + 1] - 1, one more than steps."""

    spec: EnvSpec
    obs: list[np.ndarray]  # [M, *O] each, the leaves of the observations
    mask: np.ndarray | None  # [M, n] bool
    start: np.ndarray  # [N + 1]
    row: np.ndarray  # [R] the observation of each step; the next one follows it
    episode: np.ndarray  # [R]
    action: np.ndarray  # [R, *A]
    reward: np.ndarray  # [R] float32
    terminated: np.ndarray  # [R] bool

    @classmethod
    def of(cls, episodes: Sequence[Recorded], spec: EnvSpec) -> Steps:
        lengths = np.array([one.steps for one in episodes])
        start = np.concatenate([[0], np.cumsum(lengths + 1)])
        terminated = np.zeros(lengths.sum(), bool)
        terminated[np.cumsum(lengths) - 1] = [one.terminated for one in episodes]
        masks = [one.mask for one in episodes if one.mask is not None]
        return cls(
            spec=spec,
            obs=[np.concatenate([one.obs[i] for one in episodes]) for i in range(len(episodes[0].obs))],
            mask=np.concatenate(masks) if spec.action_mask else None,
            start=start,
            row=np.concatenate([np.arange(begin, begin + n) for begin, n in zip(start, lengths, strict=False)]),
            episode=np.repeat(np.arange(len(episodes)), lengths),
            action=np.concatenate([one.action for one in episodes]),
            reward=np.concatenate([one.reward for one in episodes]),
            terminated=terminated,
        )

    def tensors(self, rows: np.ndarray) -> tuple[Tree, Tensor | None]:
        """Observations and masks of these rows."""
        obs = unflatten(self.spec.obs, [torch.from_numpy(leaf[rows]) for leaf in self.obs])
        return obs, None if self.mask is None else torch.from_numpy(self.mask[rows])


@dataclass(frozen=True)
class Target:
    """The evaluated policy: without exploration, or, if it is `stochastic`, as it acts in training."""

    trained: Trained
    stochastic: bool
    seed: int

    @property
    def has_density(self) -> bool:
        """Whether probabilities, or for Box actions densities, of given actions are known."""
        if not self.stochastic:
            return self.trained.spec.action.kind != "box"
        policy = self.trained.policy
        obs, core, mask, _ = policy_inputs(self.trained.spec, policy.noise, policy.core_size, padded(1))
        with torch.inference_mode():
            known: bool = self._distribution(obs, core, mask) is not None
        return known

    def log_prob(self, steps: Steps) -> np.ndarray:
        """[R] float64, log pi(a | o) of the recorded actions; -inf where the policy never takes the action."""
        out = np.zeros(len(steps.obs[0]))  # of each observation
        taken = np.zeros((len(out), *steps.spec.action.shape), steps.spec.action.dtype)
        taken[steps.row] = steps.action
        for rows, obs, core, mask in self._batches(steps):
            action = torch.from_numpy(taken[rows])
            if self.stochastic:
                found = self._distribution(obs, core, mask).log_prob(action).double()
            else:
                own = self._act(obs, core, mask, None).action
                same = (own == action).reshape(len(own), -1).all(1)
                found = torch.where(same, 0.0, -torch.inf)
            out[rows] = found.numpy()
        of_steps: np.ndarray = out[steps.row]
        return of_steps

    def probabilities(self, steps: Steps) -> np.ndarray:
        """[M, n] float32 of Discrete actions at each observation; from samples if there is no distribution."""
        (count,) = steps.spec.action.nvec
        if self.stochastic and not self.has_density:
            one_hot = np.eye(count, dtype=np.float32)
            return np.asarray(one_hot[self.actions(steps)].mean(1))
        out = np.zeros((len(steps.obs[0]), count), np.float32)
        for rows, obs, core, mask in self._batches(steps):
            if self.stochastic:
                distribution = self._distribution(obs, core, mask)
                each = [distribution.log_prob(torch.full((len(rows),), a)) for a in range(count)]
                out[rows] = torch.stack(each, 1).exp().numpy()
            else:
                out[rows, self._act(obs, core, mask, None).action.numpy()] = 1.0
        return out

    def actions(self, steps: Steps) -> np.ndarray:
        """[M, K, *A] actions of the policy at each observation: one, or if it is stochastic some samples."""
        samples, rng = SAMPLES if self.stochastic else 1, np.random.default_rng(self.seed)
        action = steps.spec.action
        out = np.zeros((len(steps.obs[0]), samples, *action.shape), action.dtype)
        for rows, obs, core, mask in self._batches(steps):
            for k in range(samples):
                out[rows, k] = self._act(obs, core, mask, rng if self.stochastic else None).action.numpy()
        return np.clip(out, -1.0, 1.0) if action.kind == "box" and not action.unbounded else out

    def _batches(self, steps: Steps) -> Iterator[tuple[np.ndarray, Tree, Tensor | None, Tensor | None]]:
        """Rows, their observations, the policy's memory before them, and masks. The last batch is padded.

        A policy with memory gets the observations of an episode in their order.
        """
        with torch.inference_mode():
            if not self.trained.policy.core_size:
                total = len(steps.obs[0])
                for begin in range(0, total, ROWS):
                    rows = np.minimum(np.arange(begin, begin + min(ROWS, padded(total - begin))), total - 1)
                    yield rows, *self._inputs(steps, rows, None)
                return
            lengths = np.diff(steps.start)
            for begin in range(0, len(lengths), ROWS):
                some = np.arange(begin, min(begin + ROWS, len(lengths)))
                some = np.resize(some, padded(len(some)))
                core = self._core(len(some))
                for t in range(int(lengths[some].max())):
                    rows = steps.start[some] + np.minimum(t, lengths[some] - 1)
                    obs, core, mask = self._inputs(steps, rows, core)
                    yield rows, obs, core, mask
                    core = self._act(obs, core, mask, None).core

    def _inputs(self, steps: Steps, rows: np.ndarray, core: Tensor | None) -> tuple[Tree, Tensor | None, Tensor | None]:
        obs, mask = steps.tensors(rows)
        if mask is not None:
            mask = mask | ~mask.any(1, keepdim=True)  # after the end of an episode no action may be legal
        return obs, core, mask

    def _core(self, rows: int) -> Tensor | None:
        size = self.trained.policy.core_size
        return torch.zeros(rows, size) if size else None

    def _noise(self, rows: int, rng: np.random.Generator | None) -> Tensor:
        """Noise of `act`; its last column, the number of the stream, is 0."""
        kind, columns = self.trained.policy.noise.kind, self.trained.policy.noise.columns
        noise = np.zeros((rows, columns), np.float32)
        if rng is not None:
            width = self.trained.policy.noise.width
            noise[:, :width] = DRAWS[kind](rng, (rows, width))
        return torch.from_numpy(noise)

    def _act(self, obs: Tree, core: Tensor | None, mask: Tensor | None, rng: np.random.Generator | None) -> Any:
        rows = len(leaves(obs)[0])
        return self.trained.policy.act(obs, core, mask, self._noise(rows, rng), rng is not None)

    def _distribution(self, obs: Tree, core: Tensor | None, mask: Tensor | None) -> Any:
        find = hooks_of(self.trained.policy).action_distribution
        return None if find is None else find(obs, core, mask, self._noise(len(leaves(obs)[0]), None))
