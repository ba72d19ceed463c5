"""Running statistics of observations and returns, as buffers: they are part of weights and checkpoints.

The learner updates them once per delivery, in the order of streams: before it learns from the first delivery, after it
has learnt from each later one. Actors only read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rltrain.algorithms.networks.memory import History
from rltrain.algorithms.networks.recurrent import core_size
from rltrain.envs.spec import EnvSpec
from rltrain.rollout.tree import Tree, leaves, tree_map, unflatten
from rltrain.rollout.types import Trajectory

EPSILON = 1e-8  # added to a variance
LIMIT = 10.0  # observations are clipped to this many standard deviations


class Normalizer(nn.Module):
    """Scales Box leaves of an observation to mean 0 and standard deviation 1, and leaves the others unchanged.

    Before the first delivery it only clips them.
    """

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.leaves = spec.leaves()
        self.boxes = [i for i, leaf in enumerate(self.leaves) if leaf.kind == "box"]
        self.single = spec.obs == self.leaves[0]
        for i in self.boxes:
            shape = self.leaves[i].shape
            self.register_buffer(f"count{i}", torch.zeros((), dtype=torch.float64))
            self.register_buffer(f"mean{i}", torch.zeros(shape, dtype=torch.float64))
            self.register_buffer(f"m2_{i}", torch.zeros(shape, dtype=torch.float64))  # sum of squared deviations
            self.register_buffer(f"shift{i}", torch.zeros(shape))
            self.register_buffer(f"scale{i}", torch.ones(shape))

    def forward(self, obs: Tree) -> Tree:
        """tree of [..., *O] to the same tree; leaves that change are new tensors."""
        if self.single:
            return self._normal(0, obs) if self.boxes else obs
        flat = leaves(obs)
        return unflatten(obs, [self._normal(i, x) if i in self.boxes else x for i, x in enumerate(flat)])

    def _normal(self, i: int, x: Tensor) -> Tensor:
        buffers = self._buffers
        shift, scale = buffers[f"shift{i}"], buffers[f"scale{i}"]
        assert shift is not None
        assert scale is not None
        return ((x - shift) * scale).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def update(self, obs: Tree, valid: Tensor) -> None:
        """Update the statistics with those rows of a tree of [..., *O] where `valid` [...] is True."""
        keep = valid.reshape(-1)
        flat = leaves(obs)
        for i in self.boxes:
            shape = self.leaves[i].shape
            rows = flat[i].reshape(-1, *shape)[keep].double()  # [N, *O]
            count, mean, m2 = self._get(f"count{i}"), self._get(f"mean{i}"), self._get(f"m2_{i}")
            _merge(count, mean, m2, rows)
            if count > 0:
                self._get(f"shift{i}").copy_(mean)
                self._get(f"scale{i}").copy_((m2 / count + EPSILON).rsqrt())

    def _get(self, name: str) -> Tensor:
        return self.get_buffer(name)


class NormalizedPolicy(nn.Module):
    """What off-policy policies share: the normalisation of observations, if the settings ask for it."""

    core_size = 0

    def __init__(self, spec: EnvSpec, config: Any) -> None:
        super().__init__()
        self.spec, self.config, self.sequence = spec, config, config.unroll
        memory = getattr(config, "memory", "none")
        if memory != "none":
            self.core_size, self.sequence = core_size(memory, config.memory_size), 1  # the replay holds every core
        self.normalizer = Normalizer(spec) if config.normalize_obs else None

    def normalised(self, obs: Tree) -> Tree:
        """The observation, or with memory the `History`, as all networks get it, those of the critics too."""
        if self.normalizer is None:
            return obs
        if isinstance(obs, History):
            return obs._replace(obs=self.normalizer.forward(obs.obs))
        return self.normalizer.forward(obs)

    def observe(self, unrolls: Trajectory) -> None:
        """Update the running statistics with each observation that an actor acted on."""
        if self.normalizer is not None:
            self.normalizer.update(tree_map(lambda x: x[:-1], unrolls.obs), unrolls.valid)


class ReturnScale(nn.Module):
    """The factor of rewards that gives discounted returns a standard deviation of 1. For training only.

    Args:
        streams: number of streams; each has an accumulator of its own.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    running: Tensor  # [streams] discounted sum of rewards of the episode so far
    follows: Tensor  # [streams] int64, row counter of the stream at which its next unroll should begin; -1: unknown

    def __init__(self, streams: int) -> None:
        super().__init__()
        for name in ("count", "mean", "m2"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self.register_buffer("running", torch.zeros(streams, dtype=torch.float64))
        self.register_buffer("follows", torch.full((streams,), -1))

    @torch.no_grad()
    def update(
        self,
        reward: Tensor,
        ended: Tensor,
        valid: Tensor,
        stream: Tensor,
        gamma: float,
        begins: Tensor | None = None,
        went: tuple[Tensor, Tensor | int] | None = None,
    ) -> None:
        """Update the statistics with T steps of B streams.

        Args:
            reward: [T, B]  as the environment returned it.
            ended:  [T, B]  bool, terminated or truncated.
            valid:  [T, B]  bool, neither a reset row nor padding.
            stream: [B]     int64, indices of the streams, without duplicates.
            gamma:  discount per step.
            begins: [B]     bool, streams whose row 0 begins an episode (`first[0]`).
            went:   [B] each, int64: the row counters of the streams at row 0, and the number of rows without padding.
                    If rows are missing (their unroll was too old), the sum of the episode so far is unknown and
                    begins at 0.
        """
        carry = self.running[stream]  # [B]
        if begins is not None:
            carry = carry.masked_fill(begins, 0.0)
        if went is not None:
            row, made = went
            follows = self.follows[stream]  # [B]
            carry = carry.masked_fill((follows >= 0) & (follows != row), 0.0)
            self.follows[stream] = row + made
        returns = reward.double().masked_fill(~valid, 0.0)  # [T, B]
        decay = valid.double().mul_(gamma).add_((~valid).double())  # [T, B] invalid rows change nothing
        decay[1:].masked_fill_(ended[:-1], 0.0)
        returns[0] += decay[0] * carry
        rows, decays = returns.cpu().numpy(), decay.cpu().numpy()  # as in returns.py; on the CPU a view
        for t in range(1, len(rows)):
            rows[t] += decays[t] * rows[t - 1]
        returns = torch.from_numpy(rows).to(self.m2.device)
        self.running[stream] = returns[-1].masked_fill(ended[-1], 0.0)
        _merge(self.count, self.mean, self.m2, returns[valid])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Older checkpoints have no row counters: assume that no rows are missing."""
        state_dict.setdefault(f"{prefix}follows", torch.full_like(self.follows, -1))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def scale(self) -> Tensor:
        """[] float32, the factor of rewards; 1 while the returns have no variance."""
        if self.count < 2 or self.m2 == 0:
            return torch.ones((), device=self.m2.device)
        return (self.m2 / self.count + EPSILON).rsqrt().float()


def _merge(count: Tensor, mean: Tensor, m2: Tensor, rows: Tensor) -> None:
    """Merge rows [N, ...] into running statistics, in place: Chan, Golub and LeVeque 1979."""
    n = rows.shape[0]
    if n == 0:
        return
    rows_mean = rows.mean(0)
    delta = rows_mean - mean
    total = count + n
    m2 += (rows - rows_mean).square().sum(0) + delta.square() * (count * n / total)
    mean += delta * (n / total)
    count.copy_(total)
